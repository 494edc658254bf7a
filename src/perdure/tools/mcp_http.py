"""HTTP to MCP servers, with every failure turned into an answer that says whether the request was sent.

The SDK's client gives up a whole connection when one request fails, and cannot tell a request that was never sent from
one whose answer was lost. That difference decides whether an action is in doubt.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import msgspec
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

UNREACHABLE = -39001  # nothing was sent
LOST = -39002  # sent, and no usable answer came
REFUSED = -39003  # the server said no before it did anything
GONE = -39004  # the server has forgotten the session
BODY_BYTES_MAX = 16 * 1024 * 1024  # of one answer
EVENT_BYTES_MAX = BODY_BYTES_MAX  # of one event of a stream
# Shorter than what servers use, so that a connection is not closed by them in the moment it is used again.
KEEPALIVE_S = 2
CONNECT_S = 10
SESSION_HEADER = "mcp-session-id"
VAGUE = (-32000, -32001)  # the SDK uses these for lost connections, servers for refusals

_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


class CarefulTransport(httpx2.AsyncBaseTransport):
    """Sends requests; what fails on the way becomes a JSON-RPC error with one of the codes above."""

    def __init__(self) -> None:
        limits = httpx2.Limits(keepalive_expiry=KEEPALIVE_S)
        self._inner = httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request and its answer; streams of events are passed through, everything else is read and checked."""
        try:
            response = await self._inner.handle_async_request(request)
            if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                return response
            body = await _read(response)
        except _NOT_SENT as error:
            return _told(UNREACHABLE, f"it cannot be reached: {_named(error)}")
        except httpx2.TransportError as error:
            return _told(LOST, f"the connection broke: {_named(error)}")
        if body is None:
            return _told(LOST, f"its answer has more than {BODY_BYTES_MAX} bytes or is compressed")
        return _judged(request, response, body)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._inner.aclose()


def client(headers: dict[str, str]) -> httpx2.AsyncClient:
    """A client for one server. No proxy of the environment is used, and no redirect is followed elsewhere."""
    return httpx2.AsyncClient(
        transport=CarefulTransport(),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(None, connect=CONNECT_S, pool=CONNECT_S),
        trust_env=False,
    )


async def _read(response: httpx2.Response) -> bytes | None:
    """The whole body; ``None`` where it is too large or compressed, which may hide how large it is."""
    try:
        if response.headers.get("content-encoding", "identity") != "identity":
            return None
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                return None
        return bytes(body)
    finally:
        await response.aclose()


def _judged(request: httpx2.Request, response: httpx2.Response, body: bytes) -> httpx2.Response:
    """An answer as the SDK shall see it."""
    status = response.status_code
    is_asked = request.method == "POST"
    if is_asked and status == 404 and SESSION_HEADER in request.headers:
        return _told(GONE, "it has forgotten the session")
    if is_asked and status >= 400:
        error = _error_in(body)
        if error is None:
            return _told(LOST if status >= 500 else REFUSED, f"it answered with status {status}")
        if status < 500 and error.get("code") in VAGUE:
            return _told(REFUSED, f"it answered with status {status}: {error.get('message')!s:.400}")
    headers = {"content-type": response.headers.get("content-type", "")}
    for name in (SESSION_HEADER, "location"):
        if name in response.headers:
            headers[name] = response.headers[name]
    if is_asked and status == 200:
        message = _decoded(body)
        if message is None:
            return _told(LOST, "its answer is neither JSON nor a stream of events")
        body = _completed(request, message, body)
    return httpx2.Response(status, headers=headers, content=body, request=request)


def _completed(request: httpx2.Request, message: Any, body: bytes) -> bytes:
    """A result of 2026-07-28 that does not say what kind it is, as it is meant: the SDK would call it broken."""
    result = message.get("result") if isinstance(message, dict) else None
    is_modern = request.headers.get("mcp-protocol-version") in MODERN_PROTOCOL_VERSIONS
    if not is_modern or not isinstance(result, dict) or "resultType" in result:
        return body
    return msgspec.json.encode({**message, "result": {"resultType": "complete", **result}})


def _decoded(body: bytes) -> Any:
    """What a body holds; ``None`` where it is not JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _error_in(body: bytes) -> dict[str, Any] | None:
    """The JSON-RPC error that a body holds."""
    message = _decoded(body)
    error = message.get("error") if isinstance(message, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("code"), int) else None


def _named(error: httpx2.TransportError) -> str:
    return str(error) or type(error).__name__


def _told(code: int, message: str) -> httpx2.Response:
    """What the SDK takes for the server's answer."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return httpx2.Response(
        400, headers={"content-type": "application/json"}, content=json.dumps(body).encode()
    )
