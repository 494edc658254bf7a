"""The workspace of an attempt: fresh folders at its start, gone at its end, so that what a program left behind never counts."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError
from perdure.hosting.process import LAST_LINE_BYTES_MAX

RESULT = "result.json"
RESULT_BYTES_MAX = 64 * 1024 * 1024  # read at most; the runtime's own limit for results is smaller
PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one attempt: ``work`` (where it starts), ``home``, ``tmp``; the log of its output beside them."""

    root: Path

    @staticmethod
    def folder(root: Path, run: str) -> Path:
        """Where the attempts of a run are."""
        return root / _safe(run)

    @classmethod
    def make(cls, root: Path, run: str, attempt: int) -> Workspace:
        """Fresh folders; what earlier attempts of the run left is removed first. Blocks: call it in a thread.

        Raises:
            DefinitionError: the folder cannot be made.
        """
        folder = cls.folder(root, run)
        made = cls(folder / str(attempt))
        try:
            folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            for old in list(folder.iterdir()):
                if old.is_symlink():
                    old.unlink()
                elif old.is_dir():
                    _remove(old)
            for path in (made.root, made.work, made.home, made.tmp):
                path.mkdir(mode=PRIVATE)  # not there: a workspace is fresh or none
        except OSError as error:
            message = f"the workspace `{folder}` cannot be made: {error.strerror}; check the data directory's rights"
            raise DefinitionError(message) from error
        return made

    @property
    def work(self) -> Path:
        """Where the program starts."""
        return self.root / "work"

    @property
    def home(self) -> Path:
        """Its home folder."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """Its folder for temporary files."""
        return self.root / "tmp"

    @property
    def log(self) -> Path:
        """Its output, kept when the rest goes."""
        return self.root.parent / "output.log"

    def write_mcp_config(self, servers: Mapping[str, Mapping[str, Any]]) -> Path:
        """A configuration file as most MCP clients read it."""
        path = self.root / "mcp.json"
        path.write_bytes(msgspec.json.encode({"mcpServers": dict(servers)}))
        path.chmod(0o600)
        return path

    def write_input(self, given: bytes) -> bytes:
        """Put the run's input into ``input.json``; what the program gets on stdin (a text without its quotation marks)."""
        (self.work / "input.json").write_bytes(given)
        value = msgspec.json.decode(given)
        if value is None:
            return b""
        return value.encode() + b"\n" if isinstance(value, str) else given + b"\n"

    def result(self, last_line: str) -> bytes:
        """The program's result as JSON: ``result.json`` if it wrote one, else its last line as a text. Blocks.

        Raises:
            DefinitionError: ``result.json`` is no JSON, no plain file or too large, or the last line is too long.
        """
        data = _read_plain(self.work / RESULT)
        if data is None:
            if len(last_line) > LAST_LINE_BYTES_MAX or len(last_line.encode()) > LAST_LINE_BYTES_MAX:
                message = (
                    f"the program's last line is over {LAST_LINE_BYTES_MAX} bytes; write `{RESULT}` instead"
                )
                raise DefinitionError(message)
            return msgspec.json.encode(last_line)
        try:
            msgspec.json.decode(data)
        except (
            ValueError,
            RecursionError,
        ) as error:  # not only msgspec's own: text that is no UTF-8, deep nesting
            raise DefinitionError(f"the program's `{RESULT}` is no JSON: {error}") from error
        return data

    def remove(self) -> None:
        """Remove the folders; the log stays. What cannot be removed now is removed with the next attempt. Blocks."""
        with contextlib.suppress(OSError):
            _remove(self.root)


def _read_plain(path: Path) -> bytes | None:
    """The bytes of a file that the program wrote; ``None`` if there is none. Links are not followed, pipes not waited for.

    Raises:
        DefinitionError: it is no plain file, or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DefinitionError(f"the program's `{RESULT}` cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DefinitionError(f"the program's `{RESULT}` is not a plain file; write the JSON into it")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(RESULT_BYTES_MAX + 1)
    finally:
        os.close(handle)
    if len(data) > RESULT_BYTES_MAX:
        raise DefinitionError(
            f"the program's `{RESULT}` is over {RESULT_BYTES_MAX} bytes; give a reference instead"
        )
    return data


def _remove(path: Path) -> None:
    """A tree, also where the program took its own rights away; links are removed, never followed.

    Folders are moved next to each other before they are emptied: a tree may be deeper than paths can be long.
    """
    flat = path.with_name(path.name + ".removed")
    path.chmod(PRIVATE)
    flat.mkdir(mode=PRIVATE, exist_ok=True)
    todo = [path, flat]
    while todo:
        folder = todo.pop()
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                # Moving it changes its `..`, for which the kernel asks for the right to write it.
                Path(entry.path).chmod(PRIVATE)
                beside = flat / str(entry.inode())
                Path(entry.path).rename(beside)
                todo.append(beside)
            else:
                Path(entry.path).unlink()
        if folder != flat:
            folder.rmdir()
    flat.rmdir()


def _safe(run: str) -> str:
    """A run's id as the name of one folder."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in run).lstrip(".") or "_"
