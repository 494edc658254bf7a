"""The files of a run as tools, and the undoing of what was done to them."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from perdure.core.errors import InputInvalidError, UndoConflictError
from perdure.core.flows import ToolFlow
from perdure.core.sandbox import SandboxFile, SandboxLimits
from perdure.core.tools import Done, ToolOutput, ToolSpec, ToolUse
from perdure.ports import Walls
from perdure.tools.workspaces import Kept, Workspaces

FILE_BYTES_MAX = 8 << 20  # of one file that an agent reads or writes as a whole; code may make larger ones
READ_BYTES = 64 << 10  # of a file that are read where nothing else is said
OUTPUT_BYTES_MAX = 12 << 20  # of an answer with such a file in it
KEEPING = ToolFlow(keeps=True, audience=())  # nobody outside sees what stays in a workspace
NAME = {"type": "string", "description": "A path below the workspace, such as `data/prices.csv`."}


class Owner(Protocol):
    """The toolset that these tools are of."""

    walls: Walls
    workspaces: Workspaces
    limits: SandboxLimits
    limits_of: Callable[[str], SandboxLimits | None]

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def alone(self, run: str) -> AbstractAsyncContextManager[None]:
        """One at a time in the workspace of a run."""
        ...


class InWorkspace:
    """What is common to the tools: an image of the workspace, and putting it back."""

    def __init__(self, owner: Owner, spec: ToolSpec) -> None:
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


def _digest(image: Any) -> str:
    found = image.get("workspace") if isinstance(image, dict) else None
    if not isinstance(found, str):
        raise UndoConflictError("nobody has looked at the workspace then, so nobody knows what to put back")
    return found


class FileTool(InWorkspace):
    """Reading and changing the workspace without executing anything."""

    def __init__(self, owner: Owner, what: str) -> None:
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
                self._check_room(use.agent, [*after, made])
                after.append(made)
        files.save(use.run, use.key, base, after)
        kept = files.manifest(files.tip(use.run)).get(given["name"])
        return ToolOutput(value={"name": given["name"], **(_shown(kept) if kept else {})})

    def _check_room(self, agent: str, files: Sequence[SandboxFile]) -> None:
        limits = self._owner.limits_of(agent) or self._owner.limits
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
