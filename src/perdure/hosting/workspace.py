"""The workspace of an attempt: fresh folders at its start, gone at its end, so that what a program left behind never counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError

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
        """Fresh folders; what earlier attempts of the run left is removed first.

        Raises:
            DefinitionError: the folder cannot be made.
        """
        folder = cls.folder(root, run)
        try:
            if folder.is_dir():
                for old in folder.iterdir():
                    if old.is_dir() and not old.is_symlink():
                        _remove(old)
            made = cls(folder / str(attempt))
            for path in (folder, made.root, made.work, made.home, made.tmp):
                path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
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
        """The program's result as JSON: ``result.json`` if it wrote one, else its last line as a text.

        Raises:
            DefinitionError: ``result.json`` is no JSON or too large.
        """
        path = self.work / RESULT
        if not path.is_file():
            return msgspec.json.encode(last_line)
        if path.stat().st_size > RESULT_BYTES_MAX:
            raise DefinitionError(f"the program's `{RESULT}` is over {RESULT_BYTES_MAX} bytes")
        data = path.read_bytes()
        try:
            msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise DefinitionError(f"the program's `{RESULT}` is no JSON: {error}") from error
        return data

    def remove(self) -> None:
        """Remove the folders; the log stays."""
        _remove(self.root)


def _remove(path: Path) -> None:
    """A tree, also where the program took its own rights away; links are removed, never followed."""
    for folder, _, _ in os.walk(path):
        if not os.path.islink(folder):  # noqa: PTH114 - as walk names them
            os.chmod(folder, PRIVATE)  # noqa: PTH101
    shutil.rmtree(path, ignore_errors=True)


def _safe(run: str) -> str:
    """A run's id as the name of one folder."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in run).lstrip(".") or "_"
