"""Sandboxes as values: what is executed, within which limits, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Tier = Literal["none", "process", "namespace", "gvisor", "microvm", "remote"]
Ending = Literal["ended", "wall-time", "cpu-time", "output", "memory", "processes", "signal", "lost"]
MIB = 1024 * 1024


class SandboxLimits(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What one use of a sandbox may take; each breach has an ending of its own.

    Attributes:
        wall_ms: until it is stopped.
        cpu_ms: processor time of all its processes.
        memory_bytes: of all its processes together where the machine has cgroups, otherwise of each one's address space.
        processes: at once, threads included.
        open_files: of each process.
        output_bytes: of stdout and stderr, each.
        disk_bytes: of its workspace, which is in memory.
        files: in its workspace.
    """

    wall_ms: int = 30_000
    cpu_ms: int = 20_000
    memory_bytes: int = 512 * MIB
    processes: int = 64
    open_files: int = 256
    output_bytes: int = MIB
    disk_bytes: int = 64 * MIB
    files: int = 4_096


class SandboxJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is executed: Python code, or a program.

    Attributes:
        code: Python, executed as ``__main__``.
        argv: a program and its arguments, instead of code; its path is absolute.
        env: all of its environment.
        stdin: what it reads.
    """

    code: str = ""
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    stdin: bytes = b""


class SandboxOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        ending: ``ended`` by itself, or why it was stopped.
        exit_code: of its first process; negative for a signal, ``None`` if it was stopped.
        stdout: what it wrote, cut at the limit.
        stderr: the same.
        cpu_ms: processor time that it took.
        memory_peak_bytes: the most that its first process had resident.
        wall_ms: from the hand-over to its end.
        tier: the wall that was really in force.
    """

    ending: Ending
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    cpu_ms: float
    memory_peak_bytes: int
    wall_ms: float
    tier: Tier
