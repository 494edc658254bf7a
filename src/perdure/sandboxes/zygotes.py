"""A zygote seen from outside: a process without secrets that forks sandboxes on demand."""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.sandboxes import exchange
from perdure.sandboxes.cgroups import Cgroups, Group
from perdure.sandboxes.hints import why_not
from perdure.sandboxes.seccomp import program

INSIDE = Path(__file__).parent / "inside"
READY_MS = (
    10_000  # for a sandbox to be made: they take a few milliseconds; a machine that needs this long is stuck
)
ADDRESS_BYTES = (
    4 << 30
)  # of each process, over what it may use: interpreters reserve much that they never touch
UNPRIVILEGED = 65_534  # who a zygote is that root starts
MESSAGE_BYTES_MAX = 4_096
BUILT_IN = (
    "memory_bytes",
    "processes",
    "open_files",
    "disk_bytes",
    "files",
)  # limits that a wall is built with


class NotBegunError(SandboxUnavailableError):
    """A sandbox ended before it had its job, so another one may be tried."""


class Made:
    """One sandbox whose wall stands, and that has no job yet."""

    def __init__(self, maker: Zygote, channel: socket.socket, handle: int) -> None:
        self.channel = channel
        self.group: Group | None = None
        self._maker = maker
        self._handle = handle  # a pid descriptor of its first process: killing that ends all of it

    @property
    def is_gone(self) -> bool:
        """Whether it has ended with its zygote."""
        return self._maker.is_gone

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """End it and let go of it."""
        self.kill()
        self.channel.close()
        os.close(self._handle)


