"""Sandboxes as values: what is executed, within which limits, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from perdure.core.errors import InputInvalidError

Tier = Literal["none", "process", "namespace", "gvisor", "microvm", "remote"]
Ending = Literal[
    "ended", "wall-time", "cpu-time", "memory", "processes", "open-files", "disk", "output", "network", "signal", "lost"
]  # fmt: skip
BREACHES: tuple[Ending, ...] = (
    "wall-time", "cpu-time", "memory", "processes", "open-files", "disk", "output", "network",
)  # fmt: skip
NAME_BYTES_MAX = 4_096  # of a file's path in a workspace
MIB = 1024 * 1024
LIMIT_MAX = 1 << 62  # of any limit: what the kernel takes


class SandboxLimits(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What one use of a sandbox may take; each breach has an ending of its own.

    Raises:
        InputInvalidError: a limit is not above zero.

    Attributes:
        wall_ms: until it is stopped.
        cpu_ms: processor time of all its processes.
        memory_bytes: of all its processes together where the machine has cgroups, otherwise of each one's address space.
        processes: at once, threads included.
        open_files: of each process.
        output_bytes: of stdout and stderr, each.
        disk_bytes: of its workspace, which is in memory.
        files: in its workspace.
        network_bytes: through its doors, both ways together.
        cpu_share: of one processor, at most, where the machine has cgroups.
    """

    wall_ms: int = 30_000
    cpu_ms: int = 20_000
    memory_bytes: int = 512 * MIB
    processes: int = 64
    open_files: int = 256
    output_bytes: int = MIB
    disk_bytes: int = 64 * MIB
    files: int = 4_096
    network_bytes: int = 64 * MIB
    cpu_share: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 < value < LIMIT_MAX:  # also what is no number; a negative one would mean without limit
                raise InputInvalidError(
                    f"the limit `{name}` of sandboxes must be above zero, found {value!r:.40}"
                )


class SandboxFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A regular file of a workspace.

    Attributes:
        name: its path below the workspace, with ``/``; never absolute, never with ``..``.
        data: its bytes.
        is_executable: whether it may be started.
    """

    name: str
    data: bytes
    is_executable: bool = False


class SandboxJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is executed: Python code, or a program.

    Attributes:
        code: Python, executed as ``__main__``.
        argv: a program and its arguments, instead of code; its path is absolute.
        env: all of its environment.
        stdin: what it reads.
        files: what is in its workspace (its working directory) when it starts; nothing else is.
        collects: whether the files that are there at its end come back.
    """

    code: str = ""
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    stdin: bytes = b""
    files: tuple[SandboxFile, ...] = ()
    collects: bool = False

    def __post_init__(self) -> None:
        if bool(self.code) == bool(self.argv):
            raise InputInvalidError("a sandbox executes either `code` or `argv`; give one of them")
        if self.argv and not self.argv[0].startswith("/"):
            raise InputInvalidError(
                f"a program in a sandbox is named by its whole path, found `{self.argv[0]:.200}`"
            )
        for file in self.files:
            check_file_name(file.name)


class SandboxOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        ending: ``ended`` by itself, or the limit that it met, or ``signal``; ``lost`` when the sandbox is gone and nobody knows.
        exit_code: of its first process; negative for a signal, ``None`` if it was stopped.
        stdout: what it wrote, cut at the limit.
        stderr: the same.
        cpu_ms: processor time that it took.
        memory_peak_bytes: the most that its first process had resident.
        wall_ms: from the hand-over to its end.
        tier: the wall that was really in force.
        detail: more of it, such as ``emulated`` or the host that it was on.
        files: the regular files of its workspace, if they were asked for, sorted by name.
        left_out: what was there and does not come back, with why: links, devices, what is too much.
    """

    ending: Ending
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    cpu_ms: float
    memory_peak_bytes: int
    wall_ms: float
    tier: Tier
    detail: str = ""
    files: tuple[SandboxFile, ...] = ()
    left_out: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def is_breach(self) -> bool:
        """Whether it met a limit."""
        return self.ending in BREACHES


def narrower(one: SandboxLimits, other: SandboxLimits) -> SandboxLimits:
    """Of each limit the smaller."""
    fields = SandboxLimits.__struct_fields__
    return SandboxLimits(**{name: min(getattr(one, name), getattr(other, name)) for name in fields})


def check_file_name(name: str) -> None:
    """What a file of a workspace may be called.

    Raises:
        InputInvalidError: it is empty, absolute, too long, leads out, or has a zero byte or a lone surrogate.
    """
    parts = name.split("/")
    try:
        is_fine = len(name.encode()) <= NAME_BYTES_MAX and all(len(part.encode()) <= 255 for part in parts)
    except UnicodeEncodeError:
        is_fine = False
    if not is_fine or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InputInvalidError(
            f"`{name!r:.200}` is no name of a file in a workspace; expected a path below it such as `data/prices.csv`"
        )
