"""Sandboxes of a service elsewhere. Each job gets one of its own, which is deleted afterwards whatever happens.

The service's wall is the wall. Inside it, a small program of ours sets the limits of the job, watches over them and leaves a
report; what it says is as honest as the sandbox that it runs in. The wall time is held from outside as well.
"""

from __future__ import annotations

import asyncio
import io
import logging
import zipfile
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import (
    Ending,
    SandboxFile,
    SandboxJob,
    SandboxLimits,
    SandboxOutcome,
    Tier,
    narrower,
)
from perdure.ports import Door
from perdure.sandboxes import exchange
from perdure.sandboxes.remote_calls import CallError
from perdure.sandboxes.zygotes import packed

START_S = (
    120  # for a sandbox to be made and given its job; the service may delete it after this and its wall time
)
GRACE_S = 5.0  # after the wall time, for the program inside to end the job and report
DELETE_TRIES = 5
DELETE_WAIT_S = 0.5  # before the second try; doubled each time
LEFT_BEHIND_MAX = 100  # sandboxes that could not be deleted, by name
AT_ONCE = 32
POLL_S = 0.02
REPORT = "perdure.report"
ARCHIVE = "perdure.pyz"
TOLD_BYTES_MAX = 65_536
FILE_OVERHEAD_BYTES = 5_000
LEFT_OUT_BYTES = 1 << 20
COMMAND = f"python3 -I -S -B {ARCHIVE}"
PROBE = """
import socket
for address in (("1.1.1.1", 443), ("8.8.8.8", 53), ("169.254.169.254", 80)):
    try:
        socket.create_connection(address, timeout=1).close()
        print("reached", address[0])
    except OSError:
        pass
print(6 * 7)
"""

_log = logging.getLogger(__name__)


class RemoteSandbox(Protocol):
    """One sandbox of a service. Names of files are below its working directory."""

    name: str

    async def ready(self) -> None:
        """Wait until it can be used, or raise ``CallError``."""
        ...

    async def put(self, name: str, data: bytes) -> None:
        """Write a file, or raise ``CallError``."""
        ...

    async def start(self, command: str, seconds: float) -> None:
        """Execute a command until it ends; its output does not matter. Raises ``CallError``."""
        ...

    async def get(self, name: str, most: int) -> bytes:
        """Read a file of at most so many bytes, or raise ``CallError``."""
        ...

    async def delete(self) -> None:
        """End it; one that is gone is no error. Raises ``CallError``."""
        ...


