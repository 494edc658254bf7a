"""What a program has started: found by its group and by a mark in the environment that descendants inherit.

One that clears its environment *and* leaves the group gets away; and outside Linux there is only the group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

KILL_MS = 2_000  # the kernel needs no longer to end what was killed
KILL_ROUNDS = 10  # what was forked while we looked is found in the next round
MARK = "PERDURE_PROCESS"  # the variable by which descendants are found


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group; no matter if there is none any more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def boot_id() -> str:
    """What tells this start of the machine from others; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def started_at(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; ``None`` where that cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()  # not text: a process may have any bytes as its name
        return text.rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def kill_marked(mark: str) -> None:
    """Kill the processes that carry the mark and wait until they are gone. Blocks."""
    if sys.platform != "linux":
        return
    for _ in range(KILL_ROUNDS):
        handles = list(_marked(f"{MARK}={mark}".encode()))
        if not handles:
            return
        for handle in handles:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            ending = select.poll()
            ending.register(handle, select.POLLIN)
            ending.poll(KILL_MS)
            os.close(handle)


def _marked(sought: bytes) -> Iterator[int]:
    """Handles of living processes with this variable. A handle stays with its process; a number may pass to another."""
    processes = Path("/proc")
    if sys.platform != "linux" or not processes.is_dir():
        return
    for entry in processes.iterdir():
        if not entry.name.isdigit() or not _carries(entry, sought):
            continue
        try:
            handle = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        if _carries(entry, sought):
            yield handle
        else:
            os.close(handle)


def _carries(entry: Path, sought: bytes) -> bool:
    try:
        return sought in (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False
