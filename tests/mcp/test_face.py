"""The MCP face over real HTTP: both protocols, refusals, long calls, clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
import pytest

from perdure.hosting import mcp_calls, mcp_face
from tests.mcp.desk import Desk, served

MODERN = "2026-07-28"
TASKS = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def url(desk: Desk) -> AsyncIterator[str]:
    async with served(desk, task_after_ms=100) as found:
        yield found


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        yield client


def modern(
    method: str, capabilities: Mapping[str, Any] | None = None, meta: Any = None, **params: Any
) -> dict[str, Any]:
    """What to post for a 2026-07-28 request."""
    envelope = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": capabilities or {},
        **(meta or {}),
    }
    headers = {
        "mcp-protocol-version": MODERN,
        "mcp-method": method,
        "accept": "application/json, text/event-stream",
    }
    name = params.get("name", params.get("taskId"))
    if name:
        headers["mcp-name"] = name
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": envelope}}
    return {"json": body, "headers": headers}


def old(method: str, **params: Any) -> dict[str, Any]:
    """What to post for a 2025-11-25 request."""
    headers = {"mcp-protocol-version": "2025-11-25", "accept": "application/json, text/event-stream"}
    return {"json": {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, "headers": headers}


async def ask(http: httpx2.AsyncClient, url: str, what: dict[str, Any]) -> dict[str, Any]:
    response = await http.post(url, **what)
    if response.headers["content-type"].startswith("text/event-stream"):
        return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")][-1]
    return response.json()


async def test_both_protocols_find_and_use_tools(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    found = (await ask(http, url, modern("server/discover")))["result"]
    assert found["supportedVersions"][0] == MODERN
    assert found["resultType"] == "complete"
    begun = await ask(http, url, old("initialize", protocolVersion="2025-11-25"))
    assert begun["result"]["protocolVersion"] == "2025-11-25"
    assert (await ask(http, url, old("initialize", protocolVersion="1999-01-01")))["result"][
        "protocolVersion"
    ] == "2025-11-25"
    assert (await ask(http, url, old("ping")))["result"] == {}
    for listed in (await ask(http, url, modern("tools/list")), await ask(http, url, old("tools/list"))):
        tools = {tool["name"]: tool for tool in listed["result"]["tools"]}
        assert tools["test_simple_text"]["annotations"] == {
            "readOnlyHint": True,
            "destructiveHint": False,
            "idempotentHint": True,
        }
        assert tools["wait"]["annotations"] == {
            "readOnlyHint": False,
            "destructiveHint": True,
            "idempotentHint": False,
        }
    for what in (modern, old):
        result = (await ask(http, url, what("tools/call", name="structured", arguments={"a": 1})))["result"]
        assert result["structuredContent"] == {"sum": 3}
        assert json.loads(result["content"][0]["text"]) == {"sum": 3}
    assert desk.used == [("structured", {"a": 1})] * 2


async def test_meta_and_sessions_change_nothing(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    meta = {
        "progressToken": "p",
        "run": "other",
        "dev.perdure/idempotency-key": "forged",
        "traceparent": "00-1-2-01",
    }
    what = modern("tools/call", meta=meta, name="structured", arguments={"a": 1})
    what["headers"] |= {"mcp-session-id": "another", "last-event-id": "7"}
    assert "result" in await ask(http, url, what)
    assert desk.used == [("structured", {"a": 1})]


async def test_the_trace_is_entered_where_a_use_begins(http: httpx2.AsyncClient, desk: Desk) -> None:
    seen: list[Mapping[str, str]] = []

    @contextlib.contextmanager
    def trace(found: Mapping[str, str]) -> Iterator[None]:
        seen.append(found)
        yield

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with served(desk, trace=trace) as url:
        await ask(
            http, url, modern("tools/call", meta={"traceparent": parent}, name="structured", arguments={})
        )
        await ask(http, url, modern("tools/call", meta={"traceparent": 7}, name="structured", arguments={}))
    assert seen == [{"traceparent": parent}]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("refused", "budget-exhausted"),
        ("unavailable", "tool-unreachable"),
        ("failed", "tool-failed"),
        ("arguments", "arguments-invalid"),
    ],
)
async def test_what_a_model_can_deal_with_is_a_result(
    http: httpx2.AsyncClient, url: str, error: str, code: str
) -> None:
    for what in (modern, old):
        result = (await ask(http, url, what("tools/call", name="raise", arguments={"error": error})))[
            "result"
        ]
        assert result["isError"] is True
        assert result["content"][0]["text"].startswith(f"{code}: ")
        assert result["_meta"]["dev.perdure/error"] == {"code": code}


async def test_mistakes_of_the_program_are_errors(http: httpx2.AsyncClient, url: str) -> None:
    unknown = await http.post(url, **modern("tools/call", name="nope", arguments={}))
    assert unknown.status_code == 400
    assert unknown.json()["error"]["code"] == -32602
    assert unknown.json()["error"]["data"] == {"code": "tool-unknown"}
    unknown = await http.post(url, **old("tools/call", name="nope", arguments={}))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (200, -32602)
    ended = await ask(http, url, modern("tools/call", name="raise", arguments={"error": "ended"}))
    assert ended["error"]["data"] == {"code": "run-ended"}
    for params in ({"name": 7}, {"name": "wait", "arguments": [1]}):
        assert (await ask(http, url, old("tools/call", **params)))["error"]["code"] == -32602
    bug = await ask(http, url, modern("tools/call", name="bug", arguments={}))
    assert bug["error"]["code"] == -32603
    assert "secret insides" not in json.dumps(bug)
    missing = await http.post(url, **modern("prompts/list"))
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, -32601)
    assert (await ask(http, url, old("tools/list", cursor="x")))["error"]["code"] == -32602


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 200_000, -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32602),
    ],
)
async def test_bodies_that_are_no_requests(
    http: httpx2.AsyncClient, url: str, body: bytes, code: int
) -> None:
    response = await http.post(url, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


async def test_headers_and_body_must_agree(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    for header, value in (("mcp-name", "other"), ("mcp-method", "tools/list"), ("mcp-name", "=?base64?!?=")):
        what = modern("tools/call", name="structured", arguments={})
        what["headers"][header] = value
        response = await http.post(url, **what)
        assert (response.status_code, response.json()["error"]["code"]) == (400, -32020)
    what = modern("tools/call", name="test_x_mcp_header", arguments={"region": "eu"})
    what["headers"]["mcp-param-region"] = "us"
    assert (await ask(http, url, what))["error"]["code"] == -32020
    assert desk.used == []


async def test_foreign_pages_methods_and_tokens_are_refused(
    http: httpx2.AsyncClient, url: str, desk: Desk
) -> None:
    what = modern("tools/call", name="structured", arguments={})
    for header in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        response = await http.post(url, json=what["json"], headers=what["headers"] | header)
        assert response.status_code == 403
    response = await http.post(
        url, json=what["json"], headers=what["headers"] | {"authorization": "Bearer forged"}
    )
    assert response.status_code == 401
    assert response.json()["error"]["data"] == {"code": "token-refused"}
    assert (await http.get(url)).status_code == 405
    assert (await http.delete(url)).status_code == 405
    assert (await http.post(url, content=b"{}")).status_code == 415
    assert desk.used == []
    fine = await http.post(
        url, json=what["json"], headers=what["headers"] | {"origin": "http://localhost:3000"}
    )
    assert fine.status_code == 200


async def test_a_body_of_100_mb_gets_a_clear_answer(http: httpx2.AsyncClient, url: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024 * 1024

    response = await http.post(url, content=body(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "over the limit of" in response.json()["error"]["message"]


async def test_notifications_and_answers_are_taken_and_dropped(http: httpx2.AsyncClient, url: str) -> None:
    what = old("notifications/initialized")
    del what["json"]["id"]
    assert (await http.post(url, **what)).status_code == 202
    assert (await http.post(url, json={"jsonrpc": "2.0", "id": 9, "result": {}})).status_code == 202


async def test_a_use_goes_on_when_its_client_is_gone(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    asked = asyncio.create_task(http.post(url, **modern("tools/call", name="wait", arguments={})))
    await desk.begun.wait()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    desk.go.set()
    async with asyncio.timeout(5):
        await desk.finished.wait()
    assert desk.done == ["wait"]
    assert len(desk.used) == 1


async def test_progress_comes_as_a_stream_and_the_result_last(http: httpx2.AsyncClient, url: str) -> None:
    what = modern("tools/call", meta={"progressToken": "p1"}, name="test_tool_with_progress", arguments={})
    response = await http.post(url, **what)
    assert response.headers["content-type"].startswith("text/event-stream")
    messages = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [message["params"] for message in messages[:-1]] == [
        {"progressToken": "p1", "progress": done, "total": 100, "message": f"at {done}"}
        for done in (0, 50, 100)
    ]
    assert messages[-1]["result"]["content"][0]["text"] == "done"


async def test_a_long_call_becomes_a_task(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    created = (await ask(http, url, modern("tools/call", TASKS, name="wait", arguments={})))["result"]
    assert (created["resultType"], created["status"]) == ("task", "working")
    task = created["taskId"]
    assert (await ask(http, url, modern("tasks/get", TASKS, taskId=task)))["result"][
        "statusMessage"
    ] == "waiting"
    desk.go.set()
    await desk.finished.wait()
    got = (await ask(http, url, modern("tasks/get", TASKS, taskId=task)))["result"]
    assert got["status"] == "completed"
    assert got["result"]["content"][0]["text"] == "waited"
    assert len(desk.used) == 1
    # Another run cannot see it, and a client that does not know tasks gets none.
    other = modern("tasks/get", TASKS, taskId=task)
    other["headers"]["authorization"] = "Bearer other"
    assert (await ask(http, url, other))["error"]["code"] == -32602
    assert (await ask(http, url, modern("tasks/get", taskId=task)))["error"]["code"] == -32021


async def test_a_cancelled_task_is_not_waited_for_but_goes_on(
    http: httpx2.AsyncClient, url: str, desk: Desk
) -> None:
    task = (await ask(http, url, modern("tools/call", TASKS, name="wait", arguments={})))["result"]["taskId"]
    assert (await ask(http, url, modern("tasks/cancel", TASKS, taskId=task)))["result"][
        "resultType"
    ] == "complete"
    assert (await ask(http, url, modern("tasks/get", TASKS, taskId=task)))["result"]["status"] == "cancelled"
    desk.go.set()
    await desk.finished.wait()
    assert (await ask(http, url, modern("tasks/get", TASKS, taskId=task)))["result"]["status"] == "cancelled"
    assert desk.done == ["wait"]


async def test_tasks_of_2025_11_25(http: httpx2.AsyncClient, url: str, desk: Desk) -> None:
    created = await ask(http, url, old("tools/call", name="wait", arguments={}, task={"ttl": 1000}))
    task = created["result"]["task"]["taskId"]
    assert [item["taskId"] for item in (await ask(http, url, old("tasks/list")))["result"]["tasks"]] == [task]
    result = asyncio.create_task(ask(http, url, old("tasks/result", taskId=task)))
    desk.go.set()
    found = (await result)["result"]
    assert found["content"][0]["text"] == "waited"
    assert found["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": task}
    assert (await ask(http, url, old("tasks/get", taskId=task)))["result"]["status"] == "completed"
    assert (await ask(http, url, old("tasks/cancel", taskId=task)))["error"]["code"] == -32602


async def test_a_long_call_without_tasks_is_a_stream_with_signs_of_life(
    http: httpx2.AsyncClient, url: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_face, "STREAM_AFTER_MS", 10)
    monkeypatch.setattr(mcp_face, "PING_S", 0.02)
    async with http.stream("POST", url, **old("tools/call", name="wait", arguments={})) as response:
        lines = response.aiter_lines()
        while await anext(lines) != ": still at work":
            pass
        desk.go.set()
        told = [json.loads(line[6:]) async for line in lines if line.startswith("data: ")]
    assert [message["result"]["content"][0]["text"] for message in told] == ["waited"]


async def test_calls_under_way_are_bounded(
    http: httpx2.AsyncClient, url: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_calls, "CALLS_MAX", 1)
    await ask(http, url, modern("tools/call", TASKS, name="wait", arguments={}))
    refused = await ask(http, url, modern("tools/call", name="structured", arguments={}))
    assert refused["error"]["message"].startswith("1 calls are under way already")
    desk.go.set()
    await desk.finished.wait()
    assert "result" in await ask(http, url, modern("tools/call", name="structured", arguments={}))


async def test_tasks_kept_are_bounded(
    http: httpx2.AsyncClient, url: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_calls, "TASKS_MAX", 2)
    tasks: list[str] = []
    for _ in range(4):
        created = await ask(http, url, old("tools/call", name="structured", arguments={}, task={}))
        tasks.append(created["result"]["task"]["taskId"])
        await ask(http, url, old("tasks/result", taskId=tasks[-1]))
    kept = [item["taskId"] for item in (await ask(http, url, old("tasks/list")))["result"]["tasks"]]
    assert kept == tasks[2:]


async def test_closing_ends_what_is_under_way(http: httpx2.AsyncClient, desk: Desk) -> None:
    from tests.mcp.desk import face, serving

    app = face(desk)
    async with serving(app) as base:
        what = old("tools/call", name="wait", arguments={})
        what["headers"]["accept"] = "application/json"
        asked = asyncio.create_task(ask(http, base, what))
        await desk.begun.wait()
        await app.close()
        assert (await asked)["error"]["message"] == "the runtime is stopping"
    assert desk.done == []


async def test_it_costs_well_under_two_milliseconds(url: str, desk: Desk) -> None:
    """The face itself, without a network: the request as the server gets it, the answer as it leaves."""
    from tests.mcp.desk import face

    app = face(desk)
    what = modern("tools/call", name="structured", arguments={"a": 1})
    body = json.dumps(what["json"]).encode()
    headers = [(key.encode(), value.encode()) for key, value in what["headers"].items()]
    headers += [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "query_string": b"", "headers": headers}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    times: list[float] = []
    for _ in range(200):
        began = time.perf_counter()
        await app({**scope}, receive, send)
        times.append(time.perf_counter() - began)
    assert sent[-2]["status"] == 200
    assert sorted(times)[100] < 0.002
