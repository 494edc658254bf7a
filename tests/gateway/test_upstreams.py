"""Upstreams against real servers: what is sent, what comes back, who stands in when one fails."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perdure.core.errors import (
    DefinitionError,
    ModelUnknownError,
    RequestInvalidError,
    SecretUnknownError,
    UpstreamError,
    UpstreamInvalidError,
)
from perdure.core.models import ModelRequest, Price, Upstream
from perdure.models import http_upstream
from perdure.models.upstreams import ConfiguredUpstreams

KEY = "sk-real-0123456789"
Handler = Callable[[Request, bytes], Awaitable[Response]]


class Keys:
    """A secrets port over a dictionary."""

    def __init__(self, **values: str) -> None:
        self.values = values
        self.asked: list[str] = []

    def resolve(self, reference: str) -> str:
        self.asked.append(reference)
        name = reference.removeprefix("secret://")
        if name not in self.values:
            raise SecretUnknownError(f"nothing is called `{name}`")
        return self.values[name]

    def known_values(self) -> tuple[str, ...]:
        return tuple(self.values.values())


class Fake:
    """A server that answers as the test says, one handler after the other; the last one for good."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.requests: list[tuple[Request, bytes]] = []
        self.url = ""

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append((request, body))
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        return await handler(request, body)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Fake]:
        app = Starlette(routes=[Route("/v1/{rest:path}", self.answer, methods=["POST"])])
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # asyncio leaves it out for given sockets
            self.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[sock]))
                try:
                    yield self
                finally:
                    server.should_exit = True


