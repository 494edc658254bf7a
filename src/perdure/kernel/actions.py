"""The states of an action and the transitions between them: one table, from which the diagram in the docs is drawn."""

from __future__ import annotations

from typing import Literal

from perdure.core.actions import ActionState
from perdure.core.errors import invariant

S = ActionState

#: (event, states in which it may happen, state after it). Every change of an action's state is a row here.
TRANSITIONS: tuple[tuple[str, frozenset[ActionState], ActionState], ...] = (
    ("release", frozenset({S.HELD}), S.INTENDED),  # the decision lets it go on; its budget is reserved
    ("ask", frozenset({S.HELD}), S.HELD),  # judged again, or escalated: it goes on waiting
    ("refuse", frozenset({S.HELD}), S.REFUSED),
    ("succeed", frozenset({S.INTENDED, S.UNKNOWN}), S.SUCCEEDED),
    ("fail", frozenset({S.INTENDED, S.UNKNOWN}), S.FAILED),
    ("lose", frozenset({S.INTENDED}), S.LOST),  # a model request without an answer
    ("doubt", frozenset({S.INTENDED}), S.UNKNOWN),  # no answer from a tool
    ("retry", frozenset({S.UNKNOWN}), S.INTENDED),  # decided: send it again under the same key
)
_AFTER = {(before, event): after for event, befores, after in TRANSITIONS for before in befores}
FIRST = (S.INTENDED, S.HELD, S.REFUSED)

InDoubt = Literal["repeat", "probe", "doubt", "lose"]


def transition(state: ActionState, event: str) -> ActionState:
    """The state after ``event``.

    Raises:
        BrokenInvariantError: the event cannot happen in ``state``.
    """
    after = _AFTER.get((state, event))
    invariant(after is not None, f"an action that is {state} cannot {event}", state=state, event=event)
    assert after is not None  # noqa: S101 - for the type checker; the line above decides
    return after


def event_for(before: ActionState, after: ActionState) -> str:
    """The event that leads from one state to another.

    Raises:
        BrokenInvariantError: none does.
    """
    found = [event for event, befores, target in TRANSITIONS if before in befores and target is after]
    invariant(found, f"an action that is {before} cannot become {after}")
    return found[0]


def in_doubt(what: str, recovery: str) -> InDoubt:
    """What to do with an action that was intended and has no outcome: by declaration, never by guess.

    A model request has no effect but its cost, so it counts as not made (``lose``); the caller asks again.
    """
    if what == "model":
        return "lose"
    return {"pure": "repeat", "idempotent": "repeat", "queryable": "probe"}.get(recovery, "doubt")  # type: ignore[return-value]


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"] + [f"    [*] --> {state}: propose" for state in FIRST]
    for event, befores, after in TRANSITIONS:
        lines += [f"    {before} --> {after}: {event}" for before in sorted(befores)]
    lines += [f"    {ended} --> [*]" for ended in (S.SUCCEEDED, S.FAILED, S.LOST, S.REFUSED)]
    return "\n".join(lines)
