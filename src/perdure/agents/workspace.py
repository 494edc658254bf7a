"""The files of a run, as its author sees them: each call is an action of the toolset ``sandbox``, judged and recorded like any other."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

PART_BYTES = 4 << 20  # of a file in one action

if TYPE_CHECKING:
    from perdure.agents.run import Run


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file: its size, its SHA-256 in hexadecimal, and whether it may be started."""

    name: str
    size_bytes: int
    sha256: str
    is_executable: bool = False


class RunWorkspace:
    """The workspace of a run: what sandboxed code finds in its working directory and leaves there.

    The agent's charter must name ``sandbox``, or the tools ``sandbox.workspace_*``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    async def put(self, name: str, data: bytes | str, *, executable: bool = False) -> FileInfo:
        """Write a whole file.

        Args:
            name: a path below the workspace, such as ``data/prices.csv``.
            data: its content; text is written as UTF-8.
            executable: whether sandboxed code may start it.

        Raises:
            ToolUnknownError: the charter does not name the toolset.
            InputInvalidError: the name leads out, or the file is too large.
        """
        given: dict[str, Any] = {"name": name, "executable": executable}
        if isinstance(data, str):
            given["text"] = data
        else:
            given["base64"] = base64.b64encode(data).decode()
        return _info(name, await self._run.act("workspace_write", **given))

    async def get(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            InputInvalidError: there is none of that name.
        """
        parts: list[bytes] = []
        offset: int | None = 0
        while offset is not None:
            found = await self._run.act("workspace_read", name=name, offset=offset, bytes=PART_BYTES)
            parts.append(_data(found))
            offset = found.get("next_offset")
        return b"".join(parts)

    async def list(self) -> tuple[FileInfo, ...]:
        """What is there, by name."""
        found = await self._run.act("workspace_list")
        return tuple(_info(name, told) for name, told in sorted(found.items()))

    async def delete(self, name: str) -> None:
        """Delete a file.

        Raises:
            InputInvalidError: there is none of that name.
        """
        await self._run.act("workspace_delete", name=name)

    async def export(self, name: str) -> FileInfo:
        """Hand a file out as a result: it is recorded whole in the journal, with its digest and labels.

        Raises:
            InputInvalidError: there is none of that name.
        """
        return _info(name, await self._run.act("workspace_export", name=name))


def _info(name: str, told: Mapping[str, Any]) -> FileInfo:
    return FileInfo(name, told["size_bytes"], told["sha256"], bool(told.get("executable", False)))


def _data(found: Mapping[str, Any]) -> bytes:
    if "base64" in found:
        return base64.b64decode(found["base64"])
    text: str = found["text"]
    return text.encode()
