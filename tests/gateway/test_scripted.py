"""Scripted answers: the right turn for each request, in wire formats that the official SDK reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from perdure.core.errors import DefinitionError
from perdure.core.models import ModelRequest, Upstream
from perdure.gateway.wire import AnswerReader
from perdure.models.upstreams import ConfiguredUpstreams

TURNS = [
    {
        "text": "Let me look.",
        "calls": [{"name": "lookup", "arguments": {"q": "hotel {random}"}}, {"name": "when"}],
    },
    {"calls": [{"name": "book", "arguments": {"item": "hotel", "n": 2}}]},
    {"text": "All is booked, reference {random}."},
    {"text": "You are welcome."},
]
CHAT_TOOLS = [
    {"type": "function", "function": {"name": f"mcp__shop__{n}"}} for n in ("lookup", "when", "book")
]


class NoSecrets:
    def resolve(self, reference: str) -> str:
        raise AssertionError(reference)

    def known_values(self) -> tuple[str, ...]:
        return ()


@pytest.fixture
def script(tmp_path: Path) -> Any:
    def made(**fields: Any) -> ConfiguredUpstreams:
        path = tmp_path / "script.json"
        path.write_text(json.dumps({"turns": TURNS, **fields}))
        return ConfiguredUpstreams([Upstream(name="s", wire="scripted", path=str(path))], NoSecrets())

    return made


async def ask(upstreams: ConfiguredUpstreams, endpoint: str, **body: Any) -> tuple[str, str]:
    data = json.dumps({"model": "m", **body}).encode()
    async with upstreams.open(ModelRequest(endpoint=endpoint, model="m", body=data)) as answer:
        assert answer.status == 200
        return answer.content_type, b"".join([chunk async for chunk in answer.chunks]).decode()


def events(text: str) -> list[dict[str, Any]]:
    """Server-sent events as a strict reader sees them: the name must be that of the data."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        if lines["data"] != "[DONE]":
            found.append(json.loads(lines["data"]))
            assert lines.get("event", found[-1].get("type")) == found[-1].get("type")
    return found


def results(count: int) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": str(n), "content": "ok"} for n in range(count)]


async def test_the_turn_is_read_from_the_request_alone(script: Any) -> None:
    upstreams = script(ids="counted")

    async def turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
        _, text = await ask(upstreams, "chat/completions", messages=messages, tools=CHAT_TOOLS)
        return json.loads(text)["choices"][0]

    first = await turn([])
    assert first["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in first["message"]["tool_calls"]] == [
        "mcp__shop__lookup",
        "mcp__shop__when",
    ]
    assert first["message"]["content"] == "Let me look."
    assert await turn([]) == first  # counted ids: the same request gets the same answer
    assert (await turn(results(1)))["message"][
        "content"
    ] == "Let me look."  # one of two results: not past yet
    second = await turn(results(2))
    assert json.loads(second["message"]["tool_calls"][0]["function"]["arguments"]) == {
        "item": "hotel",
        "n": 2,
    }
    third = await turn(results(3))
    assert (third["finish_reason"], third["message"]["content"][:14]) == ("stop", "All is booked,")
    said = {"role": "assistant", "content": "All is booked"}
    assert (await turn([*results(3), said]))["message"]["content"] == "You are welcome."
    assert (await turn([*results(9), said, said, said]))["message"]["content"] == "You are welcome."


async def test_without_tools_there_is_text_and_random_ids_differ(script: Any) -> None:
    upstreams = script()
    answers = [json.loads((await ask(upstreams, "chat/completions", messages=[]))[1]) for _ in range(2)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0].startswith("All is booked, reference ")
    assert texts[0] != texts[1]
    assert answers[0]["id"] != answers[1]["id"]


async def test_messages_and_their_stream_say_the_same(script: Any) -> None:
    upstreams = script(ids="counted")
    request = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "lookup"}],
        "max_tokens": 9,
    }
    kind, text = await ask(upstreams, "messages", **request)
    whole = json.loads(text)
    assert kind == "application/json"
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "tool_use")
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert whole["usage"]["input_tokens"] > 0

    kind, text = await ask(upstreams, "messages", stream=True, **request)
    assert kind == "text/event-stream"
    heard = events(text)
    assert (heard[0]["type"], heard[-1]["type"]) == ("message_start", "message_stop")
    blocks: list[dict[str, Any]] = []
    for event in heard:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[-1]["text"] += delta["text"]
            else:
                blocks[-1]["json"] += delta["partial_json"]
    assert blocks[0]["text"] == whole["content"][0]["text"]
    assert json.loads(blocks[1]["json"])["q"].startswith("hotel ")
    assert [block["name"] for block in blocks[1:]] == ["lookup", "when"]
    assert heard[-2]["delta"]["stop_reason"] == "tool_use"
    assert heard[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]

    done = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": str(n)} for n in range(3)]}]
    _, text = await ask(upstreams, "messages", **{**request, "messages": done})
    assert json.loads(text)["stop_reason"] == "end_turn"
    _, text = await ask(upstreams, "messages/count_tokens", **request)
    assert json.loads(text)["input_tokens"] > 0


