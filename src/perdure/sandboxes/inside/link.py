"""The stream between a guest and the outside, seen from inside."""

from __future__ import annotations

import json
import os
import select
from typing import Any

import frames

READ_BYTES = 65_536


class Link:
    """The stream to the outside. When it ends, so does this process.

    Args:
        source: a descriptor that is read.
        sink: and one that is written; may be the same.
    """

    def __init__(self, source: int, sink: int) -> None:
        self.source, self._sink = source, sink
        self._held = bytearray()

    def frame(self) -> tuple[bytes, int, bytes]:
        """The next one; waits for it."""
        while (found := self.held()) is None:
            self.read()
        return found

    def ahead(self) -> bytes:
        """The kind of the next one, which stays; waits for it."""
        while not self._held:
            self.read()
        return bytes(self._held[:1])

    def held(self) -> tuple[bytes, int, bytes] | None:
        """The next one if it is here whole."""
        if len(self._held) < frames.HEAD.size:
            return None
        kind, number, size = frames.HEAD.unpack_from(self._held)
        if len(self._held) < frames.HEAD.size + size:
            return None
        data = bytes(self._held[frames.HEAD.size : frames.HEAD.size + size])
        del self._held[: frames.HEAD.size + size]
        return kind, number, data

    def read(self) -> None:
        """Take what has come; waits for something."""
        try:
            data = os.read(self.source, READ_BYTES)
        except BlockingIOError:  # gVisor says so, now and then, of descriptors that block
            select.select([self.source], [], [])
            return
        if not data:
            os._exit(0)  # given up
        self._held += data

    def send(self, kind: bytes, data: bytes = b"", number: int = 0) -> None:
        """One frame; waits until it is taken."""
        view = memoryview(frames.frame(kind, data, number))
        while view:
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:
                select.select([], [self._sink], [])


class Rehearsal(Link):
    """Nobody outside: a job of ours, whose outcome nobody hears. What is emulated is translated once, and fast from then on."""

    def __init__(self, config: dict[str, Any], now_ns: int) -> None:
        super().__init__(os.pipe()[0], -1)
        job = {
            **config, "code": "print(1)", "argv": [], "env": {}, "doors": [], "collects": False, "has_files": False, "cpu_ms": 1 << 40,
            "entropy": os.urandom(64).hex(), "now_ns": now_ns,
        }  # fmt: skip
        self._frames = [(frames.JOB, 0, json.dumps(job).encode()), (frames.GO, 0, b"")]

    def frame(self) -> tuple[bytes, int, bytes]:
        """The next one."""
        return self._frames.pop(0)

    def send(self, kind: bytes, data: bytes = b"", number: int = 0) -> None:
        """Nobody hears it."""
