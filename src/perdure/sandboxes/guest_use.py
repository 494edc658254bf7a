"""One job in one guest: handed over, listened to, stopped at its limits. Nothing that a guest says is believed further than itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Mapping
from typing import Literal

import msgspec

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import Ending, SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome, Tier
from perdure.ports import Door
from perdure.sandboxes import exchange
from perdure.sandboxes.guests import Guest, Pool, built_in, read_frame
from perdure.sandboxes.inside import frames

ENTROPY_BYTES = 64
CODE_BYTES_MAX = 16 << 20  # with its arguments; it travels in one piece
FILE_OVERHEAD_BYTES = 5_000  # of what is said about each file: its name is the most of it
LEFT_OUT_BYTES = 1 << 20
PORT_MIN, PORT_MAX = 1_024, 65_535
MET: Mapping[int, Ending] = {240: "disk", 241: "open-files", 242: "memory", 243: "processes"}


class _Told(msgspec.Struct):
    """What a guest tells at the end."""

    exit: int | None = None
    cpu_ms: float = 0.0
    memory: int = 0
    is_full: bool = False
    is_out_of_memory: bool = False
    is_out_of_processes: bool = False
    stopped: Ending | Literal[""] = ""
    doors: str = ""


async def run(
    pool: Pool, job: SandboxJob, limits: SandboxLimits, doors: Mapping[int, Door], tier: Tier
) -> SandboxOutcome:
    """Execute a job in a guest of a pool.

    Raises:
        InputInvalidError: the job or its doors cannot be.
        SandboxUnavailableError: there is no guest; nothing was executed.
    """
    check(job, doors)
    async with pool.one() as guest:
        return await GuestUse(guest, job, limits, doors, tier).outcome()


class GuestUse:
    """One job.

    Args:
        guest: where it is executed.
        job: what is executed.
        limits: of it.
        doors: its ways out.
        tier: the wall in force.
    """

    def __init__(
        self, guest: Guest, job: SandboxJob, limits: SandboxLimits, doors: Mapping[int, Door], tier: Tier
    ) -> None:
        self._guest, self._job, self._limits, self._doors, self._tier = guest, job, limits, doors, tier
        self._written = {frames.OUT: bytearray(), frames.ERROR: bytearray()}
        self._files = bytearray()
        self._told: _Told | None = None
        self._ending: Ending = "ended"
        self._left = limits.network_bytes
        self._connections: dict[int, tuple[asyncio.StreamReader, asyncio.Task[None]]] = {}

    async def outcome(self) -> SandboxOutcome:
        """Hand it over, and gather what it says until it ends."""
        began = asyncio.get_running_loop().time()
        handing = asyncio.get_running_loop().create_task(self._hand_over())
        try:
            async with asyncio.timeout(self._limits.wall_ms / 1000):
                await self._listen()
        except TimeoutError:
            self._stop("wall-time")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it is gone; whoever stopped it said why
        finally:
            self._guest.kill()
            tasks = [handing, *(task for _, task in self._connections.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._outcome((asyncio.get_running_loop().time() - began) * 1000)

    async def _hand_over(self) -> None:
        job, writer = self._job, self._guest.writer
        told = {
            "code": job.code, "argv": job.argv, "env": job.env, "doors": sorted(self._doors), "collects": job.collects,
            "has_files": bool(job.files), "cpu_ms": self._limits.cpu_ms, **built_in(self._limits),
            "entropy": os.urandom(ENTROPY_BYTES).hex(), "now_ns": time.time_ns(),
        }  # fmt: skip
        writer.write(frames.frame(frames.JOB, msgspec.json.encode(told)))
        parts = [(frames.INPUT, job.stdin)]
        if job.files:
            parts += [(frames.ARCHIVE, part) for part in exchange.written(job.files)]
        with contextlib.suppress(ConnectionError):
            for kind, data in parts:
                for part in frames.frames(kind, data):
                    writer.write(part)
                    await writer.drain()
            writer.write(frames.frame(frames.GO))
            await writer.drain()

    async def _listen(self) -> None:
        while self._told is None and self._ending == "ended":
            kind, number, data = await read_frame(self._guest.reader)
            match kind:
                case frames.OUT | frames.ERROR:
                    self._take_output(self._written[kind], data)
                case frames.FILES:
                    self._take_files(data)
                case frames.TOLD:
                    self._told = _told(data)
                case frames.KNOCK:
                    self._open(number, data)
                case frames.DATA | frames.END:
                    self._take_connection(number, data if kind == frames.DATA else b"")
                case _:
                    self._stop("lost")

    def _take_output(self, found: bytearray, data: bytes) -> None:
        found += data[: max(0, self._limits.output_bytes + 1 - len(found))]
        if len(found) > self._limits.output_bytes:
            self._stop("output")

    def _take_files(self, data: bytes) -> None:
        limits = self._limits
        self._files += data
        most = limits.disk_bytes + limits.files * FILE_OVERHEAD_BYTES + LEFT_OUT_BYTES
        if not self._job.collects or len(self._files) > most:
            self._stop("lost")

    def _stop(self, why: Ending) -> None:
        if self._ending == "ended":
            self._ending = why
        self._guest.kill()

    # -- doors
    def _open(self, number: int, data: bytes) -> None:
        port = struct.unpack("<H", data)[0] if len(data) == 2 else 0
        if port not in self._doors or number in self._connections:
            self._stop("lost")  # this is not our guest's program any more
            return
        reader = asyncio.StreamReader()
        task = asyncio.get_running_loop().create_task(self._serve(number, self._doors[port], reader))
        self._connections[number] = (reader, task)

    async def _serve(self, number: int, door: Door, reader: asyncio.StreamReader) -> None:
        """Let a door serve one connection; its writer is one end of a pair, so that each byte is counted."""
        ours, theirs = socket.socketpair()
        near, writer = await asyncio.open_connection(sock=ours)
        _, far = await asyncio.open_connection(sock=theirs)
        copying = asyncio.ensure_future(self._copy(number, near))
        try:
            await door(reader, far)
            far.close()
            await copying
        except Exception:  # noqa: BLE001, S110 - a connection that broke is that connection's affair; the job sees its end
            pass
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            for each in (far, writer):
                each.close()
            if not self._guest.writer.is_closing():
                self._guest.writer.write(frames.frame(frames.END, b"", number))

    async def _copy(self, number: int, near: asyncio.StreamReader) -> None:
        while data := await near.read(65_536):
            if not self._count(data):
                return
            self._guest.writer.write(frames.frame(frames.DATA, data, number))
            await self._guest.writer.drain()

    def _take_connection(self, number: int, data: bytes) -> None:
        found = self._connections.get(number)
        if found is None or not self._count(data):
            return
        if data:
            found[0].feed_data(data)
        else:
            found[0].feed_eof()

    def _count(self, data: bytes) -> bool:
        self._left -= len(data)
        if self._left < 0:
            self._stop("network")
        return self._left >= 0

    # -- what came of it
    def _outcome(self, wall_ms: float) -> SandboxOutcome:
        told = self._told or _Told()
        if told.doors:
            raise SandboxUnavailableError(f"the sandbox has no doors: {told.doors:.200}")
        ending = self._ending if self._ending != "ended" else self._reason(told)
        files, left_out = self._collected()
        limit = self._limits.output_bytes
        met = bool(self._job.code) and MET.get(told.exit or 0) == ending
        return SandboxOutcome(
            ending=ending,
            exit_code=1 if met else told.exit,
            stdout=bytes(self._written[frames.OUT][:limit]),
            stderr=bytes(self._written[frames.ERROR][:limit]),
            cpu_ms=told.cpu_ms,
            memory_peak_bytes=told.memory,
            wall_ms=wall_ms,
            tier=self._tier,
            detail=self._guest.detail,
            files=files,
            left_out=left_out,
        )

    def _collected(self) -> tuple[tuple[SandboxFile, ...], dict[str, str]]:
        if not self._job.collects:
            return (), {}
        try:
            return exchange.read(self._files)
        except (ValueError, msgspec.MsgspecError):
            return (), {"": "the sandbox was stopped before its files were out"}

    def _reason(self, told: _Told) -> Ending:
        """Which limit it met, if it met one."""
        code = told.exit
        has_failed = code != 0
        group = self._guest.group
        if has_failed and (told.is_out_of_memory or (group is not None and group.is_out_of_memory)):
            return "memory"
        if told.stopped:
            return told.stopped
        if code is None:
            return "lost"
        has_used_up = told.cpu_ms >= self._limits.cpu_ms
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and has_used_up):
            return "cpu-time"
        if code == -signal.SIGXFSZ or (has_failed and told.is_full):
            return "disk"
        if self._job.code and code in MET:
            return MET[code]
        if has_failed and told.is_out_of_processes:
            return "processes"
        return "signal" if code < 0 else "ended"


def _told(data: bytes) -> _Told:
    try:
        return msgspec.json.decode(data, type=_Told)
    except msgspec.MsgspecError:
        return _Told()


def check(job: SandboxJob, doors: Mapping[int, Door]) -> None:
    """What a guest can be given.

    Raises:
        InputInvalidError: it is too much, or a door has no port that it could have.
    """
    size = len(job.code.encode(errors="surrogatepass")) + sum(
        len(part) for part in (*job.argv, *job.env, *job.env.values())
    )
    if size > CODE_BYTES_MAX:
        raise InputInvalidError(
            f"the code with its arguments has {size} bytes and {CODE_BYTES_MAX} is the limit; put data into files of the workspace"
        )
    if any(not PORT_MIN <= port <= PORT_MAX for port in doors):
        raise InputInvalidError(f"doors are ports from {PORT_MIN} to {PORT_MAX}, found {sorted(doors)}")
