"""Limits over all processes of a sandbox together, with control groups: version 2, or 1 where a machine still has it.

Without a group that may be written a sandbox has resource limits of each process only; then memory is not counted together, and the
doctor says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from perdure.core.sandbox import SandboxLimits

ROOT = Path("/sys/fs/cgroup")
PREFIX = "perdure"
CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 20_000  # short: whoever has used up its share must not hold a processor for long before that
WEIGHT, SHARES = "20", "205"  # a fifth of what a process outside gets when both want a processor
REMOVALS_MAX, REMOVAL_S = (
    50,
    0.02,
)  # how often, and how long apart, a group is removed whose processes are just ending


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one sandbox: one directory for each controller, or one for all."""

    places: tuple[Path, ...]
    is_newer: bool
    limits: SandboxLimits
    killed_before: int = 0
    refused_before: int = 0

    @property
    def killed(self) -> int:
        """How many processes the kernel has ended here because there was no memory left, ever."""
        name = "memory.events" if self.is_newer else "memory.oom_control"
        return max(_counted(place / name, "oom_kill") for place in self.places)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether that happened in this use of the group."""
        return self.killed > self.killed_before

    @property
    def refused(self) -> int:
        """How many processes were refused because there were enough, ever."""
        return max(_counted(place / "pids.events", "max") for place in self.places)

    @property
    def is_out_of_processes(self) -> bool:
        """Whether that happened in this use of the group."""
        return self.refused > self.refused_before

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in it any more."""
        try:
            return not any((place / "cgroup.procs").read_text() for place in self.places)
        except OSError:
            return False


class Cgroups:
    """Makes groups below one of its own.

    Args:
        name: of the group that they are in.
        gives_way: whether processes outside go first when both want a processor.
    """

    def __init__(self, name: str, *, gives_way: bool = True) -> None:
        self._gives_way = gives_way
        self.is_newer = (ROOT / "cgroup.controllers").exists()
        bases = [ROOT] if self.is_newer else [ROOT / controller for controller in CONTROLLERS]
        self._bases = [base / name for base in bases]
        self._count = 0
        self._left: list[Group] = []

    def open(self) -> bool:
        """Make the group of all; whether that is allowed."""
        for base in self._bases:
            _sweep(base.parent)
        try:
            for base in self._bases:
                base.mkdir(exist_ok=True)
            if self.is_newer:
                wanted = " ".join(f"+{name}" for name in CONTROLLERS)
                (self._bases[0].parent / "cgroup.subtree_control").write_text(wanted)
                (self._bases[0] / "cgroup.subtree_control").write_text(wanted)
        except OSError:
            for base in self._bases:
                with contextlib.suppress(OSError):
                    base.rmdir()
            return False
        return True

    def enter(self, handle: int, limits: SandboxLimits) -> Group:
        """Put a process, by its pid descriptor, into a group of its own with these limits. One at a time.

        Raises:
            OSError: a limit cannot be set.
        """
        group = self.take(limits)
        for place in group.places:
            (place / "cgroup.procs").write_text(str(_pid_of(handle)))
        return group

    def take(self, limits: SandboxLimits) -> Group:
        """An empty group with these limits, for processes that enter it themselves.

        Raises:
            OSError: a limit cannot be set.
        """
        return self._reused(limits) or self._made(limits)

    def _reused(self, limits: SandboxLimits) -> Group | None:
        """A group that an earlier sandbox with the same limits has left: making one is what takes time."""
        for index, group in enumerate(self._left):
            if _settings_of(group.limits) == _settings_of(limits) and group.is_empty:
                del self._left[index]
                return replace(group, killed_before=group.killed, refused_before=group.refused)
        return None

    def _made(self, limits: SandboxLimits) -> Group:
        self._count += 1
        group = Group(tuple(base / str(self._count) for base in self._bases), self.is_newer, limits)
        for place in group.places:
            place.mkdir()
        for place, name, value in self._settings(group):
            with contextlib.suppress(FileNotFoundError):  # swap is not counted everywhere
                (place / name).write_text(value)
        return group

    def _settings(self, group: Group) -> list[tuple[Path, str, str]]:
        memory, processes, share = _settings_of(group.limits)
        if self.is_newer:
            place = group.places[0]
            return [
                (place, "memory.max", memory), (place, "memory.swap.max", "0"), (place, "memory.oom.group", "1"),
                (place, "pids.max", processes), (place, "cpu.max", f"{share} {PERIOD_US}"),
                *([(place, "cpu.weight", WEIGHT)] if self._gives_way else []),
            ]  # fmt: skip
        by_name = {place.parent.parent.name: place for place in group.places}
        return [
            (by_name["memory"], "memory.limit_in_bytes", memory), (by_name["memory"], "memory.swappiness", "0"),
            (by_name["pids"], "pids.max", processes), (by_name["cpu"], "cpu.cfs_period_us", str(PERIOD_US)),
            (by_name["cpu"], "cpu.cfs_quota_us", share),
            *([(by_name["cpu"], "cpu.shares", SHARES)] if self._gives_way else []),
        ]  # fmt: skip

    def leave(self, group: Group) -> None:
        """Keep a group whose processes were killed for another one."""
        self._left.append(group)

    async def close(self) -> None:
        """Remove what is empty, or will be in a moment."""
        for _ in range(REMOVALS_MAX):
            self._left = [group for group in self._left if not _removed(group)]
            if not self._left:
                break
            await asyncio.sleep(REMOVAL_S)
        for base in self._bases:
            with contextlib.suppress(OSError):
                base.rmdir()


def _settings_of(limits: SandboxLimits) -> tuple[str, str, str]:
    """Memory, processes (the first one of a sandbox is not the job's), processor time in each period."""
    share = max(1_000, round(limits.cpu_share * PERIOD_US))  # the least that the kernel takes
    return str(limits.memory_bytes), str(limits.processes + 1), str(share)


def _sweep(parent: Path) -> None:
    """Remove what runtimes that were killed have left; a group in which anybody still is stays by itself."""
    for place in parent.glob(f"{PREFIX}-*"):
        pid = place.name.split("-")[1]
        if not pid.isdigit() or Path(f"/proc/{pid}").exists():
            continue
        with contextlib.suppress(OSError):
            for inner in place.iterdir():
                if inner.is_dir():
                    inner.rmdir()
            place.rmdir()


def _removed(group: Group) -> bool:
    is_gone = True
    for place in group.places:
        try:
            place.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_gone = False
    return is_gone


def _counted(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _pid_of(handle: int) -> int:
    """The process behind a pid descriptor, as this namespace knows it."""
    with open(f"/proc/self/fdinfo/{handle}") as file:  # noqa: PTH123 - no file, but a view of the kernel's
        found = re.search(r"^Pid:\s*(\d+)$", file.read(), re.MULTILINE)
    if found is None or int(found[1]) <= 0:
        raise ProcessLookupError(f"the process behind descriptor {handle} is gone")
    return int(found[1])


_numbers = count(1)


def group_name() -> str:
    """A name that no other pool on this machine has."""
    return f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
