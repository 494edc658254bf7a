"""The data directory: its files, and the lock that keeps a second engine out."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Self

from perdure.core.errors import DataDirInvalidError, DataDirLockedError

DATABASE = "perdure.db"
LOCK = "perdure.lock"


def database_of(folder: Path) -> Path:
    """The database file of a data directory."""
    return folder / DATABASE


def prepare(folder: Path) -> None:
    """Make the data directory.

    Raises:
        DataDirInvalidError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirInvalidError(
            f"the data directory `{folder}` cannot be made: {error.strerror}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataDirInvalidError(
            f"the data directory `{folder}` cannot be written; check its owner and rights"
        )


class DataDirLock:
    """Held by the one engine that works on a data directory; the kernel frees it when the process dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[str] | None = None

    def acquire(self) -> Self:
        """Take the lock.

        Raises:
            DataDirLockedError: another process has it; the message names it.
        """
        try:
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            message = (
                f"the lock `{self._path}` cannot be opened: {error.strerror}; check the rights of the folder"
            )
            raise DataDirInvalidError(message) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(file)
            file.close()
            message = (
                f"`{self._path.parent}` is in use by {_describe(owner)}; stop that process, or choose another data "
                "directory (`runs list`, `send` and `cancel` work beside it)"
            )
            raise DataDirLockedError(message, **owner) from error
        file.seek(0)
        file.truncate()
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(sys.argv)[:200],
            "since": int(time.time()),
        }
        json.dump(owner, file)
        file.flush()
        self._file = file
        return self

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def owner_of(folder: Path) -> dict[str, object] | None:
    """Who holds the lock of a data directory now, or ``None``."""
    path = folder / LOCK
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _owner(file)
    return None


def _owner(file: IO[str]) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _describe(owner: dict[str, object]) -> str:
    if "pid" not in owner:
        return "another process"
    return f"process {owner['pid']} on {owner.get('host', '?')} (`{owner.get('command', '?')}`)"
