"""A model provider to test against: a real HTTP server that speaks OpenAI's and Anthropic's wire formats, from a script.

Every answer has random ids and words, so a repeated upstream call could never reproduce an earlier answer, and each call is
one line of a log: who counts the lines knows what was really asked. ``python -m perdure.testing.provider --help``.

Calls fail on demand: ``POST /fault`` with ``{"fault": "429", "times": 3, "seconds": 0.1}`` spoils the next calls, and a model
name such as ``seq@hang`` or ``seq@500x3`` the first calls (one, if no number is given) for that name. ``429`` and ``500`` are
refusals (``seconds`` goes into Retry-After), ``hang`` waits (an hour, without ``seconds``), ``truncate`` breaks the connection
in the middle of the answer, ``malformed`` is no JSON, ``renamed`` names another model, ``slow`` waits between chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perdure.core.models import ModelRequest, Upstream
from perdure.models.scripted import Script, ScriptedCall, ScriptedUpstream, Turn, held

ENDPOINTS = ("chat/completions", "responses", "embeddings", "messages/count_tokens", "messages")
Fault = Literal["429", "500", "hang", "truncate", "malformed", "renamed", "slow"]
SLOW_S = 0.05  # between the chunks of a slow stream
HANG_S = 3_600.0  # longer than any client waits
FAULT_CALLS_MAX = 1_000  # no client tries more often
LONG = "long:"


def _call(name: str, **arguments: Any) -> ScriptedCall:
    return ScriptedCall(name=name, arguments=arguments)


def _trip(*turns: tuple[ScriptedCall, ...]) -> Script:
    last = Turn(text="All booked, reference {random}")
    return Script(turns=(*(Turn(calls=calls) for calls in turns), last))


#: What the provider says for the model names ``seq`` and ``par``; ``long:N`` looks N things up, anything else just talks.
SCRIPTS = {
    "seq": _trip(
        (_call("lookup", q="hotel"),),
        (_call("lookup", q="flight"),),
        (_call("book", item="flight"),),
        (_call("book", item="hotel"),),
    ),
    "par": _trip(
        (_call("lookup", q="hotel"),),
        (_call("lookup", q="flight"), _call("lookup", q="flight")),
        (_call("book", item="flight"),),
    ),
}
TALK = Script(turns=(Turn(text="Hello, this is {random}"),))


class Provider:
    """The server's state.

    Args:
        log: takes a line of JSON for each call.
        latency_ms: how long each answer takes to begin.
    """

    def __init__(self, log: Path, latency_ms: int = 0) -> None:
        self.log = log
        self.latency_ms = latency_ms
        self.faults: list[tuple[str, float]] = []  # used up one for each call
        self._scripted: dict[str, ScriptedUpstream] = {}
        self._spoiled: dict[str, int] = {}  # calls that failed as their model's name asks

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [Route(f"/v1/{name}", self._route(name), methods=["POST"]) for name in ENDPOINTS]
        also = [
            Route("/v1/models", self._models),
            Route("/fault", self._fault, methods=["POST"]),
        ]
        return Starlette(routes=[*routes, *also])

    def _route(self, endpoint: str) -> Any:
        async def serve(request: Request) -> Response:
            return await self._answer(endpoint, request)

        return serve

    async def _models(self, request: Request) -> Response:
        del request
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in SCRIPTS]})

    async def _fault(self, request: Request) -> Response:
        asked = await _object_of(request)
        fault, times = str(asked.get("fault")), int(asked.get("times", 1))
        if fault not in get_args(Fault) or not 0 < times <= FAULT_CALLS_MAX:
            # A fault that is silently none would let a test pass that tries nothing.
            return _refusal(f"expected one of {', '.join(get_args(Fault))}, 1 to {FAULT_CALLS_MAX} times")
        self.faults += [(fault, float(asked.get("seconds", 0)))] * times
        return JSONResponse({"waiting": len(self.faults)})

    def _fault_of(self, model: str) -> tuple[str, float]:
        """The fault of this call and its seconds; empty if it is to go well."""
        if self.faults:
            return self.faults.pop(0)
        fault, _, times = model.partition("@")[2].partition("x")
        if fault not in get_args(Fault) or self._spoiled.get(model, 0) >= int(times or 1):
            return "", 0.0
        self._spoiled[model] = self._spoiled.get(model, 0) + 1
        return fault, 0.0

    async def _answer(self, endpoint: str, request: Request) -> Response:
        data = await request.body()
        body = await _object_of(request)
        model = str(body.get("model", ""))
        if not model:
            return _refusal("expected a JSON object with a `model`")
        fault, seconds = self._fault_of(model)
        self._note(endpoint, body, request, fault)
        await asyncio.sleep(self.latency_ms / 1000)
        match fault:
            case "429" | "500":
                headers = {"retry-after": f"{seconds:g}"} if fault == "429" else {}
                return JSONResponse({"error": {"message": fault, "type": "test"}}, int(fault), headers)
            case "hang":
                await asyncio.sleep(seconds or HANG_S)
            case "malformed":
                return Response(b'{"id": "x", "choices": [{"mess', media_type="application/json")
        told = f"{model}-2026" if fault == "renamed" else model
        stack = contextlib.AsyncExitStack()
        asked = ModelRequest(endpoint=endpoint, model=model, body=data)
        answer = await stack.enter_async_context(self._upstream(model).open(asked, told))

        async def chunks() -> AsyncIterator[bytes]:
            async with stack:
                async for chunk in answer.chunks:
                    if fault == "truncate":  # the first chunk may be the whole answer
                        yield chunk[: len(chunk) // 2]
                        raise ConnectionAbortedError("truncated on purpose")
                    yield chunk
                    if fault == "slow":
                        await asyncio.sleep(SLOW_S)

        return StreamingResponse(chunks(), answer.status, media_type=answer.content_type)

    def _upstream(self, model: str) -> ScriptedUpstream:
        found = self._scripted.get(model)
        if found is None:
            name = model.partition("@")[0]
            script = SCRIPTS.get(name, TALK)
            count = name.removeprefix(LONG)
            if name.startswith(LONG) and count.isdecimal():
                turns = [(_call("lookup", q=str(index)),) for index in range(int(count))]
                script = _trip(*turns)
            found = self._scripted[model] = ScriptedUpstream.of(
                Upstream(name="provider", wire="scripted"), script, _Chance()
            )
        return found

    def _note(self, endpoint: str, body: dict[str, Any], request: Request, fault: str) -> None:
        key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
        line = {
            "endpoint": endpoint,
            "model": body.get("model"),
            "results": held(body)[0],
            "stream": bool(body.get("stream")),
            "key": hashlib.sha256(key.encode()).hexdigest()[:12] if key else "",
            "idempotency_key": request.headers.get("idempotency-key", ""),
            "retry": request.headers.get("x-stainless-retry-count", ""),
            "fault": fault,
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


async def _object_of(request: Request) -> dict[str, Any]:
    """The body; empty if it is no JSON object."""
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _refusal(message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, 400)


class _Chance:
    def bits(self, count: int) -> int:
        return secrets.randbits(count)


def listening() -> socket.socket:
    """A socket on a free port of this machine."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    bound.listen()  # who reads the port may connect at once, before the server has begun
    return bound


def main() -> None:
    """Serve until killed; the port is the first line of the output."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.provider", description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="takes a line of JSON for each call")
    parser.add_argument("--latency-ms", type=int, default=0, help="before each answer begins")
    asked = parser.parse_args()
    bound = listening()
    print(bound.getsockname()[1], flush=True)
    app = Provider(asked.log, asked.latency_ms).app()
    config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve(sockets=[bound]))


if __name__ == "__main__":
    main()
