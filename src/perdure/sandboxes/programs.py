"""Walls of namespaces around hosted programs: one for each attempt, with doors to the gateway and nowhere else."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from perdure.core.errors import DefinitionError, SandboxUnavailableError
from perdure.core.resources import CPU_MAX, Limits
from perdure.core.sandbox import SandboxLimits, Tier
from perdure.ports import Door
from perdure.sandboxes import exchange
from perdure.sandboxes.cgroups import Cgroups, Group, group_name
from perdure.sandboxes.doors import Doors
from perdure.sandboxes.hints import why_not
from perdure.sandboxes.seccomp import program
from perdure.sandboxes.zygotes import packed

BEHIND = (
    16  # processes by which the limit of the user is behind that of the group, which is the one that tells
)
READY_S = 20.0  # for a wall to be built, on a busy machine
MESSAGE_BYTES_MAX = 131_072
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")  # shown to every program
LIMITS = SandboxLimits(
    processes=512, disk_bytes=512 << 20, network_bytes=1 << 40, memory_bytes=1 << 40, cpu_share=CPU_MAX,
    wall_ms=1 << 53,
)  # fmt: skip


class NamespacePrograms:
    """Implements ``ProgramWalls``.

    Args:
        limits: of each program: processes, what it may write to ``/tmp``, bytes through its doors.
    """

    tier: Tier = "namespace"

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self._limits = limits or LIMITS
        self._cgroups: Cgroups | None = None
        self._using = 0

    @contextlib.asynccontextmanager
    async def around(
        self,
        command: tuple[str, ...],
        *,
        cwd: str,
        path: str,
        shown: Sequence[str],
        writable: Sequence[str],
        doors: Mapping[int, Door],
        limits: Limits | None = None,
    ) -> AsyncIterator[Walled]:
        """A wall for a program (see the port)."""
        if sys.platform != "linux":
            raise SandboxUnavailableError(
                f"walls of namespaces are a thing of Linux, this is {sys.platform}; to run programs as plain processes, "
                'write `programs = "process"` into `[sandbox]`'
            )
        if not _is_narrow(Path(cwd)) and not _is_below(cwd, (*writable, *shown)):
            raise DefinitionError(
                f"`{cwd}` is the folder of a whole user or machine, which no program is shown; start it in a folder of its own"
            )
        read_only = sorted({*_needed(command, cwd, path), *map(_present, shown)})
        read_only = [each for each in read_only if not _is_below(each, (*SYSTEM, *writable))]
        chosen = self._limits if limits is None else limits.within(self._limits)
        config: dict[str, object] = {
            "read_only": read_only, "writable": list(writable), "cwd": cwd, "ports": sorted(doors), "filter": program().hex(),
            "disk_bytes": chosen.disk_bytes,
        }  # fmt: skip
        async with self._grouped(limits, chosen) as group:
            own = 0 if group is not None or limits is None else limits.memory_bytes or 0
            places = () if group is None else group.places
            config |= {
                "groups": [str(place / "cgroup.procs") for place in places], "memory_bytes": own,
                "processes": chosen.processes + (0 if group is None else BEHIND),
            }  # fmt: skip
            walled = Walled(config, Doors(doors, chosen.network_bytes, lambda: None), group)
            try:
                yield walled
            finally:
                await walled.close()

    @contextlib.asynccontextmanager
    async def _grouped(self, limits: Limits | None, chosen: SandboxLimits) -> AsyncIterator[Group | None]:
        """A control group for a program with limits of its own, removed after it; ``None`` where none may be written."""
        if limits is None:
            yield None
            return
        if self._cgroups is None:
            cgroups = Cgroups(group_name(), gives_way=False)
            self._cgroups = cgroups if cgroups.open() else None
        if self._cgroups is None:
            if limits.cpu is not None:
                raise SandboxUnavailableError(
                    "a limit of `cpu` for a program needs control groups, and this user may write none; have one delegated "
                    "(`systemd-run --user --scope -p Delegate=yes`), run as root, or take the limit away"
                )
            yield None
            return
        self._using += 1
        group: Group | None = None
        try:
            try:
                group = self._cgroups.take(msgspec.structs.replace(chosen, processes=chosen.processes + 1))
            except OSError as error:
                raise SandboxUnavailableError(
                    f"the limits of the program cannot be set in its control group: {error.strerror}"
                ) from error
            yield group
        finally:
            self._using -= 1
            if group is not None:
                self._cgroups.leave(group)
            if not self._using:
                cgroups, self._cgroups = self._cgroups, None
                await cgroups.close()


class Walled:
    """Implements ``WalledProgram``."""

    def __init__(self, config: Mapping[str, object], doors: Doors, group: Group | None = None) -> None:
        self._doors = doors
        self._group = group
        self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._code = exchange.source([packed("program")])
        self._connecting = asyncio.Lock()
        data = json.dumps(config).encode()
        if len(data) > MESSAGE_BYTES_MAX:
            raise DefinitionError("a program is shown too many files; name the folders that they are in")
        self._control.send(data)

    @property
    def launcher(self) -> tuple[str, ...]:
        """What is started in place of the command."""
        theirs = str(self._theirs.fileno())
        return (sys.executable, "-I", "-S", "-B", f"/proc/self/fd/{self._code}", theirs)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What it must inherit."""
        return (self._theirs.fileno(), self._code)

    async def stand(self) -> None:
        """Wait until the wall stands, and let the program begin (see the port)."""
        self._let_go()
        try:
            data, found = await self._answer()
            if not data:  # killed, as any program may be: how it ended says its exit code
                return
        except TimeoutError:
            data, found = b"Eit took too long", []
        if data[:1] != b"R" or len(found) != len(self._doors.ports):
            for descriptor in found:
                os.close(descriptor)
            text = data[1:].decode(errors="replace").strip().rsplit("\n", 1)[-1]
            raise SandboxUnavailableError(
                f"the wall around the program could not be built: {why_not(text)}; `perdure sandbox doctor` says "
                'what is missing, and `programs = "process"` in `[sandbox]` runs programs without a wall'
            )
        await self._doors.serve(found)
        with contextlib.suppress(ConnectionError):
            self._control.send(b"G")

    @property
    def breach(self) -> str:
        """The limit that the program has met (see the port); nobody knows without a control group."""
        if self._group is None:
            return ""
        if self._group.is_out_of_memory:
            return "memory"
        return "processes" if self._group.is_out_of_processes else ""

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a port that the program listens on (see the port)."""
        async with self._connecting:
            try:
                self._control.send(str(port).encode())
                data, found = await self._answer()
            except TimeoutError:
                data, found = b"", []
        if data != b"C" or len(found) != 1:
            raise ConnectionRefusedError(f"the program does not listen on port {port}")
        return await asyncio.open_connection(sock=socket.socket(fileno=found[0]))

    async def _answer(self) -> tuple[bytes, list[int]]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._control, ready.set)
        try:
            async with asyncio.timeout(READY_S):
                await ready.wait()
        finally:
            loop.remove_reader(self._control)
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                MESSAGE_BYTES_MAX, socket.CMSG_LEN(4 * max(1, len(self._doors.ports)))
            )
        except ConnectionError:
            return b"", []
        found = array.array("i")
        for _, _, part in ancillary:
            found.frombytes(part[: len(part) - len(part) % 4])
        return data, list(found)

    def _let_go(self) -> None:
        """Our copies of what the launcher has inherited: with them it would never be seen to end."""
        self._theirs.close()
        code, self._code = self._code, -1
        if code >= 0:
            os.close(code)

    async def close(self) -> None:
        """Close the doors; the process ends with whoever started it."""
        self._let_go()
        self._control.close()
        await self._doors.close()


def _needed(command: tuple[str, ...], cwd: str, path: str) -> Iterator[str]:
    """What a program cannot do without: its folder, its interpreter with its libraries, and the files that it is told of."""
    if _is_narrow(Path(cwd)):
        yield cwd
    found = str(Path(cwd, command[0])) if os.sep in command[0] else shutil.which(command[0], path=path)
    if found:
        for each in _steps(Path(found)):
            prefix = each.parent.parent if each.parent.name == "bin" else each.parent
            yield str(prefix if _is_narrow(prefix) else each)
    for word in command[1:]:
        place = Path(cwd, word)
        if "/" in word and _is_file(place) and not _is_below(str(place), (cwd,)):
            yield str(place.parent if _is_narrow(place.parent) else place)


def _steps(path: Path) -> Iterator[Path]:
    """A path, and where its links lead, step by step."""
    for _ in range(16):
        yield path
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    yield path.resolve()


def _is_file(path: Path) -> bool:
    """Whether a word of a command is a file; it may be code as well, and longer than a path can be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_narrow(folder: Path) -> bool:
    """Whether showing a folder shows a program's files, and not those of a whole user or machine."""
    return len(folder.resolve().parts) > 2 and folder.resolve() != Path.home().resolve()


def _present(path: str) -> str:
    found = Path(path).absolute()
    if not found.exists():
        raise DefinitionError(f"`{path}` is to be shown to a program and is not there")
    return str(found)


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
