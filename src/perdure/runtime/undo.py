"""Undoing runs: a plan first, then a run of its own whose every compensation is a governed, journaled action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.agents.agent import Agent
from perdure.agents.run import Run
from perdure.core import entries as e
from perdure.core.actions import ActionRecord
from perdure.core.errors import (
    PerdureError,
    RunUnknownError,
    ToolFailedError,
    ToolUnknownError,
    ToolUnreachableError,
    UndoConflictError,
    UsageError,
)
from perdure.core.ids import action_key
from perdure.core.principals import Principal
from perdure.core.tools import Done, ToolOutput, ToolSpec, ToolUse
from perdure.engines.embedded import works
from perdure.gateway.catalogue import Catalogue, Toolbox
from perdure.gateway.outputs import read_kept
from perdure.governance.flow import FlowRules
from perdure.governance.undo import PREFIX, UndoStep, plan
from perdure.ports import Tool, Toolset, Undo
from perdure.runtime.causes import Causes, derived_from
from perdure.runtime.handle import RunHandle
from perdure.runtime.outside import catalogue_of
from perdure.runtime.rulebook import read_flow

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

AGENT = "perdure.undo"


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """What undoing would do, in order."""

    run: str
    steps: Sequence[UndoStep]
    is_complete: bool = True  # whether everything that derives from the source is known

    @property
    def todo(self) -> list[UndoStep]:
        """What there is to do."""
        return [step for step in self.steps if step.how in ("undo", "stop")]

    @property
    def impossible(self) -> list[UndoStep]:
        """What cannot be undone."""
        return [step for step in self.steps if step.how == "impossible"]


class Undoing:
    """``runtime.undoing``, and the agent that does it."""

    def __init__(self, toolsets: Sequence[Toolset] = (), flow: Path | None = None) -> None:
        self.runtime: Runtime | None = None
        self._flow = flow
        self.toolbox = Toolbox(toolsets)  # beside the process that drives the runs: only to look at tools
        self.agent = Agent(AGENT, handler=self._handler(), version="1")

    def _handler(self) -> Any:
        undoing = self

        async def undo(run: Run, steps: list[dict[str, str]]) -> dict[str, Any]:
            """Undo actions in the order given."""
            done: list[dict[str, str]] = []
            for step in steps:
                try:
                    await run.act(undoing.tool(step), action=step["action"])
                except PerdureError as error:
                    done.append(
                        {
                            "action": step["action"],
                            "state": "failed",
                            "code": error.code,
                            "why": error.message,
                        }
                    )
                else:
                    done.append({"action": step["action"], "state": "undone"})
            failed = sum(item["state"] == "failed" for item in done)
            result = "ok" if not failed else "failed" if failed == len(done) else "partial"
            return {"result": result, "actions": done}

        return undo

    # -- planning
    async def plan(
        self, run: str, *, after: int = 0, cause: str | None = None, direct: bool = False
    ) -> UndoPlan:
        """What can be undone of a run and everything below it.

        Args:
            run: the run.
            after: leave its actions up to this entry of its journal alone; what it started before that too.
            cause: only what derives from this source, such as ``tool:mail.read`` or the output of one call, ``run:ID/CALL``.
            direct: of that only what derives through its arguments, not what was merely done after the source had been seen.

        Raises:
            RunUnknownError: there is none.
            UsageError: nothing comes from that source.
        """
        runtime = self._open()
        rows = _rows(runtime, run, after)
        causes = Causes({}, is_complete=True)
        if cause is not None:
            causes = derived_from(runtime.store, run, cause, runtime.bytes_of, await self._flow_rules())
            wanted = {key for key, how in causes.found.items() if how == "arguments" or not direct}
            rows = [row for row in rows if (row.run, row.call) in wanted]
        specs, changed = await self._specs(rows)
        undone = {
            row.undoes
            for name in {row.run for row in rows}
            for row in runtime.store.read(lambda tx, name=name: tx.undoing(name))  # type: ignore[misc]
            if row.state.value == "succeeded"
        }
        steps = plan(rows, specs, undone, runtime.now_ms(), changed=changed)
        derived = {action_key(*key): how for key, how in causes.found.items()}
        steps = [msgspec.structs.replace(step, derived=derived.get(step.action, "")) for step in steps]
        return UndoPlan(run, steps, causes.is_complete)

    async def _specs(
        self, rows: Sequence[ActionRecord]
    ) -> tuple[dict[tuple[str, str], ToolSpec], set[tuple[str, str]]]:
        """The tools of these actions as they are now, and those that the runs were not pinned to."""
        runtime = self._open()
        specs: dict[tuple[str, str], ToolSpec] = {}
        changed: set[tuple[str, str]] = set()
        pins = {name: _pins(runtime, name) for name in {row.run for row in rows}}
        for row in rows:
            key = (row.agent, row.name)
            if key not in specs:
                try:
                    specs[key] = (await self._tool_of(row)).spec
                except (ToolUnknownError, ToolUnreachableError):
                    continue
            pinned = pins[row.run].get(row.name)
            if pinned is not None and pinned != specs[key].digest:
                changed.add(key)
        return specs, changed

    async def _tool_of(self, row: ActionRecord) -> Tool:
        runtime = self._open()
        definition = runtime.agents.get(row.agent)
        if definition is None:
            raise ToolUnknownError(f"agent `{row.agent}` is not registered, so its tools are not known")
        return await self._catalogue(definition).find(row.name)

    def _catalogue(self, definition: Agent) -> Catalogue:
        engine = self._open().engine
        outside = None if engine is None else engine.outside
        return catalogue_of(definition, self.toolbox) if outside is None else outside.catalogue(definition)

    async def _flow_rules(self) -> FlowRules:
        """What is declared of the flow of information, for values whose labels are not recorded."""
        agents = self._open().agents
        return (
            await read_flow(self._flow, {name: self._catalogue(one) for name, one in agents.items()})
            or FlowRules()
        )

    # -- doing
    async def undo(self, made: UndoPlan, *, by: str, reason: str = "") -> RunHandle:
        """Start a run that undoes what a plan says can be undone; durable on return.

        Args:
            made: the plan.
            by: on whose behalf: policies ask for this user.
            reason: why.

        Raises:
            UsageError: there is nothing to undo.
        """
        if not made.todo:
            raise UsageError(f"nothing of run `{made.run}` can be undone", run=made.run)
        steps = [
            {"action": step.action, "name": step.name, "how": step.how, "reason": reason}
            for step in made.todo
        ]
        return await self._open().start(AGENT, {"steps": steps}, principals=[Principal(kind="user", name=by)])

    def tool(self, step: dict[str, str]) -> Tool:
        """The undoing of one action, as a tool."""
        return _UndoTool(
            self, step["action"], step["name"], is_stop=step["how"] == "stop", reason=step.get("reason", "")
        )

    async def perform(self, action: str, use: ToolUse) -> ToolOutput:
        """Undo one action.

        Raises:
            UndoConflictError: the world is not as the action left it.
            ToolUnreachableError, ToolFailedError: it could not be undone.
        """
        runtime = self._open()
        view = runtime.actions.show(action)
        tool = await self._tool_of(view.record)
        if not isinstance(tool, Undo) or not tool.spec.undoable:
            raise ToolFailedError(f"tool `{view.record.name}` says no way to undo it", tool=view.record.name)
        before, after = _images(runtime, view.history)
        if after is not None:
            original = ToolUse(run=view.record.run, key=action, arguments=view.request)
            seen = await tool.image(original)
            if seen != after:
                raise UndoConflictError(
                    f"what action `{action}` changed was changed again since; look at it, then undo it by hand",
                    action=action,
                )
        kept = None if view.result is None else read_kept(msgspec.json.encode(view.result)).output().value
        done = Done(key=action, arguments=view.request, result=kept, before=before, after=after)
        return await tool.undo(use, done)

    async def stop(self, action: str, reason: str) -> ToolOutput:
        """Stop an action that is still in the outbox."""
        await self._open().actions.settle(action, "fail", by=AGENT, reason=reason or "undone")
        return ToolOutput(value="it was not sent")

    async def aclose(self) -> None:
        """Let go of the tools."""
        await self.toolbox.close()

    def _open(self) -> Runtime:
        if self.runtime is None:
            raise ToolUnreachableError("the runtime is closed")
        return self.runtime


class _UndoTool:
    """Undoes one action. Implements ``Tool``; opaque: whether an undoing without an answer happened is not known."""

    def __init__(self, undoing: Undoing, action: str, name: str, *, is_stop: bool, reason: str) -> None:
        self._undoing = undoing
        self._is_stop = is_stop
        self._reason = reason
        self.undoes = action
        self.spec = ToolSpec(
            name=f"{PREFIX}{name}"[:128],
            description=f"Undo a use of `{name}`.",
            parameters={
                "type": "object",
                "properties": {"action": {"const": action}},
                "required": ["action"],
                "additionalProperties": False,
            },
            source=AGENT,
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        """Undo it."""
        if self._is_stop:
            return await self._undoing.stop(self.undoes, self._reason)
        return await self._undoing.perform(self.undoes, use)


def _rows(runtime: Runtime, run: str, after: int) -> list[ActionRecord]:
    """The actions of a run after an entry, and of the runs that it started after that."""
    record = runtime.store.read(lambda tx: works.find(tx, run))
    rows = [row for row in runtime.actions.all_of(record.id) if row.intent_seq > after]
    since_ms = 0
    if after:
        journal = runtime.run(run).journal(after=after - 1, limit=1)
        if not journal:
            raise RunUnknownError(f"run `{run}` has no entry {after}", run=run)
        since_ms = journal[0].at_ms + 1
    for child in runtime.store.read(lambda tx: tx.children(run)):
        if child.created_ms >= since_ms:
            rows += _rows(runtime, child.id, 0)
    return rows


def _pins(runtime: Runtime, run: str) -> dict[str, str]:
    pinned = [entry.digests for entry in runtime.run(run).journal() if isinstance(entry, e.ToolsPinned)]
    return pinned[-1] if pinned else {}


def _images(runtime: Runtime, history: Sequence[e.CallEntry]) -> tuple[Any, Any]:
    before, after = None, None
    for entry in history:
        if isinstance(entry, e.ActionIntended) and entry.before is not None:
            before = msgspec.json.decode(runtime.bytes_of(entry.before))
        elif isinstance(entry, e.ActionEnded) and entry.after is not None:
            after = msgspec.json.decode(runtime.bytes_of(entry.after))
    return before, after
