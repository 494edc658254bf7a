"""Guests seen from outside: machines or kernels of their own, started ahead or on demand, each for one job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.sandboxes.cgroups import Cgroups, Group
from perdure.sandboxes.inside import frames

STREAM_BYTES = 256 * 1024  # read ahead of a guest; then it waits
SAID_BYTES_MAX = 4_096  # of what a program said why it ended
BUILT_IN = ("memory_bytes", "processes", "open_files", "disk_bytes", "files", "cpu_share")
ADDRESS_BYTES = (
    4 << 30
)  # of each process, over what it may use: interpreters reserve much that they never touch


@dataclass(slots=True)
class Guest:
    """One that waits for its job.

    Attributes:
        process: the first of those that keep it going; when it ends, all of it does.
        reader: what the guest sends.
        writer: to the guest.
        detail: more about the wall, for outcomes.
        group: the control group that it is in, if there is one.
        let_go: called once, at its end.
    """

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    detail: str = ""
    group: Group | None = None
    let_go: list[Callable[[], None]] = field(default_factory=list)

    def kill(self) -> None:
        """End it."""
        self.writer.transport.abort()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    async def close(self) -> None:
        """End it and let go of it."""
        self.kill()
        await asyncio.to_thread(self.process.wait)
        if self.process.stderr is not None:
            self.process.stderr.close()
        while self.let_go:
            self.let_go.pop()()

    async def greet(
        self,
        limits: SandboxLimits,
        timeout_s: float,
        *,
        is_ahead: bool = True,
        packages: tuple[str, ...] = (),
        address_bytes: int | None = None,
    ) -> None:
        """Say what it is made for, and wait until it is ready.

        Args:
            limits: those.
            timeout_s: until it is given up.
            is_ahead: whether nobody waits for it yet, so that it may warm up.
            packages: further directories on the path of Python code.
            address_bytes: of each process; enough for the limits, by default.

        Raises:
            SandboxUnavailableError: it did not become ready; with what its process said.
        """
        config = {
            **built_in(limits), "inside": "/inside", "packages": list(packages), "is_ahead": is_ahead,
            "address_bytes": address_bytes or max(ADDRESS_BYTES, limits.memory_bytes),
        }  # fmt: skip
        self.writer.write(frames.frame(frames.CONFIG, msgspec.json.encode(config)))
        await self._ready(timeout_s)

    async def rehearse(self, timeout_s: float) -> None:
        """Let it do a job of ours, so that the real one finds everything warm.

        Raises:
            SandboxUnavailableError: it did not become ready again.
        """
        self.writer.write(frames.frame(frames.REHEARSE, b"%d" % time.time_ns()))
        await self._ready(timeout_s)

    async def _ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                kind, _, _ = await read_frame(self.reader)
        except TimeoutError:
            raise SandboxUnavailableError(f"a guest was not ready in {timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            said = await asyncio.to_thread(self._said)
            raise SandboxUnavailableError(f"a guest ended before it was ready: {said}") from None
        if kind != frames.READY:
            raise SandboxUnavailableError(f"a guest said {kind!r} where it should have been ready")

    def _said(self) -> str:
        self.process.kill()
        self.process.wait()
        said = b"" if self.process.stderr is None else self.process.stderr.read()[-SAID_BYTES_MAX:]
        lines = said.decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"exit code {self.process.returncode}")[:500]


def built_in(limits: SandboxLimits) -> dict[str, float]:
    """The limits that a guest is made for; a job's may be narrower."""
    return {name: getattr(limits, name) for name in BUILT_IN}


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, int, bytes]:
    """The next frame of a guest.

    Raises:
        asyncio.IncompleteReadError: it is gone, or is none of ours.
    """
    kind, number, size = frames.HEAD.unpack(await reader.readexactly(frames.HEAD.size))
    if size > frames.SIZE_MAX:
        raise asyncio.IncompleteReadError(b"", size)
    return kind, number, await reader.readexactly(size) if size else b""


async def connected(channel: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over our end of a pair."""
    return await asyncio.open_connection(sock=channel, limit=STREAM_BYTES)


def entered(groups: Cgroups | None, process: subprocess.Popen[bytes], limits: SandboxLimits) -> Group | None:
    """Put a process under limits, before it has anything that is not ours in it. Blocks for milliseconds.

    Raises:
        SandboxUnavailableError: they cannot be set.
    """
    if groups is None:
        return None
    handle = os.pidfd_open(process.pid)
    try:
        return groups.enter(handle, limits)
    except OSError as error:
        raise SandboxUnavailableError(f"the limits of a sandbox cannot be set: {error}") from error
    finally:
        os.close(handle)


class Pool:
    """Guests, some of them made ahead. Each is handed out once.

    Args:
        make: starts one and waits until it is ready; told whether that is ahead, so that it may take longer.
        spare: how many are kept ready.
        at_once: how many are in use at the same time; who wants a further one waits.
    """

    def __init__(self, make: Callable[[bool], Awaitable[Guest]], *, spare: int, at_once: int) -> None:
        self._make = make
        self._wanted = spare
        self._spare: deque[Guest] = deque()
        self._making: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(at_once)
        self.is_closed = False

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Guest]:
        """A fresh guest, destroyed at the end of the block.

        Raises:
            SandboxUnavailableError: none can be had.
        """
        async with self._room:
            guest = await self._take()
            try:
                yield guest
            finally:
                self._end(guest)
                self.fill()

    async def _take(self) -> Guest:
        if self.is_closed:
            raise SandboxUnavailableError("no sandbox can be made: the pool is closed")
        while self._spare:
            guest = self._spare.popleft()
            if guest.process.poll() is None:
                return guest
            self._end(guest)
        return await self._make(False)  # noqa: FBT003 - told above

    def fill(self) -> None:
        """Have as many ready as are wanted, in a while."""
        while not self.is_closed and len(self._spare) + len(self._making) < self._wanted:
            task = asyncio.get_running_loop().create_task(self._make_spare())
            self._making.add(task)
            task.add_done_callback(self._made)

    async def filled(self) -> None:
        """Until as many are ready as can be."""
        self.fill()
        await asyncio.gather(*self._making)

    async def _make_spare(self) -> None:
        with contextlib.suppress(SandboxUnavailableError):  # whoever needs one is told
            guest = await self._make(True)  # noqa: FBT003 - told above
            if self.is_closed:
                self._end(guest)
            else:
                self._spare.append(guest)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        if not task.cancelled() and task.exception() is not None:  # a fault of ours: let it be seen
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a guest could not be made", "exception": task.exception()}
            )

    def _end(self, guest: Guest) -> None:
        guest.kill()
        task = asyncio.get_running_loop().create_task(guest.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all that are not in use, and wait until they are gone."""
        self.is_closed = True
        for task in tuple(self._making):
            task.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
        while self._spare:
            self._end(self._spare.popleft())
        await asyncio.gather(*self._ending, return_exceptions=True)
