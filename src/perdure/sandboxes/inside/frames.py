"""How the two sides of a wall talk over one stream of bytes: frames of a kind, a connection, and a size. Used on both sides."""

from __future__ import annotations

import struct

HEAD = struct.Struct("<cHI")
SIZE_MAX = 1 << 20  # bytes of one frame; who sends more is not one of us

# To the guest.
CONFIG, REHEARSE, JOB, INPUT, ARCHIVE, GO = b"K", b"W", b"J", b"I", b"A", b"G"
# From the guest.
READY, OUT, ERROR, FILES, TOLD, KNOCK = b"R", b"1", b"2", b"F", b"T", b"o"
# Both ways: what passes through a door.
DATA, END = b"d", b"e"


def frame(kind: bytes, data: bytes = b"", connection: int = 0) -> bytes:
    """One frame; its data is not longer than ``SIZE_MAX``."""
    return HEAD.pack(kind, connection, len(data)) + data


def frames(kind: bytes, data: bytes) -> list[bytes]:
    """As many as are needed for the data; none for no data."""
    return [frame(kind, data[at : at + SIZE_MAX]) for at in range(0, len(data), SIZE_MAX)]
