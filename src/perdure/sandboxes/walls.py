"""Walls around programs that go on: namespaces and a system call filter, put before a command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perdure.core.errors import SandboxUnavailableError, UnavailableError
from perdure.core.sandbox import MIB
from perdure.sandboxes.seccomp import program

WALL = Path(__file__).parent / "inside" / "wall.py"
DISK_BYTES = 256 * MIB  # of the private `/tmp`, which is in memory
NOBODY = 65_534  # who a walled program is that root starts


def walled(*, shows: Sequence[str], hides: Sequence[str], cwd: str) -> tuple[str, ...]:
    """What is put before a command, so that it runs behind a wall.

    Args:
        shows: directories of the host that are seen inside, for reading, besides the system's programs.
        hides: directories and files below them that are not.
        cwd: where it starts, if that is seen; else in ``/tmp``.

    Raises:
        SandboxUnavailableError: there are no such walls here.
    """
    if sys.platform != "linux":
        raise SandboxUnavailableError(
            f"namespaces are a thing of Linux, this is {sys.platform}; use isolation `process`"
        )
    try:
        code = program().hex()
    except UnavailableError as error:
        raise SandboxUnavailableError(error.message) from error
    config = {
        "read_only": _outermost(shows),
        "hidden": [os.path.realpath(path) for path in hides],
        "filter": code,
        "cwd": cwd,
        "disk_bytes": DISK_BYTES,
    }
    return (sys.executable, "-I", "-S", "-B", str(WALL), json.dumps(config))


def _outermost(paths: Sequence[str]) -> list[str]:
    """Each directory once, and none that lies in another one or in the system's own; never the whole host."""
    found: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths if Path(path).is_dir()}):
        if path in ("/", "/tmp", "/root", "/home", "/etc", "/proc", "/sys", "/dev", "/var"):  # noqa: S108
            raise SandboxUnavailableError(
                f"`{path}` would be shown behind the wall; keep the app in a directory of its own"
            )
        if not any(Path(path).is_relative_to(known) for known in ("/usr", *found)):
            found.append(path)
    return found
