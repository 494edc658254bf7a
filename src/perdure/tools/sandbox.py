"""Code and files as tools: each use in a fresh sandbox over the workspace of its run, which is put back when it is undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from perdure.core.errors import (
    PerdureError,
    SandboxUnavailableError,
    ToolFailedError,
    ToolUnreachableError,
)
from perdure.core.flows import ToolFlow
from perdure.core.sandbox import SandboxJob, SandboxLimits, SandboxOutcome, narrower
from perdure.core.tools import ToolOutput, ToolSpec, ToolUse
from perdure.ports import Door, Tool, Walls
from perdure.tools.workspace_tools import FILE_TOOLS, KEEPING, FileTool, InWorkspace
from perdure.tools.workspaces import Workspaces

Doors = Callable[[ToolUse], Mapping[int, Door]]
LimitsOf = Callable[[str], SandboxLimits | None]
NAMES_MAX = 200  # of changed files in an answer
SLACK_MS = 20_000  # for what is around a job: the pool, files in and out
STREAMS = {
    "stdin": {"type": "string", "description": "What it reads from its standard input."},
    "seconds": {"type": "number", "exclusiveMinimum": 0, "description": "When to stop it; never later than the limit."},
}  # fmt: skip


class SandboxToolset:
    """``python``, ``shell`` and the workspace as tools. Implements ``Toolset``.

    Args:
        walls: where code is executed.
        workspaces: the files of the runs.
        limits: of every use.
        limits_of: narrower ones, by the agent's name.
        doors: the ways out of one use, if there are any.
        has_doors: whether there are: then a use of it may have changed the world, and is not repeated by itself.
        name: what it is called in charters.
        beside: a toolset over the same workspaces: of a run's uses of both, one goes at a time.
    """

    def __init__(
        self,
        walls: Walls,
        workspaces: Workspaces,
        *,
        limits: SandboxLimits | None = None,
        limits_of: LimitsOf | None = None,
        doors: Doors | None = None,
        has_doors: bool = False,
        name: str = "sandbox",
        beside: SandboxToolset | None = None,
    ) -> None:
        self.walls = walls
        self.workspaces = workspaces
        self.limits = limits or SandboxLimits()
        self.limits_of = limits_of or (lambda _: None)
        self.doors = doors or (lambda _: {})
        self.has_doors = has_doors
        self._name = name
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {} if beside is None else beside._locks

    @property
    def name(self) -> str:
        """What it is called in charters and in ``ToolSpec.source``."""
        return self._name

    async def open(self) -> None:
        """Nothing: sandboxes are made ready by their first use."""

    async def close(self) -> None:
        """Let go of the sandboxes."""
        await self.walls.close()

    async def tools(self) -> Sequence[Tool]:
        """``python``, ``shell``, and five for files; with doors ``python_online`` and ``shell_online``."""
        if self.has_doors:
            return [Code(self, "python"), Code(self, "shell")]
        return [Code(self, "python"), Code(self, "shell"), *(FileTool(self, what) for what in FILE_TOOLS)]

    @asynccontextmanager
    async def alone(self, run: str) -> AsyncIterator[None]:
        """One at a time in the workspace of a run: each finds what the one before it has left."""
        lock, waiting = self._locks.get(run, (asyncio.Lock(), 0))
        self._locks[run] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._locks[run]
            if waiting == 1:
                del self._locks[run]
            else:
                self._locks[run] = (lock, waiting - 1)


class Code(InWorkspace):
    """Python code or a shell command in a fresh sandbox."""

    def __init__(self, owner: SandboxToolset, what: Literal["python", "shell"]) -> None:
        self._what = what
        argument = "code" if what == "python" else "command"
        shown = "Execute Python code" if what == "python" else "Execute a command with `sh`"
        ways = (
            "Of the network it reaches some hosts, through the proxy in `HTTP_PROXY`; the proxy says which."
            if owner.has_doors
            else "It has no network."
        )
        spec = ToolSpec(
            name=f"{what}_online" if owner.has_doors else what,
            description=(
                f"{shown} in a fresh sandbox whose working directory holds the files of the workspace; files that it leaves there are "
                f"kept, nothing else is. {ways} Answers what it wrote, its exit code, and how it ended: `ended`, or the limit it met."
            ),
            parameters={
                "type": "object",
                "properties": {argument: {"type": "string", "minLength": 1}, **STREAMS},
                "required": [argument],
                "additionalProperties": False,
            },
            recovery="opaque" if owner.has_doors else "idempotent",
            effect="irreversible" if owner.has_doors else "reversible",
            undoable=not owner.has_doors,
            source=owner.name,
            timeout_ms=owner.limits.wall_ms + SLACK_MS,
            flow=ToolFlow(keeps=True) if owner.has_doors else KEEPING,
            tiers=tuple(owner.walls.tiers),
        )
        super().__init__(owner, spec)
        self._toolset = owner

    async def call(self, use: ToolUse) -> ToolOutput:
        """Execute it once, over the workspace as the action finds it."""
        owner = self._toolset
        try:
            sandboxes = await owner.walls.at_least(use.tier)
        except SandboxUnavailableError as error:
            raise ToolUnreachableError(error.message) from error
        async with owner.alone(use.run):
            base, job = await asyncio.to_thread(self._job, use)
            try:
                found = await sandboxes.run(job, self._limits(use), doors=owner.doors(use) or None)
            except SandboxUnavailableError as error:
                raise ToolUnreachableError(error.message) from error
            if found.ending == "lost":
                raise _lost(found, has_doors=owner.has_doors)
            changed = await asyncio.to_thread(self._kept, use, base, job, found)
        detail = f"{found.tier} ({found.detail})" if found.detail else found.tier
        value: dict[str, Any] = {
            "stdout": found.stdout.decode(errors="replace"),
            "stderr": found.stderr.decode(errors="replace"),
            "exit_code": found.exit_code,
            "ending": found.ending,
            "files": changed[:NAMES_MAX],
        }
        if found.left_out:
            value["left_out"] = dict(found.left_out)
        return ToolOutput(value=value, tier=detail, breach=found.ending if found.is_breach else "")

    def _job(self, use: ToolUse) -> tuple[str, SandboxJob]:
        files = self._owner.workspaces
        base = files.base(use.run, use.key)
        given = use.arguments
        env = {f"{name}_proxy": PROXY for name in ("http", "https")} if self._toolset.has_doors else {}
        env |= {name.upper(): value for name, value in env.items()}
        argv = ("/bin/sh", "-c", given["command"]) if self._what == "shell" else ()
        return base, SandboxJob(
            code="" if argv else given["code"],
            argv=argv,
            env=env,
            stdin=given.get("stdin", "").encode(),
            files=files.files(files.manifest(base)),
            collects=True,
        )

    def _limits(self, use: ToolUse) -> SandboxLimits:
        limits = self._toolset.limits
        if own := self._toolset.limits_of(use.agent):
            limits = narrower(limits, own)
        if seconds := use.arguments.get("seconds"):
            limits = narrower(
                limits, SandboxLimits(**{**_all(limits), "wall_ms": max(1, int(seconds * 1000))})
            )
        return limits

    def _kept(self, use: ToolUse, base: str, job: SandboxJob, found: SandboxOutcome) -> list[str]:
        """Keep what it left; a sandbox that was stopped before its files were out changes nothing."""
        if "" in found.left_out:
            return []
        before = {file.name: file for file in job.files}
        after = {file.name: file for file in found.files}
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        self._owner.workspaces.save(use.run, use.key, base, found.files)
        return names


PROXY_PORT = 3128
PROXY = f"http://127.0.0.1:{PROXY_PORT}"


def _lost(found: SandboxOutcome, *, has_doors: bool) -> PerdureError:
    text = f"the sandbox ({found.tier}) was lost while the code ran; nothing of it was kept"
    return ToolFailedError(text) if not has_doors else _doubtful(text)


def _doubtful(text: str) -> PerdureError:
    from perdure.core.errors import ToolDoubtfulError

    return ToolDoubtfulError(f"{text}, and it could reach the network; look whether it did something there")


def _all(limits: SandboxLimits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.__struct_fields__}
