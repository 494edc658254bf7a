"""The protocol between a runtime and its worker processes, as values and as bytes: see ``docs/worker-protocol.md``.

A frame is four bytes of length (big-endian) and that many bytes of JSON. What the other side sends is checked here and nowhere trusted.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

from perdure.core.errors import RequestInvalidError

PROTOCOL = 1
HELLO_BYTES_MAX = 256 * 1024  # a hello names the agents of an app; more than this is no hello
FRAME_EXTRA_BYTES = 64 * 1024  # around one payload of the largest size
BATCH_BYTES = 256 * 1024  # a worker sends what its code has asked for so far when it is this much
NOTHING = msgspec.Raw(b"")  # a value that is left out
_LENGTH = struct.Struct(">I")


class _Frame(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="t"
):
    pass


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An error: its stable code (empty for one of the agent's own), its message and the name of its type."""

    code: str = ""
    message: str = ""
    type: str = ""
    facts: dict[str, Any] = {}


# -- from the runtime
class Welcome(_Frame, frozen=True, tag="welcome"):
    """The answer to ``hello``."""

    protocol: int
    frame_bytes_max: int
    payload_bytes_max: int
    calls_open_max: int


class Start(_Frame, frozen=True, tag="start"):
    """A run begins here, from its first line; what it did before follows as answers.

    ``frontier`` is the last recorded event that depends on what the code did: until then it repeats itself.
    """

    run: int
    id: str
    agent: str
    input: msgspec.Raw
    seq: int
    at_ms: int
    chance: int
    session: str | None = None
    frontier: int = 0
    patches: tuple[str, ...] = ()


class Answer(_Frame, frozen=True, tag="answer"):
    """A call has ended: with a value, or with an error to raise."""

    run: int
    seq: int
    at_ms: int
    call: int
    kind: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    error: Problem | None = None


class Fired(_Frame, frozen=True, tag="fired"):
    """A timer of the run's own loop is due."""

    run: int
    seq: int
    at_ms: int
    timer: int


class Cancel(_Frame, frozen=True, tag="cancel"):
    """The code is asked to stop."""

    run: int
    seq: int
    at_ms: int
    reason: str


class Forked(_Frame, frozen=True, tag="forked"):
    """From here on the run is another one: with this id, and other chance."""

    run: int
    seq: int
    at_ms: int
    id: str
    chance: int


class StepBegin(_Frame, frozen=True, tag="step-begin"):
    """Make an attempt of a step that the run has called."""

    run: int
    call: int
    attempt: int


class StepCancel(_Frame, frozen=True, tag="step-cancel"):
    """Nobody waits for that attempt any more."""

    run: int
    call: int
    attempt: int


class Drop(_Frame, frozen=True, tag="drop"):
    """Forget a run."""

    run: int


class Ping(_Frame, frozen=True, tag="ping"):
    """Answer with ``pong``, from the loop that runs the agents."""

    id: int


class Stop(_Frame, frozen=True, tag="stop"):
    """End: no run is left here."""


Downward = Welcome | Start | Answer | Fired | Cancel | Forked | StepBegin | StepCancel | Drop | Ping | Stop


# -- from the worker: what the code of a run did until nothing of it was ready any more
class Call(_Frame, frozen=True, tag="call"):
    """A durable call. Numbers count from 1 in the order of the calls."""

    call: int
    kind: str
    name: str = ""
    digest: str = ""
    data: msgspec.Raw = NOTHING
    ms: int | None = None
    to: str = ""
    key: str | None = None
    priority: int = 0
    endpoint: str = ""
    confidence: int | None = None
    retries: int = 0
    backoff_ms: int = 0
    backoff_ms_max: int = 0
    is_threaded: bool = False


class GiveUp(_Frame, frozen=True, tag="give-up"):
    """The code does not wait for that call any more."""

    call: int


class Timer(_Frame, frozen=True, tag="timer"):
    """The code has set a timer of its own loop; numbers count from 1."""

    timer: int
    due_ms: int


class TimerStopped(_Frame, frozen=True, tag="timer-stopped"):
    """The code has stopped a timer."""

    timer: int


class Patch(_Frame, frozen=True, tag="patch"):
    """The code has taken the new path of a deliberate change."""

    name: str


class Show(_Frame, frozen=True, tag="show"):
    """Something for whoever watches live."""

    kind: str
    data: msgspec.Raw


class Result(_Frame, frozen=True, tag="result"):
    """The code has ended with a result."""

    value: msgspec.Raw


class Error(_Frame, frozen=True, tag="error"):
    """The code has ended with an error; ``is_stop`` if it is how an agent that is told to stop ends."""

    error: Problem
    is_stop: bool = False


