"""The connection between a sandbox host and its clients: frames, heartbeats, and the connections of doors within it.

Whoever is at the other end may be anybody: every length is bounded before anything is held, and silence ends a connection.
The format is described in ``docs/sandbox-hosts.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import msgspec

VERSION = 1
PROTOCOL = "perdure-sandbox/1"  # as TLS names it (ALPN)
HEAD = struct.Struct("!IBI")  # bytes of the payload, kind, channel
PAYLOAD_BYTES_MAX = 64 * 1024
HELLO_BYTES_MAX = 16 * 1024
WINDOW_BYTES = 256 * 1024  # that may be on their way on one channel, each way
CHANNELS_MAX = 64  # open at once on one connection
CONTROL_MAX = 8  # frames that wait to be taken; beyond them the other side is not read
BEAT_S = 5.0
SILENCE_S = 20.0  # without a single whole frame, after which the other side counts as gone
STALL_S = 20.0  # for the other side to take what is sent
CREDIT = struct.Struct("!I")
ON_THEIR_WAY_BYTES = CHANNELS_MAX * WINDOW_BYTES  # beyond what may pass doors, until a job is stopped for it

T = TypeVar("T")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    JOB = 2
    ACCEPT = 3
    BODY = 4
    GO = 5
    OUTCOME = 6
    REFUSED = 7
    PING = 8
    OPEN = 16
    DATA = 17
    CREDIT = 18
    EOF = 19
    CLOSE = 20


class LinkError(Exception):
    """The other side is gone, silent, or does not keep to the protocol."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of ``JOB`` and ``OUTCOME``: how many bytes of ``BODY`` follow."""

    size: int


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of ``REFUSED``: nothing was executed.

    Attributes:
        code: of the error; ``busy`` if another host, or this one later, may take it.
        message: why.
    """

    code: str
    message: str


class Frame(msgspec.Struct, frozen=True):
    """One frame."""

    kind: Kind
    channel: int
    data: bytes

    def read(self, kind: type[T]) -> T:
        """Its payload as a value."""
        try:
            return msgspec.json.decode(self.data, type=kind)
        except msgspec.MsgspecError as error:
            raise LinkError(f"a frame {self.kind.name} cannot be read: {error}") from error


class Channel:
    """One connection through a door, carried within a link. Each way at most ``WINDOW_BYTES`` are on their way."""

    def __init__(self, link: Link, number: int, *, is_ours: bool) -> None:
        self._link = link
        self._number = number
        self.is_ours = is_ours  # whether our side has opened it
        self._may_send = WINDOW_BYTES
        self._may_come = WINDOW_BYTES
        self._credit = asyncio.Event()
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the window
        self._over = asyncio.Event()
        self._finishing = asyncio.Event()
        self._has_ended = False

    @property
    def is_closed(self) -> bool:
        """Whether the other side has closed it."""
        return self._over.is_set()

    def take(self, frame: Frame) -> None:
        """A frame of it has come."""
        match frame.kind:
            case Kind.DATA:
                self._may_come -= len(frame.data)
                if self._may_come < 0 or self._has_ended or not frame.data:
                    raise LinkError("more came on a channel than may")
                self._arrived.put_nowait(frame.data)
            case Kind.CREDIT:
                self._may_send += _number_of(frame.data)
                if self._may_send > WINDOW_BYTES:
                    raise LinkError("more credit came than was used")
                self._credit.set()
            case Kind.EOF | Kind.CLOSE:
                if not self._has_ended:
                    self._has_ended = True
                    self._arrived.put_nowait(None)
                if frame.kind is Kind.CLOSE:
                    self._over.set()
            case _:
                raise LinkError(f"a frame {frame.kind.name} came on a channel")

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on, both ways, until both have ended, the other side has closed, or :meth:`finish` was called."""
        out = asyncio.ensure_future(self._out(reader))
        into = asyncio.ensure_future(self._into(writer))
        ends = [asyncio.ensure_future(each) for each in (_all(out, into), self._over.wait(), self._left(out))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._over.is_set():  # what came before the end is passed on, if somebody takes it
                await asyncio.wait((into,), timeout=STALL_S)
        finally:
            for task in (out, into, *ends):
                task.cancel()
            await asyncio.gather(out, into, *ends, return_exceptions=True)
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()

    def finish(self) -> None:
        """Whoever is behind our side has closed: what it said is still sent, nothing more is taken."""
        self._finishing.set()

    async def _left(self, out: asyncio.Future[None]) -> None:
        await self._finishing.wait()
        await asyncio.wait((out,))

    async def close(self) -> None:
        """Give its number back. Every channel is closed once by each side."""
        await self._link.let_go(self._number)

    async def _out(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                while not self._may_send:
                    self._credit.clear()
                    await self._credit.wait()
                data = await reader.read(min(self._may_send, PAYLOAD_BYTES_MAX))
                if not data:
                    break
                self._may_send -= len(data)
                await self._link.send(Kind.DATA, data, channel=self._number)
        await self._link.send(Kind.EOF, channel=self._number)

    async def _into(self, writer: asyncio.StreamWriter) -> None:
        try:
            while (data := await self._arrived.get()) is not None:
                writer.write(data)
                await writer.drain()
                self._may_come += len(data)
                await self._link.send(Kind.CREDIT, CREDIT.pack(len(data)), channel=self._number)
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            self._finishing.set()  # nobody takes it any more


class Link:
    """One connection, with whoever is at its other end.

    Args:
        reader: of the connection.
        writer: of the connection.
        opened: called with the payload of an ``OPEN`` and its channel; without it nobody may open one.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        opened: Callable[[int, Channel], None] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.opened = opened
        self._sending = asyncio.Lock()
        self._control: deque[Frame] = deque()
        self._has_frame = asyncio.Event()
        self._has_place = asyncio.Event()
        self._channels: dict[int, Channel] = {}
        self._closing: set[int] = set()  # channels that we have closed and the other side has not
        self._room = asyncio.Semaphore(CHANNELS_MAX)
        self._number = 0
        self._problem = ""
        self.gone = asyncio.Event()
        self.carried_bytes = 0  # that came on channels since this was last set to zero
        self.carried_max = 0
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._beat())]

    # -- sending
    async def send(self, kind: Kind, data: bytes = b"", *, channel: int = 0) -> None:
        """Send one frame; on return all but the last few kilobytes have left.

        Raises:
            LinkError: the other side is gone, or does not take it.
        """
        if self.gone.is_set():
            raise LinkError(self._problem)
        try:
            async with asyncio.timeout(STALL_S), self._sending:
                self._writer.write(HEAD.pack(len(data), kind, channel) + data)
                await self._writer.drain()
        except TimeoutError:
            self._end("the other side does not take what is sent")
            raise LinkError(self._problem) from None
        except OSError as error:
            self._end(_why(error))
            raise LinkError(self._problem) from error

    async def tell(self, kind: Kind, value: Any) -> None:
        """Send a value."""
        await self.send(kind, msgspec.json.encode(value))

    async def send_parts(self, data: bytes) -> None:
        """Send bytes as ``BODY``."""
        view = memoryview(data)
        for place in range(0, len(data), PAYLOAD_BYTES_MAX):
            await self.send(Kind.BODY, bytes(view[place : place + PAYLOAD_BYTES_MAX]))

    async def _beat(self) -> None:
        with contextlib.suppress(LinkError):
            while True:
                await asyncio.sleep(BEAT_S)
                await self.send(Kind.PING)

    # -- receiving
    async def receive(self, *expected: Kind, within_s: float) -> Frame:
        """The next frame that is not about a channel.

        Raises:
            LinkError: it did not come in time, or is another one.
        """
        try:
            async with asyncio.timeout(within_s):
                while not self._control:
                    if self.gone.is_set():
                        raise LinkError(self._problem)
                    self._has_frame.clear()
                    await self._has_frame.wait()
        except TimeoutError:
            self._end("an answer did not come in time")
            raise LinkError(self._problem) from None
        found = self._control.popleft()
        self._has_place.set()
        if found.kind not in expected:
            self._end(f"a frame {found.kind.name} came out of turn")
            raise LinkError(self._problem)
        return found

    async def receive_body(self, size: int, most: int, within_s: float) -> bytes:
        """So many bytes of ``BODY``; more than ``most`` are not even begun."""
        if not 0 <= size <= most:
            self._end(f"{size} bytes were announced and {most} is the limit")
            raise LinkError(self._problem)
        found = bytearray()
        until = asyncio.get_running_loop().time() + within_s
        while len(found) < size:
            left_s = max(0.0, until - asyncio.get_running_loop().time())
            frame = await self.receive(Kind.BODY, within_s=left_s)
            found += frame.data
            if len(found) > size or not frame.data:
                self._end("a body is not of the size that was announced")
                raise LinkError(self._problem)
        return bytes(found)

    async def _listen(self) -> None:
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    size, number, channel = HEAD.unpack(await self._reader.readexactly(HEAD.size))
                    if size > PAYLOAD_BYTES_MAX or number not in Kind._value2member_map_:
                        raise LinkError(f"a frame of kind {number} with {size} bytes came")
                    frame = Frame(Kind(number), channel, await self._reader.readexactly(size))
                await self._take(frame)
        except TimeoutError:
            self._end(f"the other side was silent for {SILENCE_S:g} s")
        except asyncio.IncompleteReadError:
            self._end("the other side has closed the connection")
        except LinkError as error:
            self._end(str(error))
        except OSError as error:
            self._end(_why(error))

    async def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                if frame.data:
                    raise LinkError("a ping with bytes came")
            case Kind.OPEN:
                self._open(frame)
            case Kind.DATA | Kind.CREDIT | Kind.EOF | Kind.CLOSE:
                self.carried_bytes += len(frame.data) if frame.kind is Kind.DATA else 0
                if self.carried_bytes > self.carried_max:
                    raise LinkError("more came through doors than may")
                if (channel := self._channels.get(frame.channel)) is not None:
                    channel.take(frame)
                elif frame.kind is Kind.CLOSE and frame.channel in self._closing:
                    self._closing.discard(frame.channel)
                    self._room.release()
            case _:
                while len(self._control) >= CONTROL_MAX:
                    self._has_place.clear()
                    await self._has_place.wait()
                self._control.append(frame)
                self._has_frame.set()

    def _open(self, frame: Frame) -> None:
        if self.opened is None or frame.channel != self._number + 1 or len(self._channels) >= CHANNELS_MAX:
            raise LinkError("a channel was opened that may not be")
        self._number = frame.channel
        channel = self._channels[frame.channel] = Channel(self, frame.channel, is_ours=False)
        self.opened(_number_of(frame.data), channel)

    # -- channels
    async def open_channel(self, port: int) -> Channel:
        """A new connection to a door of the other side; waits while there are too many."""
        await self._room.acquire()
        self._number += 1
        number = self._number
        channel = self._channels[number] = Channel(self, number, is_ours=True)
        await self.send(Kind.OPEN, CREDIT.pack(port), channel=number)
        return channel

    async def let_go(self, number: int) -> None:
        """Close a channel on our side. Its place is free when the other side has closed it too."""
        channel = self._channels.pop(number, None)
        if channel is None:
            return
        if channel.is_ours:
            if channel.is_closed:
                self._room.release()
            else:
                self._closing.add(number)
        with contextlib.suppress(LinkError):
            await self.send(Kind.CLOSE, channel=number)

    # -- the end
    def _end(self, why: str) -> None:
        self._problem = self._problem or why
        if self.gone.is_set():
            return
        self.gone.set()
        self._has_frame.set()
        self._writer.transport.abort()
        for channel in list(self._channels.values()):
            channel.take(Frame(Kind.CLOSE, 0, b""))

    async def close(self) -> None:
        """End it."""
        self._end("it was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _all(*tasks: asyncio.Future[None]) -> None:
    await asyncio.wait(tasks)


def _number_of(data: bytes) -> int:
    if len(data) != CREDIT.size:
        raise LinkError("a number has four bytes")
    return int(CREDIT.unpack(data)[0])


def _why(error: OSError) -> str:
    return f"the connection broke: {error.strerror or type(error).__name__}"
