"""Writes the archive that a Linux kernel unpacks into its first root file system (cpio, ``newc``)."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Protocol

BLOCK = 4


class Sink(Protocol):
    """Where bytes are written."""

    def write(self, data: Any, /) -> int:
        """Some more of them."""
        ...


class Archive:
    """Files by their absolute names; each directory on the way is made. Times are zero, so that equal contents are equal bytes.

    Args:
        target: where it is written.
    """

    def __init__(self, target: Sink) -> None:
        self._target = target
        self._names: set[str] = set()
        self._inode = 0

    def has(self, name: str) -> bool:
        """Whether that name is there already."""
        return name.strip("/") in self._names

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name: str, data: bytes, *, is_executable: bool = False) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | (0o755 if is_executable else 0o644), data)

    def copy(self, name: str, source: Path) -> None:
        """What a path of this machine leads to, as a regular file."""
        mode = source.stat().st_mode
        self.file(name, source.read_bytes(), is_executable=bool(mode & 0o111))

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        name = name.strip("/")
        if name in self._names:
            return
        parent = name.rpartition("/")[0]
        if parent and parent not in self._names:
            self.directory(parent)
        self._names.add(name)
        self._inode += 1
        self._write(name, mode, data, self._inode)

    def _write(self, name: str, mode: int, data: bytes, inode: int) -> None:
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._target.write(head + encoded + bytes(-(len(head) + len(encoded)) % BLOCK))
        self._target.write(data + bytes(-len(data) % BLOCK))

    def close(self) -> None:
        """Write the end."""
        self._write("TRAILER!!!", 0, b"", 0)
