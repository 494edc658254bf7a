"""What is refused before it is read as MCP: foreign pages, bodies that are too large or no JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from perdure.hosting.mcp_wire import INVALID_REQUEST, PARSE_ERROR, Fault

BODY_BYTES_MAX = 16 * 1024 * 1024  # arguments come from a model's answer; more is a mistake or an attack
DRAIN_BYTES_MAX = (
    256 * 1024 * 1024
)  # read and dropped of a too large body, so that its sender gets to read why
BODY_S = 60  # for the whole body to arrive
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def foreign(headers: Headers, hosts: Collection[str]) -> Response | None:
    """The refusal of what a web page sends that made its name resolve to this machine; ``None``: it is fine."""
    host = _hostname(f"//{headers.get('host', '')}")
    if host not in hosts:
        return refusal(403, "host-refused", f"host `{host!s:.80}` is not served here")
    origin = headers.get("origin")
    if origin is not None and _hostname(origin) not in hosts:
        return refusal(403, "origin-refused", f"origin `{origin:.80}` may not use this server")
    return None


async def body_of(request: Request) -> bytes | Response:
    """The whole body, or why not."""
    chunks: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size_bytes += len(chunk)
                if size_bytes <= BODY_BYTES_MAX:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size_bytes > DRAIN_BYTES_MAX:
                    break
    except TimeoutError:
        return refusal(408, "request-invalid", f"the body did not arrive within {BODY_S} seconds")
    if size_bytes > BODY_BYTES_MAX:
        message = f"the body has {size_bytes} bytes or more, which is over the limit of {BODY_BYTES_MAX}"
        return refusal(413, "request-invalid", message)
    return b"".join(chunks)


def decoded(body: bytes) -> Any:
    """A body as plain data.

    Raises:
        Fault: it is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(PARSE_ERROR, f"the body is not JSON: {error}") from error


def json_answer(data: bytes, status: int = 200) -> Response:
    """An answer that is JSON already."""
    return Response(data, status, media_type="application/json")


def refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer to what never became a JSON-RPC request."""
    error = {"code": INVALID_REQUEST, "message": message, "data": {"code": code}}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status, headers)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