class Zygote:
    """One zygote. Its sandboxes end with it.

    Args:
        limits: of its sandboxes.
        groups: where they are put, if control groups may be written.
        python: the interpreter inside.
        packages: directories that are shown and on the path of Python code.
    """

    def __init__(
        self, limits: SandboxLimits, groups: Cgroups | None, *, python: str, packages: tuple[str, ...] = ()
    ) -> None:
        self.limits = limits
        self.landlock = 0
        self.made = 0
        self.problem = ""
        self._groups = groups
        self._asked: deque[asyncio.Future[tuple[socket.socket, int]]] = deque()
        self._entering = asyncio.Lock()
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            **{name: getattr(limits, name) for name in BUILT_IN}, "read_only": [*shown(python), *packages], "packages": list(packages),
            "filter": program().hex(), "address_bytes": max(ADDRESS_BYTES, limits.memory_bytes),
        }  # fmt: skip
        who: dict[str, Any] = {}
        if os.getuid() == 0:  # a user namespace of root's own would still own root's files
            who = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
        code = exchange.source([packed("zygote")])
        arguments = [
            python,
            "-I",
            "-S",
            "-B",
            f"/proc/self/fd/{code}",
            str(theirs.fileno()),
            json.dumps(config),
        ]
        with theirs, contextlib.closing(exchange.Held(code)):
            self._process = subprocess.Popen(
                arguments, pass_fds=[theirs.fileno(), code], env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True, **who,
            )  # fmt: skip
        ours.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._arrive)

    @property
    def is_gone(self) -> bool:
        """Whether it can make no more."""
        return bool(self.problem)

    async def greeted(self) -> None:
        """Until it is ready.

        Raises:
            SandboxUnavailableError: it could not make itself ready; with what it said.
        """
        async with asyncio.timeout(READY_MS / 1000):
            await asyncio.shield(self._hello)

    def _arrive(self) -> None:
        """It is ready, has forked one, or is gone."""
        try:
            data, ancillary, _, _ = self._control.recvmsg(MESSAGE_BYTES_MAX, socket.CMSG_LEN(8))
        except BlockingIOError:
            return
        except ConnectionError:
            data, ancillary = b"", []
        if data[:1] == b"{" and not self._hello.done():
            self.landlock = int(json.loads(data)["landlock"])
            self._hello.set_result(None)
            return
        found = array.array("i")
        for _, _, part in ancillary:
            found.frombytes(part[: len(part) - len(part) % 4])
        if data != b"S" or len(found) != 2 or not self._asked:
            self._lose()
            return
        waiting = self._asked.popleft()
        if waiting.done():  # whoever asked is gone
            socket.socket(fileno=found[0]).close()
            os.close(found[1])
        else:
            waiting.set_result((socket.socket(fileno=found[0]), found[1]))

    def _lose(self) -> None:
        if self.problem:
            return
        self._process.kill()
        said = b"" if self._process.stderr is None else self._process.stderr.read()[-600:]
        self.problem = said.decode(errors="replace").strip().rsplit("\n", 1)[-1] or "the zygote ended"
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self.problem = why_not(self.problem)
        error = SandboxUnavailableError(f"no sandbox can be made: {self.problem}")
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()  # it is asked for, or nobody minds
        while self._asked:
            waiting = self._asked.popleft()
            if not waiting.done():
                waiting.set_exception(error)

    async def fork(self, limits: SandboxLimits) -> Made:
        """One sandbox under these limits, its wall built.

        Raises:
            SandboxUnavailableError: it could not be made.
        """
        if self.problem:
            raise SandboxUnavailableError(f"no sandbox can be made: {self.problem}")
        differing = {name: getattr(limits, name) for name in BUILT_IN if getattr(limits, name) != getattr(self.limits, name)}  # fmt: skip
        waiting: asyncio.Future[tuple[socket.socket, int]] = asyncio.get_running_loop().create_future()
        self._asked.append(waiting)
        try:
            self._control.send(json.dumps(differing).encode())
        except OSError as error:
            self._asked.remove(waiting)
            raise SandboxUnavailableError(f"no sandbox can be made: {error.strerror}") from error
        self.made += 1
        try:
            async with asyncio.timeout(READY_MS / 1000):
                channel, handle = await waiting
        except TimeoutError:
            raise SandboxUnavailableError("no sandbox was made in time; the machine is overloaded") from None
        made = Made(self, channel, handle)
        try:
            return await self._built(made, handle, limits)
        except BaseException:
            made.close()
            if made.group is not None and self._groups is not None:
                self._groups.leave(made.group)
            raise

    async def _built(self, made: Made, handle: int, limits: SandboxLimits) -> Made:
        """Put it under its limits, and let it build its wall."""
        try:
            if self._groups is not None:  # takes milliseconds on some machines
                async with self._entering:
                    made.group = await asyncio.to_thread(self._groups.enter, handle, limits)
        except OSError as error:  # a limit that cannot be set is a wall that does not stand
            raise SandboxUnavailableError(f"the limits of a sandbox cannot be set: {error}") from error
        made.channel.setblocking(False)  # noqa: FBT003 - the standard library's own
        try:
            made.channel.send(b"G")
            async with asyncio.timeout(READY_MS / 1000):
                said = await asyncio.get_running_loop().sock_recv(made.channel, MESSAGE_BYTES_MAX)
        except (TimeoutError, ConnectionError):
            said = b""
        if said[:1] != b"R":
            text = said[1:].decode(errors="replace").strip().rsplit("\n", 1)[-1]
            raise SandboxUnavailableError(f"the wall could not be built: {text or 'its first process ended'}")
        return made

    async def close(self) -> None:
        """End it, and with it every sandbox that it has made."""
        self._lose()
        if self._process.stderr is not None:
            self._process.stderr.close()
        await asyncio.to_thread(self._process.wait)


def packed(first: str, only: tuple[str, ...] | None = None) -> bytes:
    """What is executed inside, as one archive in memory: whoever executes it may not be able to read where we are.

    Args:
        first: the module that it begins with.
        only: the others that it needs; by default all.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted(INSIDE.glob("*.py")):
            if only is not None and path.stem not in (first, *only):
                continue
            archive.writestr("__main__.py" if path.stem == first else path.name, path.read_bytes())
    return made.getvalue()


def interpreter() -> str:
    """The system's Python, which whoever the zygote is can read; else this one.

    Raises:
        SandboxUnavailableError: there is none.
    """
    for path in ("/usr/bin/python3", sys._base_executable):  # type: ignore[attr-defined]
        if shutil.which(path):
            return path
    raise SandboxUnavailableError(
        "there is no Python at /usr/bin/python3 to start sandboxes with; install it"
    )


def shown(python: str) -> list[str]:
    """What must be shown inside besides the system's directories."""
    prefix = str(Path(python).resolve().parent.parent)
    return [] if prefix in ("/usr", "/") else [prefix]
