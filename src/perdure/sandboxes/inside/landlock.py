"""Landlock: what files the processes of a sandbox may change, beside what their mounts allow (landlock(7), linux/landlock.h)."""

from __future__ import annotations

import ctypes
import os
import struct

CREATE, ADD, RESTRICT = 444, 445, 446  # the same numbers on every architecture
VERSION, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHARACTER, MAKE_BLOCK = 1 << 6, 1 << 11
LOOKING = EXECUTE | READ_FILE | READ_DIR
BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # access rights that a version knows; 16 from version 5 on
NET_SINCE, SCOPED_SINCE = 4, 6
SCOPES = 3  # abstract sockets and signals stay inside

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Which version this kernel has; 0 for none."""
    found: int = _libc.syscall(CREATE, None, ctypes.c_size_t(0), VERSION)
    return max(0, found)


def restrict(known: int, writable: tuple[str, ...], devices: str) -> None:
    """Everything may be read and executed, only these directories changed; needs no new privileges to be set.

    Args:
        known: what :func:`version` said.
        writable: directories in which everything but devices may be made and changed.
        devices: a directory whose files may be written.
    """
    every = (1 << BITS.get(known, 16)) - 1
    attributes = struct.pack("QQQ", every, 0, SCOPES)
    size = 24 if known >= SCOPED_SINCE else 16 if known >= NET_SINCE else 8
    ruleset = _checked(_libc.syscall(CREATE, attributes, ctypes.c_size_t(size), 0))
    _allow(ruleset, "/", LOOKING)
    _allow(ruleset, devices, LOOKING | WRITE_FILE)
    for path in writable:
        _allow(ruleset, path, every & ~(MAKE_CHARACTER | MAKE_BLOCK))
    _checked(_libc.syscall(RESTRICT, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _checked(_libc.syscall(ADD, ruleset, PATH_BENEATH, struct.pack("=Qi", access, place), 0))
    os.close(place)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: landlock")
    return result