async def test_a_broken_request_gets_status_400(script: Any) -> None:
    request = ModelRequest(endpoint="messages", model="m", body=b"[1")
    async with script().open(request) as answer:
        assert answer.status == 400
        text = b"".join([chunk async for chunk in answer.chunks])
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        ('{"turns": [{"words": ""}]}', "words"),
        ('{"turns": [], "latency_ms": 99999999}', "waits too long"),
        (json.dumps({"turns": [{}] * 1_001}), "1001 turns"),
    ],
)
def test_a_script_that_cannot_be_played_is_refused_at_start(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(text)
    with pytest.raises(DefinitionError, match=match):
        ConfiguredUpstreams([Upstream(name="s", wire="scripted", path=str(path))], NoSecrets())


@contextlib.asynccontextmanager
async def served(upstreams: ConfiguredUpstreams) -> AsyncIterator[str]:
    """The upstreams behind a real HTTP server, for clients that only speak HTTP."""

    async def handler(request: Request) -> StreamingResponse:
        body = await request.body()
        endpoint = request.path_params["endpoint"]
        stack = contextlib.AsyncExitStack()
        opened = upstreams.open(ModelRequest(endpoint=endpoint, model=json.loads(body)["model"], body=body))
        answer = await stack.enter_async_context(opened)

        async def chunks() -> AsyncIterator[bytes]:
            async with stack:
                async for chunk in answer.chunks:
                    yield chunk

        return StreamingResponse(chunks(), answer.status, media_type=answer.content_type)

    app = Starlette(routes=[Route("/v1/{endpoint:path}", handler, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # asyncio leaves it out for sockets it is given
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[sock]))
            try:
                yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
            finally:
                server.should_exit = True


async def test_the_official_sdk_reads_every_format_of_openai(script: Any) -> None:
    async with (
        served(script()) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": CHAT_TOOLS,
        }
        answer = await client.chat.completions.create(**asked)
        assert answer.choices[0].message.tool_calls[0].function.name == "mcp__shop__lookup"
        async with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
            final = await stream.get_final_completion()
        assert [call.function.name for call in final.choices[0].message.tool_calls] == [
            "mcp__shop__lookup",
            "mcp__shop__when",
        ]
        assert final.usage.completion_tokens == answer.usage.completion_tokens

        tools = [{"type": "function", "name": "lookup", "parameters": {"type": "object"}, "strict": False}]
        response = await client.responses.create(model="m", input="hi", tools=tools)
        assert response.output_text == "Let me look."
        assert [item.name for item in response.output if item.type == "function_call"] == ["lookup", "when"]
        async with client.responses.stream(model="m", input="hi", tools=tools) as stream:
            streamed = await stream.get_final_response()
        assert [item.type for item in streamed.output] == ["message", "function_call", "function_call"]
        assert streamed.usage.output_tokens == response.usage.output_tokens
        given = [{"type": "function_call_output", "call_id": str(n), "output": "ok"} for n in range(3)]
        ending = await client.responses.create(model="m", input=given, tools=tools)
        assert ending.output_text.startswith("All is booked")

        vectors = await client.embeddings.create(model="m", input=["a", "b"], dimensions=8)
        floats = await client.embeddings.create(model="m", input="a", dimensions=8, encoding_format="float")
        assert vectors.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
        assert vectors.data[0].embedding != vectors.data[1].embedding
        assert sum(number**2 for number in floats.data[0].embedding) == pytest.approx(1)


async def test_the_official_sdk_reads_the_format_of_anthropic(script: Any) -> None:
    async with (
        served(script()) as url,
        anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {
            "model": "m",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [
                {"name": name, "input_schema": {"type": "object"}}
                for name in ("mcp__shop__lookup", "mcp__shop__when")
            ],
        }
        whole = await client.messages.create(**asked)
        assert [block.type for block in whole.content] == ["text", "tool_use", "tool_use"]
        assert whole.stop_reason == "tool_use"
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        assert [block.model_dump() for block in streamed.content if block.type != "tool_use"] == [
            block.model_dump() for block in whole.content if block.type != "tool_use"
        ]
        calls = [
            [block for block in found.content if block.type == "tool_use"] for found in (whole, streamed)
        ]
        assert [[(call.name, list(call.input)) for call in found] for found in calls] == [
            [("mcp__shop__lookup", ["q"]), ("mcp__shop__when", [])]
        ] * 2
        assert streamed.usage.output_tokens == whole.usage.output_tokens
        counted = await client.messages.count_tokens(
            model="m", messages=asked["messages"], tools=asked["tools"]
        )
        assert counted.input_tokens > 0


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("endpoint", ["chat/completions", "responses", "messages"])
async def test_the_gateway_reads_every_format(script: Any, endpoint: str, is_stream: bool) -> None:
    field = "input" if endpoint == "responses" else "messages"
    options = {"stream_options": {"include_usage": True}} if endpoint == "chat/completions" else {}
    kind, text = await ask(script(), endpoint, stream=is_stream, **{field: []}, **options)
    reader = AnswerReader(endpoint, kind)
    reader.feed(text.encode())
    facts = reader.end()
    assert facts.is_complete, facts.problem
    assert facts.usage is not None
    assert facts.usage.input_tokens
    assert facts.usage.output_tokens
