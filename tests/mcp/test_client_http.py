"""The MCP client over HTTP: both protocols, and servers that break in each of the ways that decide about doubt."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from perdure.core.errors import ToolDoubtfulError, ToolFailedError, ToolUnreachableError
from perdure.core.tools import ToolOutput, ToolUse
from perdure.tools.mcp_client import McpToolset
from tests.mcp.desk import Desk, served, serving

Answer = Callable[[dict[str, Any]], Awaitable[Response | bytes | None]]


async def use(tools: McpToolset, name: str, **arguments: Any) -> ToolOutput:
    await tools.open()
    tool = next(tool for tool in await tools.tools() if tool.spec.name == name)
    return await tool.call(ToolUse(run="r", key="r/1", arguments=arguments))


class Old:
    """A server of 2025-11-25 with sessions; ``answer`` says what a use gets."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer
        self.sessions: set[str] = set()
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self.respond(request)
        await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405)
        message = await request.json()
        method, number = message.get("method"), message.get("id")
        headers: dict[str, str] = {}
        if method == "initialize":
            headers["mcp-session-id"] = f"session-{len(self.sessions)}"
            self.sessions.add(headers["mcp-session-id"])
            server = {"serverInfo": {"name": "old", "version": "0"}, "capabilities": {"tools": {}}}
            return self.result(number, {"protocolVersion": "2025-11-25", **server}, headers)
        if method == "server/discover":
            return JSONResponse(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "no session"}}, 400
            )
        if request.headers.get("mcp-session-id") not in self.sessions:
            return JSONResponse(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "gone"}}, 404
            )
        if number is None:
            return Response(status_code=202)
        if method == "tools/list":
            return self.result(number, {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}, {})
        self.seen.append(message["params"])
        told = await self.answer(message) if self.answer else None
        if isinstance(told, Response):
            return told
        return self.result(number, {"content": [{"type": "text", "text": "went"}]}, {})

    def result(self, number: Any, result: Any, headers: dict[str, str]) -> Response:
        return JSONResponse({"jsonrpc": "2.0", "id": number, "result": result}, headers=headers)


@asynccontextmanager
async def old(answer: Answer | None = None, **settings: Any) -> AsyncIterator[tuple[Old, McpToolset]]:
    app = Old(answer)
    async with serving(app) as base:
        tools = McpToolset("old", url=f"{base}/mcp", **settings)
        try:
            yield app, tools
        finally:
            await tools.close()


async def test_it_speaks_2026_07_28() -> None:
    desk = Desk()
    async with served(desk) as url:
        tools = McpToolset(
            "new", url=url, headers={"authorization": "Bearer $T"}, resolve=lambda v: v.replace("$T", "desk")
        )
        output = await use(tools, "structured", a=1)
        assert output.value == {"sum": 3}
        assert (await use(tools, "test_error_handling")).is_error
        assert (await use(tools, "test_x_mcp_header", region="eu")).value == "routed"
        specs = {tool.spec.name: tool.spec for tool in await tools.tools()}
        assert (specs["structured"].recovery, specs["wait"].recovery) == ("pure", "opaque")
        assert tools._session is not None
        assert tools._session.protocol_version == "2026-07-28"
        await tools.close()
        with pytest.raises(ToolUnreachableError, match="is closed"):
            await tools.tools()


async def test_it_speaks_2025_11_25_and_passes_the_key() -> None:
    async with old() as (app, tools):
        assert (await use(tools, "go", a=1)).value == "went"
        assert tools._session is not None
        assert tools._session.protocol_version == "2025-11-25"
        assert app.seen[0]["_meta"]["dev.perdure/idempotency-key"] == "r/1"
        assert app.seen[0]["arguments"] == {"a": 1}


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tools = McpToolset("none", url=f"http://127.0.0.1:{port}/mcp")
    with pytest.raises(ToolUnreachableError, match="cannot be reached"):
        await tools.open()
    await tools.close()


async def test_a_server_that_went_away_was_not_reached() -> None:
    app = Old()
    async with serving(app) as base:
        tools = McpToolset("old", url=f"{base}/mcp")
        await tools.open()
        tool = (await tools.tools())[0]
    port = int(base.rsplit(":", 1)[1])
    with pytest.raises(ToolUnreachableError, match="was not used: it cannot be reached"):
        await tool.call(ToolUse(run="r", key="r/1", arguments={}))
    async with serving(app, port):
        assert (await tool.call(ToolUse(run="r", key="r/2", arguments={}))).value == "went"
        await tools.close()


async def test_a_forgotten_session_is_begun_anew() -> None:
    async with old() as (app, tools):
        await tools.open()
        for expected in (1, 2):
            app.sessions = {"unrelated"}
            tool = (await tools.tools())[0]
            app.sessions = {"unrelated"}
            assert (await tool.call(ToolUse(run="r", key="r/1", arguments={}))).value == "went"
            assert len(app.seen) == expected


async def _stream(*events: str) -> AsyncIterator[str]:
    for event in events:
        yield event