class Cancelled(_Frame, frozen=True, tag="cancelled"):
    """The code has ended because it was told to stop."""


Did = Call | GiveUp | Timer | TimerStopped | Patch | Show | Result | Error | Cancelled


# -- from the worker: frames
class Hello(_Frame, frozen=True, tag="hello"):
    """The first frame: who is there, with the versions of its agents."""

    protocol: int
    token: str
    agents: dict[str, str]
    language: str = ""


class Do(_Frame, frozen=True, tag="do"):
    """What the code of a run did so far; more follows before ``ran``."""

    run: int
    do: tuple[Did, ...]


class Ran(_Frame, frozen=True, tag="ran"):
    """The event ``seq`` has been taken in, and nothing of the run is ready any more."""

    run: int
    seq: int
    do: tuple[Did, ...] = ()


class StepEnd(_Frame, frozen=True, tag="step-end"):
    """How an attempt of a step ended; ``is_final`` if another one cannot help."""

    run: int
    call: int
    attempt: int
    value: msgspec.Raw = NOTHING
    error: Problem | None = None
    is_final: bool = False


class Unreadable(_Frame, frozen=True, tag="unreadable"):
    """The value recorded for a call does not fit its type any more."""

    run: int
    call: int
    message: str


class Pong(_Frame, frozen=True, tag="pong"):
    """The answer to ``ping``."""

    id: int


Upward = Hello | Do | Ran | StepEnd | Unreadable | Pong

_encoder = msgspec.json.Encoder()
_downward = msgspec.json.Decoder(Downward)
_upward = msgspec.json.Decoder(Upward)


def framed(frame: _Frame) -> bytes:
    """A frame as bytes."""
    data = _encoder.encode(frame)
    return _LENGTH.pack(len(data)) + data


def size_of(frame: Did) -> int:
    """About how many bytes it takes: what can be large of it."""
    data: msgspec.Raw = getattr(frame, "data", NOTHING)
    return 256 + len(bytes(data))


def read_downward(data: bytes) -> Downward:
    """A frame from the runtime.

    Raises:
        RequestInvalidError: it is none.
    """
    return _read(_downward, data)  # type: ignore[no-any-return]


def read_upward(data: bytes) -> Upward:
    """A frame from a worker.

    Raises:
        RequestInvalidError: it is none.
    """
    return _read(_upward, data)  # type: ignore[no-any-return]


def _read(decoder: Any, data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalidError(f"this is no frame of the worker protocol: {error}") from error


def check_json(value: msgspec.Raw) -> bytes:
    """A value that goes on as it came: valid to the last byte; ``null`` if it was left out.

    Raises:
        RequestInvalidError: it is no JSON.
    """
    data = bytes(value) or b"null"
    _read(_any, data)
    return data


_any = msgspec.json.Decoder(Any)


class FrameReader(asyncio.Protocol):
    """Cuts a stream into frames and hands each to ``take``; ``lose`` hears once that no more come.

    Args:
        take: gets each frame's bytes.
        lose: gets why the connection ended.
        bytes_max: of a frame; more ends the connection.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._out: list[bytes] = []
        self._outer = (
            asyncio.get_running_loop()
        )  # that of the process: a run's own loop may be running when it sends
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own promise for streams
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Cut."""
        found = self._data
        found += data
        start, size = 0, len(found)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(found, start)
            if length > self.bytes_max:
                self.fail(f"a frame of {length} bytes is over the limit of {self.bytes_max}")
                return
            end = start + _LENGTH.size + length
            if size < end:
                break
            frame = bytes(found[start + _LENGTH.size : end])
            start = end
            self.take(frame)
            if self._is_lost:
                return
        del found[:start]

    def send(self, frame: _Frame) -> None:
        """Send a frame; one that nobody takes any more is dropped."""
        if not self._out:
            self._outer.call_soon(self._flush)
        self._out.append(framed(frame))

    def _flush(self) -> None:
        """What was sent in one turn of the loop goes out in one write."""
        out, self._out = self._out, []
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(out))

    def take(self, data: bytes) -> None:
        """A frame has come."""
        raise NotImplementedError

    def lose(self, why: str) -> None:
        """The connection has ended."""
        raise NotImplementedError

    def fail(self, why: str) -> None:
        """End the connection: the other side does not keep to the protocol."""
        if self._is_lost:
            return
        self._is_lost = True
        if self.transport is not None:
            self.transport.abort()
        self.lose(why)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        if not self._is_lost:
            self._is_lost = True
            self.lose("the connection was closed" if exc is None else f"the connection was lost: {exc}")
