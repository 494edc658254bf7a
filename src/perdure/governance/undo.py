"""What can be undone of a run, worked out before anything is touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from perdure.core.actions import ActionRecord, ActionState
from perdure.core.tools import ToolSpec

How = Literal["undo", "stop", "impossible", "done", "nothing"]
OUTBOX = "outbox"
PREFIX = "undo."  # before the name of the tool: what policies call the undoing of it
S = ActionState


class UndoStep(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one action.

    Attributes:
        action: its id.
        agent: whose it was.
        name: its tool.
        how: ``undo`` it, ``stop`` it (it is still in the outbox), ``impossible``, ``done`` (undone already), ``nothing`` to undo.
        why: for people.
        until_ms: until when it can be undone; ``None`` is for ever.
        derived: where only what derives from a source is undone, whether it does through its ``arguments`` or its ``context``.
    """

    action: str
    agent: str
    name: str
    how: How
    why: str = ""
    until_ms: int | None = None
    derived: str = ""


def plan(
    rows: Sequence[ActionRecord],
    specs: Mapping[tuple[str, str], ToolSpec],
    undone: Collection[str],
    now_ms: int,
    *,
    changed: Collection[tuple[str, str]] = (),
) -> list[UndoStep]:
    """What can be undone, the newest first: the order in which it must happen.

    Args:
        rows: actions to undo, in any order.
        specs: the tools as they are now, by agent and name.
        undone: ids of actions that were undone before.
        now_ms: the time.
        changed: tools (agent and name) that are not those that the run used.
    """
    ordered = sorted(rows, key=lambda row: (row.intended_ms, row.run, row.call), reverse=True)
    return [
        _step(
            row,
            specs.get((row.agent, row.name)),
            now_ms,
            is_undone=row.key in undone,
            is_changed=(row.agent, row.name) in changed,
        )
        for row in ordered
        if row.what == "tool" and not row.undoes
    ]


def _step(
    row: ActionRecord, spec: ToolSpec | None, now_ms: int, *, is_undone: bool, is_changed: bool
) -> UndoStep:
    def step(how: How, why: str, until_ms: int | None = None) -> UndoStep:
        return UndoStep(action=row.key, agent=row.agent, name=row.name, how=how, why=why, until_ms=until_ms)

    if row.state is S.HELD and row.code == OUTBOX:
        return step("stop", "it is still in the outbox")
    if row.state is S.UNKNOWN:
        return step("impossible", "nobody knows whether it happened: `perdure actions settle` first")
    if row.state is not S.SUCCEEDED:
        return step("nothing", f"it {'waits' if row.state.is_open else 'did not happen'} ({row.state})")
    if row.effect == "read":
        return step("nothing", "it only read")
    if is_undone:
        return step("done", "it was undone before")
    if spec is None:
        return step("impossible", "its tool is not there any more")
    if is_changed:
        return step("impossible", "its tool has changed since")
    if not spec.undoable:
        return step("impossible", f"its tool is {row.effect} and says no way to undo it")
    until_ms = (
        None if spec.undo_within_ms is None else (row.ended_ms or row.intended_ms) + spec.undo_within_ms
    )
    if until_ms is not None and now_ms >= until_ms:
        return step("impossible", "the time in which it could be undone is over", until_ms)
    return step("undo", "", until_ms)
