"""The HTTP contract of Amazon Bedrock AgentCore containers, from both sides: ``POST /invocations`` and ``GET /ping``.

:func:`invoke` calls a program that was made for it, so that it runs as a hosted program; :class:`AgentCoreFace` lets an app of
ours answer there. The contract: https://docs.aws.amazon.com/bedrock-agentcore/latest/devguide/runtime-http-protocol-contract.html
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from perdure.core.errors import (
    PerdureError,
    ProgramFailedError,
    RefusedError,
    RequestInvalidError,
    UnavailableError,
    UsageError,
)
from perdure.gateway.wire import EventReader
from perdure.ports import Clock

SESSION = "x-amzn-bedrock-agentcore-runtime-session-id"
SESSION_CHARACTERS_MIN = 33  # the contract asks for 33 to 256
SESSION_CHARACTERS_MAX = 256
READY_S = 60.0  # how long a program may take until it answers ``/ping``
TIMEOUT_S = 8 * 3_600.0  # the platform's longest session
PING_S = 5.0  # for one answer to ``/ping``; the platform gives up then too
PING_BYTES_MAX = 64 * 1024  # the contract's answer has under 100
LOOK_S = 0.05
PAYLOAD_BYTES_MAX = 100 * 1024 * 1024  # the contract's own limit
Show = Callable[[str, Any], None]


async def invoke(
    base_url: str,
    given: bytes,
    *,
    session: str,
    show: Show,
    ready_s: float = READY_S,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """Ask a program for its answer, once it is ready.

    A program that says after its answer that it goes on in the background (``HealthyBusy``) is waited for, as its end would
    cut that off. The request is sent once.

    Args:
        base_url: where it listens.
        given: the payload, as JSON.
        session: names the session; made long enough for the contract.
        show: takes the events of a streamed answer while they arrive (``event``, data).
        ready_s: how long it may take to answer ``/ping``.
        timeout_s: for all of it.

    Returns:
        The answer as JSON, or as a JSON string if it is none; of a streamed answer the last event's data.

    Raises:
        ProgramFailedError: it does not get ready, takes too long, answers with an error, or with too much.
    """
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        SESSION: _long(session),
    }
    # Reading the certificates of the world takes 20 ms of the loop, and a program on this machine has none.
    is_secure = base_url.startswith("https:")
    async with httpx2.AsyncClient(
        base_url=base_url, timeout=None, trust_env=False, verify=is_secure
    ) as client:
        try:
            async with asyncio.timeout(timeout_s):
                was_idle = await _ready(client, ready_s) == "Healthy"
                answer = await _ask(client, given, headers, show)
                if was_idle:  # one that is always busy would be waited for until the time is up
                    await _until_idle(client)
                return answer
        except TimeoutError as error:
            raise ProgramFailedError(f"`/invocations` did not end within {timeout_s:g} s") from error


async def _ask(client: httpx2.AsyncClient, given: bytes, headers: dict[str, str], show: Show) -> bytes:
    try:
        async with client.stream("POST", "/invocations", content=given, headers=headers) as response:
            if not response.is_success:
                body = await _whole(response, PAYLOAD_BYTES_MAX)
                message = f"`/invocations` answered with status {response.status_code}; expected 200: {body[:400]!r}"
                raise ProgramFailedError(message, status=response.status_code)
            is_stream = "event-stream" in response.headers.get("content-type", "")
            return _as_json(
                await _events(response, show) if is_stream else await _whole(response, PAYLOAD_BYTES_MAX)
            )
    except httpx2.HTTPError as error:
        raise ProgramFailedError(f"`/invocations` broke off: {type(error).__name__}: {error}") from error


async def _ready(client: httpx2.AsyncClient, ready_s: float) -> str:
    loop = asyncio.get_running_loop()
    until = loop.time() + ready_s
    while loop.time() < until:
        if status := await _status_told(client):
            return status
        await asyncio.sleep(LOOK_S)
    raise ProgramFailedError(
        f"the program did not answer `/ping` within {ready_s:g} s; it must listen on port $PORT"
    )


async def _until_idle(client: httpx2.AsyncClient) -> None:
    """Wait while the program says that it is busy; one that answers no more is not."""
    while await _status_told(client) == "HealthyBusy":
        await asyncio.sleep(LOOK_S)


async def _status_told(client: httpx2.AsyncClient) -> str:
    """What the program says of itself; empty if nothing that the contract knows."""
    with contextlib.suppress(httpx2.HTTPError, ProgramFailedError, ValueError, RecursionError):
        async with client.stream("GET", "/ping", timeout=PING_S) as response:
            told = msgspec.json.decode(await _whole(response, PING_BYTES_MAX))
            if response.status_code == 200 and isinstance(told, dict):
                return str(told["status"]) if told.get("status") in ("Healthy", "HealthyBusy") else ""
    return ""


async def _whole(response: httpx2.Response, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise ProgramFailedError(f"`{response.url.path}` answered with more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _events(response: httpx2.Response, show: Show) -> bytes:
    """The last event's data.

    Raises:
        ProgramFailedError: it says that the stream failed, in the way of the platform's own library; or it is too large.
    """
    reader = EventReader(limit=PAYLOAD_BYTES_MAX)
    last = b""
    async for chunk in response.aiter_bytes():
        for last in reader.feed(chunk):
            show("event", last.decode(errors="replace"))
        if reader.dropped:
            raise ProgramFailedError(f"`/invocations` sent an event of more than {PAYLOAD_BYTES_MAX} bytes")
    if (unended := reader.end()) is not None:
        last = unended
        show("event", last.decode(errors="replace"))
    told = msgspec.json.decode(_as_json(last))
    if isinstance(told, dict) and "error" in told and "error_type" in told:
        text = f"{told['error_type']}: {told['error']}"
        raise ProgramFailedError(f"the stream of `/invocations` ended with an error: {text[:400]}")
    return last


def _as_json(data: bytes) -> bytes:
    """``data`` if it is JSON, else its text as a JSON string."""
    try:
        msgspec.json.decode(data)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested too deep
        return msgspec.json.encode(data.decode(errors="replace"))
    return data


def _long(session: str) -> str:
    return session.ljust(SESSION_CHARACTERS_MIN, "-")[:SESSION_CHARACTERS_MAX]


class AgentCoreFace:
    """An ASGI application: an invocation starts a run and answers with its result.

    Args:
        start: starts a run with a payload, in a session if one is named, and waits for its result.
        follow: what the run shows live, for clients that take an event stream; ends with the result.
        is_busy: whether runs are at work.
        clock: the time of day.
    """

    def __init__(
        self,
        start: Callable[[Any, str | None], Awaitable[Any]],
        follow: Callable[[Any, str | None], AsyncIterator[Any]],
        is_busy: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._start = start
        self._follow = follow
        self._is_busy = is_busy
        self._clock = clock
        self._status = "Healthy"
        self._since_s: int | None = None
        self.app = Starlette(
            routes=[Route("/invocations", self._invocations, methods=["POST"]), Route("/ping", self._ping)]
        )

    async def _ping(self, request: Request) -> Response:
        """The status, and since when, once it has changed."""
        del request
        status = "HealthyBusy" if self._is_busy() else "Healthy"
        if status != self._status:
            self._status, self._since_s = status, self._clock.now_ms() // 1000
        told: dict[str, Any] = {"status": status}
        if self._since_s is not None:
            told["time_of_last_update"] = self._since_s
        return _json(told)

    async def _invocations(self, request: Request) -> Response:
        session = request.headers.get(SESSION)
        try:
            payload = await _payload(request)
            if "text/event-stream" in request.headers.get("accept", "") and "json" not in request.headers.get(
                "accept", ""
            ):
                return StreamingResponse(
                    _lines(self._follow(payload, session)), media_type="text/event-stream"
                )
            return _json(await self._start(payload, session))
        except PerdureError as error:
            return _json({"error": {"code": error.code, "message": error.message}}, _status(error))


async def _payload(request: Request) -> Any:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > PAYLOAD_BYTES_MAX:
            raise UsageError(f"a payload may have {PAYLOAD_BYTES_MAX} bytes")
        chunks.append(chunk)
    try:
        return msgspec.json.decode(b"".join(chunks) or b"null")
    except (ValueError, RecursionError) as error:  # also text that is no UTF-8, and deep nesting
        raise RequestInvalidError(f"the payload is no JSON: {error}") from error


async def _lines(items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield b"data: " + msgspec.json.encode(item) + b"\n\n"
    except PerdureError as error:
        failure = {"error": {"code": error.code, "message": error.message}}
        yield b"event: error\ndata: " + msgspec.json.encode(failure) + b"\n\n"


def _status(error: PerdureError) -> int:
    kinds: tuple[tuple[type[PerdureError], int], ...] = (
        (UsageError, 400),
        (RefusedError, 403),
        (UnavailableError, 503),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