@contextlib.asynccontextmanager
async def raw(*parts: bytes, hang: bool = False) -> AsyncIterator[str]:
    """A server that writes exactly these bytes to each connection, then closes it (or says nothing more)."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if hang:
            await gone.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        gone.set()
        server.close()
        await server.wait_closed()


def replies(status: int = 200, text: str = "{}", **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(request: Request, body: bytes) -> Response:
        return Response(text, status_code=status, media_type="application/json", headers=named)

    return handler


def upstream(url: str, name: str = "one", **fields: object) -> Upstream:
    return Upstream(name=name, base_url=url, **{"key": "secret://key", **fields})


def asking(model: str = "gpt-4o", endpoint: str = "chat/completions", **fields: object) -> ModelRequest:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    return ModelRequest(endpoint=endpoint, model=model, **{"body": body, "key": "run-1/7", **fields})


@contextlib.asynccontextmanager
async def configured(*upstreams: Upstream, keys: Keys | None = None) -> AsyncIterator[ConfiguredUpstreams]:
    made = ConfiguredUpstreams(upstreams, keys or Keys(key=KEY))
    try:
        yield made
    finally:
        await made.close()


async def ask(upstreams: ConfiguredUpstreams, request: ModelRequest) -> tuple[int, bytes, str]:
    async with upstreams.open(request) as answer:
        return answer.status, b"".join([chunk async for chunk in answer.chunks]), answer.upstream


async def test_a_request_is_sent_as_it_came_with_the_real_key_and_the_idempotency_key() -> None:
    async with (
        Fake(replies(x_request_id="r-1", set_cookie="a=b")).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
    ):
        body = b'{ "model":"gpt-4o",  "odd": 1.50, "odd": 2 }'
        client = (("authorization", "Bearer run-token"), ("cookie", "a=b"), ("OpenAI-Beta", "x=1"))
        async with upstreams.open(asking(body=body, headers=client)) as answer:
            assert [chunk async for chunk in answer.chunks] == [b"{}"]
            assert (answer.status, answer.content_type) == (200, "application/json")
            assert answer.headers == (("x-request-id", "r-1"),)
            assert (answer.upstream, answer.model) == ("one", "gpt-4o")
        await ask(upstreams, asking())
    assert "cookie" not in fake.requests[1][0].headers  # the answer's own cookie is not kept either
    request, sent = fake.requests[0]
    assert sent == body
    assert request.url.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["idempotency-key"] == "run-1/7"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["openai-beta"] == "x=1"
    assert "cookie" not in request.headers


async def test_anthropic_gets_its_own_headers() -> None:
    async with (
        Fake(replies()).serving() as fake,
        configured(upstream(fake.url, wire="anthropic", models=("claude-*",))) as upstreams,
    ):
        await ask(upstreams, asking("claude-x", "messages"))
        newer = (("anthropic-version", "2030-01-01"), ("anthropic-beta", "b"), ("x-api-key", "token"))
        await ask(upstreams, asking("claude-x", "messages/count_tokens", headers=newer))
    first, second = (request for request, _ in fake.requests)
    assert (first.headers["x-api-key"], first.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in first.headers
    assert second.url.path == "/v1/messages/count_tokens"
    assert second.headers["x-api-key"] == KEY
    assert (second.headers["anthropic-version"], second.headers["anthropic-beta"]) == ("2030-01-01", "b")


async def test_a_renamed_model_changes_nothing_else_in_the_body() -> None:
    body = b'{"big": 123456789012345678901234567890, "model": "fast", "f": 1.50, "s": "\\u00e4"}'
    async with (
        Fake(replies()).serving() as fake,
        configured(upstream(fake.url, models=("gpt-4o",), rename={"fast": "gpt-4o"})) as upstreams,
    ):
        async with upstreams.open(asking("fast", body=body)) as answer:
            assert answer.model == "gpt-4o"
        with pytest.raises(RequestInvalidError, match="`fast` is to be renamed"):
            await ask(upstreams, asking("fast", body=b"[1"))
    sent = fake.requests[0][1]
    assert json.loads(sent) == {**json.loads(body), "model": "gpt-4o"}
    assert b"1.50" in sent
    assert b"\\u00e4" in sent


async def test_chunks_arrive_when_they_are_sent() -> None:
    gate = asyncio.Event()

    async def stream(request: Request, body: bytes) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await gate.wait()
            yield b"data: 2\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async with (
        Fake(stream).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
        upstreams.open(asking()) as answer,
    ):
        assert answer.content_type.startswith("text/event-stream")
        assert await anext(answer.chunks) == b"data: 1\n\n"
        gate.set()
        assert [chunk async for chunk in answer.chunks] == [b"data: 2\n\n"]


async def test_a_compressed_answer_arrives_decoded_and_an_unknown_encoding_is_refused() -> None:
    async def zipped(request: Request, body: bytes) -> Response:
        return Response(gzip.compress(b'{"a":1}'), headers={"content-encoding": "gzip"})

    async with (
        Fake(zipped, replies(content_encoding="zstd")).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
    ):
        assert await ask(upstreams, asking()) == (200, b'{"a":1}', "one")
        with pytest.raises(UpstreamInvalidError, match="`zstd`"):
            await ask(upstreams, asking())


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_other_refusals_are_answers_and_malformed_json_passes_unchanged(status: int) -> None:
    async with (
        Fake(replies(status, '{"error": nonsense')).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
    ):
        assert await ask(upstreams, asking()) == (status, b'{"error": nonsense', "one")
    assert len(fake.requests) == 1


@pytest.mark.parametrize("header", ["retry_after", "retry_after_ms", "date"])
async def test_after_429_the_upstream_is_asked_again_when_it_said(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in (
        "BACKOFF_FIRST_MS",
        "BACKOFF_MAX_MS",
    ):  # this wait would run into the time-out of the test
        monkeypatch.setattr(f"perdure.models.upstreams.{constant}", 120_000)
    if header == "date":  # measured against the upstream's own clock, which is years off here
        theirs = datetime(2020, 1, 1, tzinfo=UTC)
        later = theirs + timedelta(seconds=1)
        head = f"date: {format_datetime(theirs, usegmt=True)}\r\nretry-after: {format_datetime(later, usegmt=True)}\r\n"
        limited = raw(f"HTTP/1.1 429 Slow\r\n{head}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        async with limited as url, configured(upstream(url, attempts=1)) as upstreams:
            with pytest.raises(UpstreamError) as caught:
                await ask(upstreams, asking())
        assert caught.value.facts["retry_after_ms"] == 1_000
        return
    value = "0.05" if header == "retry_after" else "50"
    async with (
        Fake(replies(429, **{header: value}), replies()).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
    ):
        began = asyncio.get_running_loop().time()
        assert (await ask(upstreams, asking()))[0] == 200
        assert 0.04 < asyncio.get_running_loop().time() - began < 20
    assert len(fake.requests) == 2
    assert {request.headers["idempotency-key"] for request, _ in fake.requests} == {"run-1/7"}


async def test_a_long_retry_after_is_not_waited_for() -> None:
    async with (
        Fake(replies(429, f'{{"why": "{KEY}"}}', retry_after="120")).serving() as fake,
        configured(upstream(fake.url, attempts=3)) as upstreams,
    ):
        with pytest.raises(UpstreamError) as caught:
            await ask(upstreams, asking())
        facts = caught.value.facts
        assert (facts["status"], facts["retry_after_ms"]) == (429, 120_000)
        assert facts["body"] == '{"why": "[secret]"}'
        with pytest.raises(UpstreamError, match="asked not to be asked again"):
            await ask(upstreams, asking())  # nothing is sent while it rests
        assert len(fake.requests) == 1
        with pytest.raises(UpstreamError):
            await ask(upstreams, asking("another"))  # limits are per model
        assert len(fake.requests) == 2


async def test_who_asked_for_a_rest_is_left_alone_while_another_can_serve() -> None:
    async with (
        Fake(replies(429, retry_after="5"), replies()).serving() as one,
        Fake(replies()).serving() as two,
        configured(upstream(one.url, "one"), upstream(two.url, "two")) as upstreams,
    ):
        assert [(await ask(upstreams, asking()))[2] for _ in range(3)] == ["two"] * 3
        assert (await ask(upstreams, asking("other")))[2] == "one"
    assert len(one.requests) == 2


async def test_5xx_is_tried_again_and_then_the_next_upstream_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.models.upstreams.BACKOFF_FIRST_MS", 10)
    async with (
        Fake(replies(500, "first")).serving() as one,
        Fake(replies(text='"second"')).serving() as two,
        configured(upstream(one.url, attempts=3), upstream(two.url, "two")) as upstreams,
    ):
        assert await ask(upstreams, asking()) == (200, b'"second"', "two")
    assert (len(one.requests), len(two.requests)) == (3, 1)


async def test_who_failed_comes_last_for_a_while() -> None:
    async with (
        Fake(replies(500), replies()).serving() as one,
        Fake(replies(), replies(500)).serving() as two,
        configured(upstream(one.url, attempts=1), upstream(two.url, "two", attempts=1)) as upstreams,
    ):
        assert [(await ask(upstreams, asking()))[2] for _ in range(3)] == ["two", "one", "one"]
    assert (len(one.requests), len(two.requests)) == (3, 2)


async def test_when_nobody_answers_the_last_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.models.upstreams.BACKOFF_FIRST_MS", 10)
    async with (
        Fake(replies(503, "down")).serving() as fake,
        configured(upstream("http://127.0.0.1:1/v1"), upstream(fake.url, "two")) as upstreams,
    ):
        with pytest.raises(UpstreamError) as caught:
            await ask(upstreams, asking())
    facts = caught.value.facts
    assert (facts["status"], facts["body"], facts["retry_after_ms"]) == (503, "down", None)
    assert len(fake.requests) == 2


async def test_a_refused_connection_is_an_upstream_error_without_the_key() -> None:
    async with configured(upstream("http://127.0.0.1:1/v1", attempts=1)) as upstreams:
        with pytest.raises(UpstreamError, match="could not be reached") as caught:
            await ask(upstreams, asking())
        assert KEY not in repr(upstreams) + repr(caught.value.__cause__) + str(caught.value.facts)
        assert caught.value.facts["status"] is None


async def test_silence_before_the_head_is_not_asked_twice() -> None:
    async with (
        raw(hang=True) as url,
        Fake(replies()).serving() as fake,
        configured(upstream(url, silence_ms=80, attempts=5), upstream(fake.url, "two")) as upstreams,
    ):
        assert (await ask(upstreams, asking()))[2] == "two"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("parts", "hang", "match"),
    [
        ((HEAD + b"content-length: 100\r\n\r\ndata: 1\n\n",), False, "broke off"),
        ((HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",), False, "broke off"),
        ((HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",), True, "`silence_ms` of 80"),
    ],
)
async def test_an_answer_that_stops_too_early_is_an_error(
    parts: tuple[bytes, ...], hang: bool, match: str
) -> None:
    async with (
        raw(*parts, hang=hang) as url,
        configured(upstream(url, silence_ms=80)) as upstreams,
        upstreams.open(asking()) as answer,
    ):
        assert await anext(answer.chunks) == b"data: 1\n\n"
        with pytest.raises(UpstreamError, match=match) as caught:
            await anext(answer.chunks)
        assert caught.value.facts["status"] == 200


async def test_the_total_time_is_bounded_too() -> None:
    async def drip(request: Request, body: bytes) -> Response:
        async def events() -> AsyncIterator[bytes]:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.02)

        return StreamingResponse(events(), media_type="text/event-stream")

    async with (
        Fake(drip).serving() as fake,
        configured(upstream(fake.url, timeout_ms=150)) as upstreams,
        upstreams.open(asking()) as answer,
    ):
        with pytest.raises(UpstreamError, match="`timeout_ms` of 150"):
            async for _ in answer.chunks:
                pass


async def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_upstream, "ANSWER_BYTES_MAX", 1_000)
    async with Fake(replies(text="x" * 1_001)).serving() as fake, configured(upstream(fake.url)) as upstreams:
        with pytest.raises(UpstreamInvalidError, match="more than 1000 bytes"):
            await ask(upstreams, asking())


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    async with (
        Fake(replies()).serving() as thief,
        Fake(replies(307, location=f"{thief.url}/chat/completions")).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
    ):
        with pytest.raises(UpstreamInvalidError, match="redirect"):
            await ask(upstreams, asking())
    assert thief.requests == []


async def test_no_more_than_the_concurrency_are_in_flight() -> None:
    now = most = 0

    async def counted(request: Request, body: bytes) -> Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return JSONResponse({})

    async with Fake(counted).serving() as fake, configured(upstream(fake.url, concurrency=4)) as upstreams:
        answers = await asyncio.gather(*(ask(upstreams, asking()) for _ in range(64)))
        assert {status for status, _, _ in answers} == {200}
        # A reader that was cancelled gives its place back.
        async with asyncio.timeout(2):
            tasks = [asyncio.ensure_future(ask(upstreams, asking())) for _ in range(8)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(ask(upstreams, asking()) for _ in range(8)))
    assert most == 4


async def test_the_key_is_looked_up_at_each_dispatch_and_must_fit_a_header() -> None:
    keys = Keys(key="old")
    async with Fake(replies()).serving() as fake, configured(upstream(fake.url), keys=keys) as upstreams:
        assert keys.asked == []
        await ask(upstreams, asking())
        keys.values["key"] = "new"
        await ask(upstreams, asking())
        assert [request.headers["authorization"] for request, _ in fake.requests] == [
            "Bearer old",
            "Bearer new",
        ]
        keys.values["key"] = "sk-sch\u00f6n"
        with pytest.raises(DefinitionError, match="no header can hold") as caught:
            await ask(upstreams, asking())
        assert "sch" not in str(caught.value)
        keys.values.clear()
        with pytest.raises(SecretUnknownError):
            await ask(upstreams, asking())
    assert len(fake.requests) == 2


async def test_the_first_token_is_delayed_by_less_than_two_milliseconds() -> None:
    import httpx2

    async def tick(request: Request, body: bytes) -> Response:
        return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")

    async def took(first: Callable[[], Awaitable[None]]) -> float:
        began = asyncio.get_running_loop().time()
        await first()
        return asyncio.get_running_loop().time() - began

    async with (
        Fake(tick).serving() as fake,
        configured(upstream(fake.url)) as upstreams,
        httpx2.AsyncClient(trust_env=False) as client,
    ):

        async def bare() -> None:
            async with client.stream("POST", f"{fake.url}/chat/completions", content=asking().body) as answer:
                async for _ in answer.aiter_bytes():
                    pass

        async def ours() -> None:
            await ask(upstreams, asking())

        await bare()
        await ours()
        pairs = [(await took(bare), await took(ours)) for _ in range(60)]
    # The lower quartiles, taken in turn: a busy machine is not our doing.
    low, high = (sorted(times)[len(pairs) // 4] for times in zip(*pairs, strict=True))
    added_ms = (high - low) * 1000
    assert added_ms < 2, added_ms


def test_who_offers_what() -> None:
    url = "http://127.0.0.1:1/v1"
    upstreams = ConfiguredUpstreams(
        [
            upstream(url, "a", models=("gpt-*", "o3"), rename={"fast": "gpt-4o-mini"}),
            upstream(url, "b", wire="anthropic", models=("claude-opus",)),
        ],
        Keys(),
    )
    assert upstreams.names() == ["claude-opus", "fast", "o3"]
    for endpoint in ("chat/completions", "responses", "embeddings"):
        assert upstreams.offers("gpt-5", endpoint)
        assert upstreams.offers("fast", endpoint)
        assert not upstreams.offers("claude-opus", endpoint)
    for endpoint in ("messages", "messages/count_tokens"):
        assert upstreams.offers("claude-opus", endpoint)
        assert not upstreams.offers("gpt-5", endpoint)
    assert not upstreams.offers("gpt-5", "files")


async def test_an_unknown_model_is_refused_with_what_there_is() -> None:
    async with configured(upstream("http://127.0.0.1:1/v1", models=("gpt-4o",))) as upstreams:
        with pytest.raises(ModelUnknownError, match="offered are `gpt-4o`"):
            await ask(upstreams, asking("gpt-9"))
        with pytest.raises(ModelUnknownError, match="in another protocol"):
            await ask(upstreams, asking("gpt-4o", "messages"))


def test_prices_are_those_of_the_dearest_who_offers_the_model() -> None:
    url = "http://127.0.0.1:1/v1"
    cheap, dear = Price(input="1", output="10"), Price(input="2.5", output="9")
    one = upstream(url, "a", models=("m", "n"), prices={"m": cheap, "n": cheap})
    two = upstream(url, "b", models=("m*",), rename={"m": "m-2"}, prices={"m-2": dear})
    upstreams = ConfiguredUpstreams([one, two], Keys())
    assert upstreams.price("n") == cheap
    assert upstreams.price("m") == Price(input="2.5", output="10")
    assert upstreams.price("m-3") is None
    assert upstreams.price("x") is None


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"base_url": "127.0.0.1/v1"}, "starts with `https://`"),
        ({"concurrency": 0}, "`concurrency` 0"),
        ({"attempts": 0}, "`attempts` 0"),
        ({"prices": {"m": Price(input="-1")}}, "a price is `-1`"),
        ({"wire": "scripted"}, "expected a file"),
        ({"wire": "local", "path": "/nowhere.gguf"}, "expected a file"),
    ],
)
def test_what_cannot_work_is_refused_at_start(fields: dict[str, object], match: str) -> None:
    made = Upstream(**{"name": "one", "base_url": "http://127.0.0.1:1/v1", **fields})
    with pytest.raises(DefinitionError, match=match):
        ConfiguredUpstreams([made], Keys())
