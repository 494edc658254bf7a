"""The model endpoints of hosted programs, as OpenAI and Anthropic speak: bytes in, bytes out, everything through the gateway."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.core.errors import (
    ModelUnknownError,
    PerdureError,
    RefusedError,
    RequestInvalidError,
    TokenRefusedError,
    UpstreamError,
    UsageError,
)
from perdure.core.models import ModelRequest
from perdure.gateway.frontier import Claim
from perdure.gateway.hosted import Attempt
from perdure.gateway.tee import Tee
from perdure.gateway.wire import error_body, read_request
from perdure.hosting.tokens import Tokens

REQUEST_BYTES_MAX = (
    32 * 1024 * 1024
)  # a context of a million tokens with pictures; beyond it is a mistake or an attack
DROPPED_BYTES_MAX = 256 * 1024 * 1024  # of a request that is too large
DIGITS_MAX = 18
FORWARDED = ("anthropic-version", "anthropic-beta", "openai-beta")
JOURNALED = ("chat/completions", "responses", "embeddings", "messages")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

# The first that fits. 408, 409, 429 and 5xx make the official clients try again, so a refusal must be none of them.
STATUSES: tuple[tuple[type[PerdureError], int], ...] = (
    (TokenRefusedError, 401),
    (ModelUnknownError, 404),
    (RefusedError, 403),
    (UsageError, 400),
)


class Endpoints:
    """An ASGI application: ``/v1/...`` for models, and what else is served at a path of its own (``/mcp``).

    Args:
        tokens: the attempts that are under way.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        # Looked up by their path: what a framework does around a route would be a tenth of an answer from the journal.
        self._endpoints = {
            f"/v1/{name}": _ModelRoute(self, name) for name in ("messages/count_tokens", *JOURNALED)
        }
        routes = [
            *(Route(path, endpoint) for path, endpoint in self._endpoints.items()),
            Route("/v1/models", self._models),
            Route("/healthz", _healthy),
        ]
        self._app = Starlette(routes=routes)

    def serve_at(self, path: str, app: ASGIApp) -> None:
        """Serve something else at ``path``."""
        self._app.router.routes.append(Route(path, app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a foreign ``Host`` (a page that rebinds its name to this machine) gets nothing."""
        if scope["type"] == "http" and not _is_local(scope):
            await Response("this address is for programs on this machine", 403)(scope, receive, send)
            return
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        await (endpoint or self._app)(scope, receive, send)

    def find(self, request: Request) -> Attempt:
        """The attempt that a request belongs to.

        Raises:
            TokenRefusedError: its token is of none.
        """
        return self._tokens.find(_token(request), request.headers.get("x-perdure-run"))

    async def _models(self, request: Request) -> Response:
        try:
            attempt = self.find(request)
        except PerdureError as error:
            return _failure("models", error)
        names = attempt.gateway.upstreams.names()
        data = [
            {"id": name, "object": "model", "type": "model", "owned_by": "perdure", "created": 0}
            for name in names
        ]
        body = {"object": "list", "data": data, "has_more": False}
        return Response(msgspec.json.encode(body), media_type="application/json")


class _ModelRoute:
    """One endpoint, as an ASGI application."""

    def __init__(self, endpoints: Endpoints, endpoint: str) -> None:
        self._endpoints = endpoints
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoint
        request = Request(scope, receive, send)
        try:
            if request.method != "POST":
                raise RequestInvalidError(f"`{endpoint}` takes POST, found {request.method}")
            attempt = self._endpoints.find(request)
            body = await _body(request)
            if endpoint not in JOURNALED:
                response = await _passed_on(attempt, endpoint, body, _forwarded(request))
                await response(scope, receive, send)
                return
            tee, claim = await attempt.model(
                endpoint, body, _forwarded(request), is_retry=_retries(request) > 0
            )
        except PerdureError as error:
            await _failure(endpoint, error)(scope, receive, send)
            return
        await _Reply(endpoint, attempt, tee, claim).serve(scope, receive, send)


class _Reply:
    """Sends a tee to one client; a client that goes away leaves the upstream call to end by itself."""

    def __init__(self, endpoint: str, attempt: Attempt, tee: Tee, claim: Claim) -> None:
        self._endpoint = endpoint
        self._attempt = attempt
        self._tee = tee
        self._claim = claim
        self._begun = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._attempt.abandon(self._claim)
                return
            sending.result()
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        tee = self._tee
        try:
            await tee.wait_head()
            if "event-stream" not in tee.content_type:
                body = b"".join([chunk async for chunk in tee.read()])
                await Response(body, tee.status, headers=self._headers())(scope, receive, send)
                return
            raw = [(name.encode(), value.encode()) for name, value in self._headers().items()]
            await send({"type": "http.response.start", "status": tee.status, "headers": raw})
            self._begun = True
            async for chunk in tee.read():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except PerdureError as error:
            if self._begun:
                raise ConnectionAbortedError(
                    str(error)
                ) from error  # a stream that broke off is seen to break off
            await _failure(self._endpoint, error)(scope, receive, send)

    def _headers(self) -> dict[str, str]:
        tee = self._tee
        own = {
            "content-type": tee.content_type,
            "x-perdure-action": f"{self._attempt.seat.run_id}/{self._claim.call}",
            "x-perdure-level": self._claim.level,
        }
        return {**dict(tee.headers), **own}


async def _passed_on(
    attempt: Attempt, endpoint: str, body: bytes, headers: tuple[tuple[str, str], ...]
) -> Response:
    """A request that costs nothing and changes nothing goes through unrecorded."""
    facts = read_request(endpoint, body)
    asked = ModelRequest(endpoint=endpoint, model=facts.model, body=body, headers=headers)
    async with attempt.gateway.upstreams.open(asked) as answer:
        data = b"".join([chunk async for chunk in answer.chunks])
        return Response(data, answer.status, media_type=answer.content_type)


def _failure(endpoint: str, error: PerdureError) -> Response:
    """An error in the wire format of the endpoint; a refusal tells the official clients not to try again."""
    headers = {"x-perdure-code": error.code}
    if isinstance(error, UpstreamError):
        found = error.facts.get("status")
        status = found if isinstance(found, int) and found in (429, 500, 502, 503, 504, 529) else 502
        if (wait_ms := error.facts.get("retry_after_ms")) is not None:
            headers["retry-after"] = str(max(1, round(wait_ms / 1000)))
    elif error.facts.get("too_large"):
        status = 413
    else:
        status = next((code for kind, code in STATUSES if isinstance(error, kind)), 503)
    if status < 429 or status == 503:
        headers["x-should-retry"] = "false" if status < 429 else "true"
    body = error_body(endpoint, error.code, error.message, status)
    return Response(body, status, headers=headers, media_type="application/json")


async def _body(request: Request) -> bytes:
    """The body, up to the limit.

    Raises:
        RequestInvalidError: it is larger.
    """
    told = request.headers.get("content-length", "0")
    if _number(told) > REQUEST_BYTES_MAX:
        await _dropped(request)
        raise _too_large(_number(told))
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > REQUEST_BYTES_MAX:
            await _dropped(request)
            raise _too_large(size)
        chunks.append(chunk)
    return b"".join(chunks)


async def _dropped(request: Request) -> None:
    """Read on and forget, so that the sender gets to read why; up to a bound."""
    size = 0
    while size < DROPPED_BYTES_MAX:
        message = await request.receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def _number(text: str) -> int:
    """A number of ASCII digits; anything else is 0."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else 0


def _too_large(size: int) -> RequestInvalidError:
    message = f"a request may have {REQUEST_BYTES_MAX} bytes, found {size} or more; send less in one request"
    return RequestInvalidError(message, too_large=True, size_bytes=size, limit_bytes=REQUEST_BYTES_MAX)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _token(request: Request) -> str:
    given = request.headers.get("authorization", "")
    if given.lower().startswith("bearer "):
        return given[7:].strip()
    return request.headers.get("x-api-key", "").strip()


def _retries(request: Request) -> int:
    told = request.headers.get("x-stainless-retry-count", "0")
    return _number(told)


def _forwarded(request: Request) -> tuple[tuple[str, str], ...]:
    return tuple((name, request.headers[name]) for name in FORWARDED if name in request.headers)


def _is_local(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"host":
            host = (
                value.decode("latin-1").rsplit(":", 1)[0]
                if not value.endswith(b"]")
                else value.decode("latin-1")
            )
            return host in LOOPBACK
    return False


async def _healthy(request: Request) -> Response:  # noqa: ARG001
    return Response(b'{"status":"ok"}', media_type="application/json")
