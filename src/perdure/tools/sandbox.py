"""Code and files as tools: each use in a fresh sandbox over the workspace of its run, which is put back when it is undone."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from perdure.core.errors import (
    InputInvalidError,
    PerdureError,
    SandboxUnavailableError,
    ToolFailedError,
    ToolUnreachableError,
    UndoConflictError,
)
from perdure.core.flows import ToolFlow
from perdure.core.sandbox import SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome, narrower
from perdure.core.tools import Done, ToolOutput, ToolSpec, ToolUse
from perdure.ports import Door, Tool, Walls
from perdure.tools.workspaces import Kept, Manifest, Workspaces

Doors = Callable[[ToolUse], Mapping[int, Door]]
LimitsOf = Callable[[str], SandboxLimits | None]
FILE_BYTES_MAX = 8 << 20  # of one file that an agent reads or writes as a whole; code may make larger ones
READ_BYTES = 64 << 10  # of a file that are read where nothing else is said
OUTPUT_BYTES_MAX = 12 << 20  # of an answer with such a file in it
NAMES_MAX = 200  # of changed files in an answer
SLACK_MS = 20_000  # for what is around a job: the pool, files in and out
KEEPING = ToolFlow(keeps=True, audience=())  # nobody outside sees what stays in a workspace
NAME = {"type": "string", "description": "A path below the workspace, such as `data/prices.csv`."}
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
    ) -> None:
        self.walls = walls
        self.workspaces = workspaces
        self.limits = limits or SandboxLimits()
        self.limits_of = limits_of or (lambda _: None)
        self.doors = doors or (lambda _: {})
        self.has_doors = has_doors
        self._name = name
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

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
        """``python``, ``shell``, and five for files."""
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


class _InWorkspace:
    """What is common to the tools: an image of the workspace, and putting it back."""

    def __init__(self, owner: SandboxToolset, spec: ToolSpec) -> None:
        self._owner = owner
        self.spec = spec

    async def image(self, use: ToolUse) -> Any:
        """The state of the workspace, by its digest."""
        return {"workspace": await asyncio.to_thread(self._owner.workspaces.tip, use.run)}

    async def undo(self, use: ToolUse, done: Done) -> ToolOutput:
        """Put the workspace back into the state before; the state after stays readable.

        Raises:
            UndoConflictError: something has changed it since.
        """
        run = done.key.rpartition("/")[0]
        async with self._owner.alone(run):
            return await asyncio.to_thread(self._put_back, run, use, done)

    def _put_back(self, run: str, use: ToolUse, done: Done) -> ToolOutput:
        files = self._owner.workspaces
        now, before, after = files.tip(run), _digest(done.before), _digest(done.after)
        if now == before:
            return ToolOutput(value={"workspace": now, "changed": False})
        if now != after:
            text = f"the workspace of run `{run}` has changed since; undo what came after it first"
            raise UndoConflictError(text, expected=after, found=now)
        files.settle(run, use.key, now, files.manifest(before), by=f"undo of {done.key}")
        return ToolOutput(value={"workspace": before, "changed": True})


class Code(_InWorkspace):
    """Python code or a shell command in a fresh sandbox."""

    def __init__(self, owner: SandboxToolset, what: Literal["python", "shell"]) -> None:
        self._what = what
        argument = "code" if what == "python" else "command"
        shown = "Execute Python code" if what == "python" else "Execute a command with `sh`"
        ways = "It has no network but the proxy in `HTTP_PROXY`." if owner.has_doors else "It has no network."
        spec = ToolSpec(
            name=what,
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

    async def call(self, use: ToolUse) -> ToolOutput:
        """Execute it once, over the workspace as the action finds it."""
        owner = self._owner
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
        env = {f"{name}_proxy": PROXY for name in ("http", "https")} if self._owner.has_doors else {}
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
        limits = self._owner.limits
        if own := self._owner.limits_of(use.agent):
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


def _digest(image: Any) -> str:
    found = image.get("workspace") if isinstance(image, dict) else None
    if not isinstance(found, str):
        raise UndoConflictError("nobody has looked at the workspace then, so nobody knows what to put back")
    return found


class FileTool(_InWorkspace):
    """Reading and changing the workspace without executing anything."""

    def __init__(self, owner: SandboxToolset, what: str) -> None:
        self._what = what
        description, properties, required, is_read = FILE_TOOLS[what]
        spec = ToolSpec(
            name=what,
            description=description,
            parameters={
                "type": "object",
                "properties": dict(properties),
                "required": list(required),
                "additionalProperties": False,
            },
            recovery="pure" if is_read else "idempotent",
            effect="read" if is_read else "reversible",
            undoable=not is_read,
            source=owner.name,
            output_bytes_max=OUTPUT_BYTES_MAX,
            flow=KEEPING,
            tiers=tuple(owner.walls.tiers),
        )
        super().__init__(owner, spec)

    async def call(self, use: ToolUse) -> ToolOutput:
        """Do it."""
        async with self._owner.alone(use.run):
            return await asyncio.to_thread(self._done, use)

    def _done(self, use: ToolUse) -> ToolOutput:
        files = self._owner.workspaces
        base = files.base(use.run, use.key)
        manifest = files.manifest(base)
        given = use.arguments
        match self._what:
            case "workspace_list":
                return ToolOutput(value={name: _shown(kept) for name, kept in sorted(manifest.items())})
            case "workspace_read":
                return ToolOutput(value=_read(files.file(manifest, given["name"]), given))
            case "workspace_export":
                data = files.file(manifest, given["name"])
                _check_size(given["name"], data)
                return ToolOutput(
                    value={"name": given["name"], **_shown(manifest[given["name"]]), **_text(data)}
                )
            case "workspace_delete":
                files.file(manifest, given["name"])
                after = [file for file in files.files(manifest) if file.name != given["name"]]
            case _:
                made = SandboxFile(
                    name=given["name"], data=_bytes(given), is_executable=given.get("executable", False)
                )
                after = [file for file in files.files(manifest) if file.name != made.name]
                self._check_room([*after, made])
                after.append(made)
        files.save(use.run, use.key, base, after)
        kept = files.manifest(files.tip(use.run)).get(given["name"])
        return ToolOutput(value={"name": given["name"], **(_shown(kept) if kept else {})})

    def _check_room(self, files: Sequence[SandboxFile]) -> None:
        limits = self._owner.limits
        size = sum(len(file.data) for file in files)
        if size > limits.disk_bytes or len(files) > limits.files:
            raise InputInvalidError(
                f"the workspace would have {len(files)} files with {size} bytes; the limit is {limits.files} with {limits.disk_bytes}"
            )


FILE_TOOLS: Mapping[str, tuple[str, Mapping[str, Any], Sequence[str], bool]] = {
    "workspace_list": ("List the files of the workspace, with sizes and SHA-256 digests.", {}, (), True),
    "workspace_read": (
        "Read a file of the workspace: as `text` if it is UTF-8, else as `base64`.",
        {
            "name": NAME,
            "offset": {"type": "integer", "minimum": 0, "description": "The first byte; by default 0."},
            "bytes": {"type": "integer", "minimum": 1, "maximum": FILE_BYTES_MAX, "description": f"How many; by default {READ_BYTES}."},
        },
        ("name",),
        True,
    ),
    "workspace_write": (
        "Write a whole file of the workspace, from `text` or from `base64`.",
        {
            "name": NAME,
            "text": {"type": "string"},
            "base64": {"type": "string"},
            "executable": {"type": "boolean", "description": "Whether it may be started."},
        },
        ("name",),
        False,
    ),
    "workspace_delete": ("Delete a file of the workspace.", {"name": NAME}, ("name",), False),
    "workspace_export": (
        "Hand a file of the workspace out as a result of this run: it is recorded whole, with its digest.",
        {"name": NAME},
        ("name",),
        True,
    ),
}  # fmt: skip


def _shown(kept: Kept) -> dict[str, Any]:
    found: dict[str, Any] = {"size_bytes": kept.size_bytes, "sha256": kept.digest}
    return found | ({"executable": True} if kept.is_executable else {})


def _read(data: bytes, given: Mapping[str, Any]) -> dict[str, Any]:
    start, size = given.get("offset", 0), given.get("bytes", READ_BYTES)
    part = data[start : start + size]
    found = {"size_bytes": len(data), **_text(part)}
    return found | ({"next_offset": start + len(part)} if start + len(part) < len(data) else {})


def _text(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _bytes(given: Mapping[str, Any]) -> bytes:
    if ("text" in given) == ("base64" in given):
        raise InputInvalidError("a file is written from `text` or from `base64`; give one of them")
    try:
        data = given["text"].encode() if "text" in given else base64.b64decode(given["base64"], validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InputInvalidError(f"the content of `{given['name']:.200}` cannot be read: {error}") from error
    _check_size(given["name"], data)
    return data


def _check_size(name: str, data: bytes) -> None:
    if len(data) > FILE_BYTES_MAX:
        raise InputInvalidError(
            f"the file `{name:.200}` has {len(data)} bytes and {FILE_BYTES_MAX} is the limit"
        )


__all__ = ["PROXY_PORT", "Manifest", "SandboxToolset"]
