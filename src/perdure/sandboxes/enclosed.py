"""Programs of the host that serve a sandbox and may be taken over from it: started without privileges, behind a wall of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.sandboxes import exchange
from perdure.sandboxes.cgroups import Cgroups, Group
from perdure.sandboxes.guests import entered
from perdure.sandboxes.zygotes import UNPRIVILEGED, interpreter, packed

OPEN_FILES = 256
MODULES = ("linux", "root", "root_files")  # what it needs


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is started.

    Attributes:
        argv: it and its arguments.
        env: all of its environment.
        descriptors: what it is given besides the standard ones, under the same numbers.
        read_only: directories of the host that it sees besides ``/usr``.
        has_kvm: whether it sees ``/dev/kvm``.
        file_bytes: how much it may write into files that it was given; ``None`` for no limit.
        open_files: how many it may have.
        standard: what it has as standard input and output, one of the descriptors; nothing by default.
        limits: of all its processes together, where the machine has control groups.
        groups: further groups of whoever it is, if root starts it.
        folder: where it works.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    descriptors: Sequence[int]
    read_only: Sequence[str] = ()
    has_kvm: bool = False
    file_bytes: int | None = 0
    open_files: int = OPEN_FILES
    standard: int | None = None
    limits: SandboxLimits
    groups: Sequence[int] = ()
    folder: str = "/"


def start(
    program: Program, groups: Cgroups | None, *, is_walled: bool
) -> tuple[subprocess.Popen[bytes], Group | None]:
    """Start it. It is killed when the thread that called this ends.

    Args:
        program: what is started.
        groups: where it is put.
        is_walled: in namespaces of its own; else only without privileges.

    Raises:
        SandboxUnavailableError: it cannot be started, or its limits cannot be set.
    """
    with contextlib.closing(exchange.Held(exchange.source([packed("enclose", only=MODULES)]))) as code:
        arguments = [
            interpreter(),
            "-I",
            "-S",
            "-B",
            f"/proc/self/fd/{code.number}",
            *_told(program, is_walled=is_walled),
        ]
        try:
            process = subprocess.Popen(
                arguments, pass_fds=[*program.descriptors, code.number], env={}, cwd="/", stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **_who(program),
            )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise SandboxUnavailableError(
                f"`{program.argv[0]}` cannot be started without privileges: {error}"
            ) from error
    try:
        group = entered(groups, process, program.limits)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it is gone already; whoever waits for it learns why
                process.stdin.write(b"G")
                process.stdin.close()
            process.stdin = None
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, group


def own(folder: Path) -> None:
    """Make a folder for a program that is started here, which belongs to whoever it is. Blocks.

    Raises:
        SandboxUnavailableError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700)
        if os.getuid() == 0:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
    except OSError as error:
        raise SandboxUnavailableError(
            f"{folder} cannot be given to uid {UNPRIVILEGED}: {error.strerror}"
        ) from error


def _told(program: Program, *, is_walled: bool) -> list[str]:
    """As arguments; nothing for no, and for no limit."""
    named: list[tuple[str, object]] = [
        ("is_walled", is_walled or ""), ("has_kvm", program.has_kvm or ""), ("open_files", program.open_files),
        ("file_bytes", "" if program.file_bytes is None else program.file_bytes), ("folder", program.folder),
        ("standard", "" if program.standard is None else program.standard),
        *(("read_only", path) for path in program.read_only), *(("env", f"{name}={value}") for name, value in program.env.items()),
    ]  # fmt: skip
    return [*(f"{name}={value}" for name, value in named), "--", *program.argv]


def _who(program: Program) -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": list(program.groups)}