def _json(body: Any, status: int = 200) -> Response:
    return JSONResponse(body, status)


DOUBTFUL: dict[str, Callable[[dict[str, Any]], Response]] = {
    "status 500": lambda _: Response("oh no", 500),
    "status 503": lambda _: Response(status_code=503),
    "neither JSON nor a stream": lambda _: Response("<html>", 200, media_type="text/html"),
    "has more than": lambda _: StreamingResponse(
        _stream(*["x" * 1_000_000] * 20), media_type="application/json"
    ),
    "compressed": lambda _: Response(
        b"x", headers={"content-encoding": "gzip"}, media_type="application/json"
    ),
    "stream ended": lambda _: StreamingResponse(_stream(": nothing\n\n"), media_type="text/event-stream"),
    "stream failed": lambda _: StreamingResponse(
        _stream(*["data: " + "x" * 1_000_000] * 20), media_type="text/event-stream"
    ),
    "ValidationError": lambda message: _json(
        {"jsonrpc": "2.0", "id": message["id"], "result": {"content": 7}}
    ),
}
FAILED: dict[str, Callable[[dict[str, Any]], Response]] = {
    "status 401": lambda _: Response(status_code=401),
    "status 429": lambda _: Response("slow down", 429),
    "no such tool": lambda message: _json(
        {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32602, "message": "no such tool"}}, 400
    ),
    "bad session": lambda message: _json(
        {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32000, "message": "bad session"}}, 400
    ),
    "it broke inside": lambda message: _json(
        {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32603, "message": "it broke inside"}}
    ),
}


@pytest.mark.parametrize("said", DOUBTFUL)
async def test_no_usable_answer_leaves_doubt(said: str) -> None:
    async def answer(message: dict[str, Any]) -> Response:
        return DOUBTFUL[said](message)

    async with old(answer, timeout_ms=5_000) as (app, tools):
        with pytest.raises(ToolDoubtfulError, match=said):
            await use(tools, "go")
        assert len(app.seen) == 1


@pytest.mark.parametrize("said", FAILED)
async def test_a_clear_no_is_a_failure(said: str) -> None:
    async def answer(message: dict[str, Any]) -> Response:
        return FAILED[said](message)

    async with old(answer) as (app, tools):
        with pytest.raises(ToolFailedError, match=said):
            await use(tools, "go")
        assert len(app.seen) == 1


async def test_a_connection_that_breaks_leaves_doubt_and_others_alone() -> None:
    go = asyncio.Event()

    async def answer(message: dict[str, Any]) -> Response | None:
        if message["params"]["arguments"].get("slow"):
            await go.wait()
            return None
        raise ConnectionAbortedError

    class Rude(Old):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope, receive)
            try:
                response = await self.respond(request)
            except ConnectionAbortedError:
                # Half of an answer; the server closes the connection because the rest never comes.
                headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"{", "more_body": True})
                return
            await response(scope, receive, send)

    app = Rude(answer)
    async with serving(app) as base:
        tools = McpToolset("rude", url=f"{base}/mcp")
        await tools.open()
        tool = (await tools.tools())[0]
        slow = asyncio.create_task(tool.call(ToolUse(run="r", key="r/1", arguments={"slow": True})))
        with pytest.raises(ToolDoubtfulError, match="connection broke"):
            await tool.call(ToolUse(run="r", key="r/2", arguments={}))
        go.set()
        assert (await slow).value == "went"
        await tools.close()


async def test_no_answer_in_time_is_doubt() -> None:
    never = asyncio.Event()

    async def answer(message: dict[str, Any]) -> None:
        await never.wait()

    async with old(answer, timeout_ms=200) as (_, tools):
        with pytest.raises(ToolDoubtfulError, match="did not answer within 200 ms"):
            await use(tools, "go")
        never.set()


async def test_nobody_answers_for_a_human() -> None:
    """A server of 2026-07-28 that wants an approval gets none, and the tool is not asked again."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await Request(scope, receive).json()
        method = message["method"]
        seen.append(method)
        result: dict[str, Any] = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        if method == "server/discover":
            result |= {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
        elif method == "tools/list":
            result |= {
                "tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("pay", "plain")]
            }
        elif message["params"]["name"] == "plain":
            result = {"content": [{"type": "text", "text": "no resultType"}]}
        else:
            form = {
                "mode": "form",
                "message": "approve?",
                "requestedSchema": {"type": "object", "properties": {}},
            }
            wanted = {"a": {"method": "elicitation/create", "params": form}}
            result = {"resultType": "input_required", "inputRequests": wanted, "requestState": "s"}
        body = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        await Response(json.dumps(body), media_type="application/json")(scope, receive, send)

    async with serving(app) as base:
        tools = McpToolset("pay", url=base)
        with pytest.raises(ToolFailedError, match="may not answer for a human"):
            await use(tools, "pay")
        assert seen.count("tools/call") == 1
        assert (await use(tools, "plain")).value == "no resultType"
        await tools.close()