class RemoteService(Protocol):
    """Whoever makes sandboxes."""

    name: str
    host: str

    async def create(self, limits: SandboxLimits, lifetime_s: int) -> RemoteSandbox:
        """Order one without a network, which the service deletes by itself after its lifetime. Raises ``CallError``."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class _Told(msgspec.Struct, frozen=True):
    """The first line of a report."""

    ending: Ending
    exit: int | None
    cpu_ms: float
    memory: int
    wall_ms: float
    stdout: int
    stderr: int


class RemoteSandboxes:
    """Implements ``Sandboxes`` with those of a service.

    Processor time, memory, processes, open files, disk and output are held by a program inside (memory and disk are looked at
    every 50 ms), the wall time from outside too. There are no doors.

    Args:
        service: who makes them.
        limits: of every job; a job may have narrower ones.
        allows_network: take a service whose sandboxes reach the internet; by default :meth:`open` refuses it.
    """

    tier: Tier = "remote"

    def __init__(
        self, service: RemoteService, limits: SandboxLimits | None = None, *, allows_network: bool = False
    ) -> None:
        self._service = service
        self._limits = limits or SandboxLimits()
        self._allows_network = allows_network
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._detail = f"{service.name} at {service.host}"
        self._in_use: dict[str, RemoteSandbox] = {}
        self._is_closed = False
        self.left_behind: tuple[str, ...] = ()
        self.parts: Mapping[str, str] = {}

    async def open(self) -> None:
        """Prove with a real job that its sandboxes work, and that they reach nobody (see the port)."""
        found = await self.run(SandboxJob(code=PROBE))
        words = found.stdout.decode(errors="replace")
        if not words.endswith("42\n"):
            said = found.stderr.decode(errors="replace")[-300:]
            raise SandboxUnavailableError(
                f"a sandbox of {self._detail} was made and did not work ({found.ending}): {said}"
            )
        reaches = "reached" in words
        if reaches and not self._allows_network:
            raise SandboxUnavailableError(
                f"sandboxes of {self._detail} reach the internet; forbid it at the service, or say `allows_network`"
            )
        self.parts = {
            "wall": self._detail,
            "limits": "held inside by a program of ours; the wall time from outside as well",
            "network": "missing: it reaches the internet, as `allows_network` says"
            if reaches
            else "in force: none",
        }

    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a sandbox of its own (see the port)."""
        if doors:
            raise SandboxUnavailableError(
                "sandboxes of a service have no doors; use tier `namespace`, or a sandbox host"
            )
        if self._is_closed:
            raise SandboxUnavailableError("no sandbox can be made: they are closed")
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        archive = await asyncio.to_thread(_archive, job, chosen)
        async with self._room:
            made = await self._create(chosen)
            self._in_use[made.name] = made
            try:
                return await self._use(made, archive, job, chosen)
            finally:
                self._in_use.pop(made.name, None)
                await asyncio.shield(self._own(self._let_go(made)))

    async def _create(self, limits: SandboxLimits) -> RemoteSandbox:
        """Make one; if we are cancelled meanwhile, what was made is deleted all the same."""
        lifetime_s = START_S + int(GRACE_S) - (-limits.wall_ms // 1000)
        creating = asyncio.ensure_future(self._service.create(limits, lifetime_s))
        try:
            return await asyncio.shield(creating)
        except CallError as error:
            raise SandboxUnavailableError(f"no sandbox could be made: {error}") from error
        except asyncio.CancelledError:
            self._own(self._given_up(creating))
            raise

    async def _given_up(self, creating: asyncio.Future[RemoteSandbox]) -> None:
        try:
            made = await creating
        except (CallError, SandboxUnavailableError):
            return
        await self._let_go(made)

    async def _use(
        self, made: RemoteSandbox, archive: bytes, job: SandboxJob, limits: SandboxLimits
    ) -> SandboxOutcome:
        loop = asyncio.get_running_loop()
        try:
            await made.ready()
            await made.put(ARCHIVE, archive)
        except CallError as error:
            raise SandboxUnavailableError(f"the job could not be handed over: {error}") from error
        began = loop.time()
        seconds = limits.wall_ms / 1000 + GRACE_S
        try:
            async with asyncio.timeout(seconds):
                await made.start(COMMAND, seconds)
        except TimeoutError:
            return self._ended("wall-time", (loop.time() - began) * 1000)
        except CallError as error:
            if error.was_refused:
                raise SandboxUnavailableError(f"the job could not be started: {error}") from error
            return self._ended("lost", (loop.time() - began) * 1000, str(error))
        try:
            data = await made.get(REPORT, _report_bytes_max(limits, collects=job.collects))
            return self._read(data, limits, (loop.time() - began) * 1000, collects=job.collects)
        except (CallError, ValueError, msgspec.MsgspecError) as error:
            return self._ended("lost", (loop.time() - began) * 1000, str(error))

    def _ended(self, ending: Ending, wall_ms: float, why: str = "") -> SandboxOutcome:
        return SandboxOutcome(
            ending=ending, exit_code=None, stdout=b"", stderr=why.encode(), cpu_ms=0.0, memory_peak_bytes=0, wall_ms=wall_ms,
            tier=self.tier, detail=self._detail,
        )  # fmt: skip

    def _read(self, data: bytes, limits: SandboxLimits, wall_ms: float, *, collects: bool) -> SandboxOutcome:
        """A report as it came: whoever wrote it may be anybody, so it is held against the limits once more."""
        line, _, rest = data.partition(b"\n")
        told = msgspec.json.decode(line[:TOLD_BYTES_MAX], type=_Told)
        sizes = (told.stdout, told.stderr)
        if min(sizes) < 0 or max(sizes) > limits.output_bytes or sum(sizes) > len(rest):
            raise ValueError("the report of a sandbox is not whole")
        files: tuple[SandboxFile, ...] = ()
        left_out: dict[str, str] = {}
        if collects:
            files, left_out = exchange.read(rest[sum(sizes) :])
            if len(files) > limits.files or sum(len(file.data) for file in files) > limits.disk_bytes:
                raise ValueError("a sandbox gave back more files than it may have")
        return SandboxOutcome(
            ending=told.ending, exit_code=told.exit, stdout=rest[: told.stdout], stderr=rest[told.stdout : sum(sizes)],
            cpu_ms=told.cpu_ms, memory_peak_bytes=told.memory, wall_ms=max(wall_ms, told.wall_ms), tier=self.tier,
            detail=self._detail, files=files, left_out=left_out,
        )  # fmt: skip

    # -- cleaning up
    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _let_go(self, made: RemoteSandbox) -> None:
        """Delete it, several times if need be; what stays is reported, and ends at its lifetime."""
        wait_s = DELETE_WAIT_S
        for again in range(DELETE_TRIES, 0, -1):
            try:
                await made.delete()
            except CallError as error:
                if again == 1:
                    self.left_behind = (*self.left_behind, made.name)[-LEFT_BEHIND_MAX:]
                    _log.warning(
                        "sandbox %s of %s could not be deleted and ends at its lifetime: %s",
                        made.name, self._detail, error,
                    )  # fmt: skip
                    return
                await asyncio.sleep(wait_s)
                wait_s *= 2
            else:
                return

    async def close(self) -> None:
        """Delete what is still in use, wait until everything is deleted, and let go of the service."""
        self._is_closed = True
        await asyncio.gather(*(self._let_go(made) for made in list(self._in_use.values())))
        while self._tasks or self._in_use:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(POLL_S)
        await self._service.close()


def _archive(job: SandboxJob, limits: SandboxLimits) -> bytes:
    """The program inside, with its job."""
    order = {
        "code": job.code, "argv": job.argv, "env": job.env, "collects": job.collects,
        "limits": {name: getattr(limits, name) for name in limits.__struct_fields__},
    }  # fmt: skip
    made = io.BytesIO(packed("remote"))
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("order", msgspec.json.encode(order))
        archive.writestr("given", b"".join(exchange.written(job.files)))
        archive.writestr("stdin", job.stdin)
    return made.getvalue()


def _report_bytes_max(limits: SandboxLimits, *, collects: bool) -> int:
    files = limits.disk_bytes + limits.files * FILE_OVERHEAD_BYTES + LEFT_OUT_BYTES if collects else 0
    return TOLD_BYTES_MAX + 2 * limits.output_bytes + files


def joined(folder: str, name: str) -> str:
    """The path of a file in a working directory."""
    return f"{folder.rstrip('/')}/{name}"
