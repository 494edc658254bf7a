"""What this process may use of its machine: processors and memory, as the kernel and its control groups say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is.

    Attributes:
        cpu: processors.
        memory_bytes: memory.
    """

    cpu: float
    memory_bytes: int


def machine(proc: Path = PROC, cgroups: Path = CGROUPS) -> Machine:
    """The smallest of what the hardware has, what this process may run on, and what the groups above it allow.

    Args:
        proc: where the kernel tells of processes.
        cgroups: where control groups are.
    """
    cpu = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    memory = _installed(proc)
    for place in _groups(proc, cgroups):
        quota = (_text(place / "cpu.max") or _older_quota(place)).split()
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
            cpu = min(cpu, int(quota[0]) / int(quota[1]))
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(place / name)
            if text.isdigit():
                memory = min(memory, int(text))
    return Machine(cpu, memory)


def _installed(proc: Path) -> int:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The groups of this process and all above them; in a container the outermost one that it sees is its own."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for root in [cgroups / name for name in controllers.split(",")] if controllers else [cgroups]:
            place = root / path.lstrip("/")
            while place != root.parent:
                yield place
                place = place.parent


def _older_quota(place: Path) -> str:
    quota, period = _text(place / "cpu.cfs_quota_us"), _text(place / "cpu.cfs_period_us")
    return f"{quota} {period}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
