"""One job in one sandbox of namespaces: handed over, listened to, stopped at its limits."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import Ending, SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome
from perdure.ports import Door
from perdure.sandboxes import exchange
from perdure.sandboxes.doors import Doors
from perdure.sandboxes.zygotes import Made, NotBegunError

AFTER_MS = 2_000  # for the kernel to end a sandbox that was killed
READ_BYTES = 65_536
TOLD_BYTES_MAX = 65_536  # of what the first process says of the end
FILE_OVERHEAD_BYTES = 5_000  # of what is said about each file: its name is the most of it
LEFT_OUT_BYTES = 1 << 20
MET: Mapping[int, Ending] = {240: "disk", 241: "open-files", 242: "memory", 243: "processes"}


class Use:
    """One job.

    Args:
        made: the sandbox that it is executed in.
        job: what is executed.
        limits: of it.
        doors: its ways out.
        begun: called when the sandbox is taken.
    """

    def __init__(
        self,
        made: Made,
        job: SandboxJob,
        limits: SandboxLimits,
        doors: Mapping[int, Door],
        begun: Callable[[], None],
    ) -> None:
        self._made = made
        self._job = job
        self._limits = limits
        self._begun = begun
        self._doors = Doors(doors, limits.network_bytes, lambda: self._stop("network"))
        self._loop = asyncio.get_running_loop()
        self._written: dict[int, bytearray] = {}
        self._open = 0
        self._over = asyncio.Event()
        self._ending: Ending = "ended"
        self._told = bytearray()
        self._told_end = -1  # where the line about the end ends

    async def outcome(self) -> SandboxOutcome:
        """Hand it over, and gather what it writes until it ends."""
        pipes = [os.pipe() for _ in range(2)]
        reading = [reader for reader, _ in pipes]
        given = [writer for _, writer in pipes]
        try:
            given.insert(0, await _standard_input(self._job.stdin))
            if self._job.files:
                given.append(await asyncio.to_thread(exchange.source, exchange.written(self._job.files)))
            began = self._loop.time()
            await self._hand_over(given)
            if self._doors:
                await self._open_doors()
            for descriptor in given:
                os.close(descriptor)
            given.clear()
            for descriptor in reading:
                os.set_blocking(descriptor, False)
                self._written[descriptor] = bytearray()
                self._watch(descriptor, self._read)
            self._watch(self._made.channel.fileno(), self._hear)
            self._begun()
            await self._until_over()
        finally:
            for descriptor in (*reading, self._made.channel.fileno()):
                self._loop.remove_reader(descriptor)
            for descriptor in (*reading, *given):
                os.close(descriptor)
            await self._doors.close()
        return self._outcome(reading, (self._loop.time() - began) * 1000)

    async def _hand_over(self, descriptors: list[int]) -> None:
        job = self._job
        told = {
            "code": job.code, "argv": job.argv, "env": job.env, "doors": self._doors.ports,
            "cpu_ms": self._limits.cpu_ms, "open_files": self._limits.open_files,
        }  # fmt: skip
        data = msgspec.json.encode(told)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self._made.channel.sendmsg([struct.pack("I", len(data))], rights)
            await self._loop.sock_sendall(self._made.channel, data)
        except ConnectionError as error:
            raise NotBegunError("the sandbox ended before it had its job") from error

    async def _open_doors(self) -> None:
        """Take the listeners that the sandbox has made, before any code of the job runs."""
        channel = self._made.channel
        ready = asyncio.Event()
        self._loop.add_reader(channel, ready.set)
        try:
            async with asyncio.timeout(AFTER_MS / 1000):
                await ready.wait()
        except TimeoutError:
            raise SandboxUnavailableError("the sandbox did not open its doors in time") from None
        finally:
            self._loop.remove_reader(channel)
        data, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_LEN(4 * len(self._doors.ports)))
        found = array.array("i")
        for _, _, part in ancillary:
            found.frombytes(part[: len(part) - len(part) % 4])
        if data != b"D" or len(found) != len(self._doors.ports):
            for descriptor in found:
                os.close(descriptor)
            raise SandboxUnavailableError(
                "the sandbox could not open its doors; a port may be there twice, or below 1024"
            )
        await self._doors.serve(list(found))

    async def _until_over(self) -> None:
        try:
            async with asyncio.timeout(self._limits.wall_ms / 1000):
                await self._over.wait()
        except TimeoutError:
            self._stop("wall-time")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AFTER_MS / 1000):
                    await self._over.wait()

    def _watch(self, descriptor: int, read: Callable[[int], None]) -> None:
        self._open += 1
        self._loop.add_reader(descriptor, read, descriptor)

    def _end(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._open -= 1
        if not self._open:
            self._over.set()

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end(descriptor)
            return
        found = self._written[descriptor]
        found += data[: max(0, self._limits.output_bytes + 1 - len(found))]
        if len(found) > self._limits.output_bytes:
            self._stop("output")

    def _hear(self, descriptor: int) -> None:
        """The first process: a line about the end, then the files if they are wanted."""
        try:
            data = self._made.channel.recv(exchange.READ_BYTES if self._told_end >= 0 else TOLD_BYTES_MAX)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._told += data
        if self._told_end < 0 and (place := self._told.find(b"\n")) >= 0:
            self._told_end = place + 1
            if self._job.collects:
                with contextlib.suppress(OSError):
                    self._made.channel.send(b"C")
                return
            self._made.kill()  # nobody else in there matters any more
            self._end(descriptor)
            return
        limits = self._limits
        most = TOLD_BYTES_MAX + limits.disk_bytes + limits.files * FILE_OVERHEAD_BYTES + LEFT_OUT_BYTES
        if not data or len(self._told) > most:
            self._end(descriptor)

    def _stop(self, why: Ending) -> None:
        if self._ending == "ended":
            self._ending = why
        self._made.kill()

    # -- what came of it
    def _outcome(self, reading: list[int], wall_ms: float) -> SandboxOutcome:
        told: dict[str, Any] = {}
        with contextlib.suppress(msgspec.DecodeError):
            told = msgspec.json.decode(bytes(self._told[: self._told_end])) if self._told_end > 0 else {}
        files, left_out = self._files()
        code = told.get("exit")
        ending = self._ending if self._ending != "ended" else self._reason(told)
        met = bool(self._job.code) and MET.get(code or 0) == ending
        limit = self._limits.output_bytes
        written = [bytes(self._written[descriptor][:limit]) for descriptor in reading]
        return SandboxOutcome(
            ending=ending,
            exit_code=1 if met else code,
            stdout=written[0],
            stderr=written[1],
            cpu_ms=float(told.get("cpu_ms", 0.0)),
            memory_peak_bytes=int(told.get("memory", 0)),
            wall_ms=wall_ms,
            tier="namespace",
            files=files,
            left_out=left_out,
        )

    def _files(self) -> tuple[tuple[SandboxFile, ...], dict[str, str]]:
        if not self._job.collects:
            return (), {}
        try:
            return exchange.read(self._told[self._told_end :] if self._told_end > 0 else b"")
        except (ValueError, msgspec.MsgspecError):
            return (), {"": "the sandbox was stopped before its files were out"}

    def _reason(self, told: Mapping[str, Any]) -> Ending:
        """Which limit it met, if it met one."""
        code, group = told.get("exit"), self._made.group
        has_failed = code != 0
        if group is not None and has_failed and group.is_out_of_memory:
            return "memory"
        if code is None:
            return "lost"
        has_used_up = float(told.get("cpu_ms", 0.0)) >= self._limits.cpu_ms
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and has_used_up):
            return "cpu-time"
        if code == -signal.SIGXFSZ or (has_failed and told.get("is_full")):
            return "disk"
        if self._job.code and code in MET:
            return MET[code]
        if group is not None and has_failed and group.is_out_of_processes:
            return "processes"
        return "signal" if code < 0 else "ended"


async def _standard_input(data: bytes) -> int:
    if not data:
        return os.open(os.devnull, os.O_RDONLY)
    return await asyncio.to_thread(exchange.source, [data])
