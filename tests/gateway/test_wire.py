"""Wire formats: what requests and answers say, however their bytes are cut."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core.errors import RequestInvalidError
from perdure.core.models import Usage
from perdure.gateway.wire import (
    EVENT_BYTES_MAX,
    AnswerFacts,
    AnswerReader,
    EventReader,
    error_body,
    read_request,
)

QUICK = settings(max_examples=100, deadline=None)
SSE, DOCUMENT = "text/event-stream; charset=utf-8", "application/json"


def read(
    endpoint: str, data: bytes, content_type: str = SSE, *, cuts: list[int] | None = None
) -> AnswerFacts:
    reader = AnswerReader(endpoint, content_type)
    at = 0
    for cut in sorted(cuts or []):
        reader.feed(data[at:cut])
        at = max(at, cut)
    reader.feed(data[at:])
    return reader.end()


def events(*bodies: Any, named: bool = False, end: str = "\n") -> bytes:
    lines = []
    for body in bodies:
        if named and isinstance(body, dict):
            lines.append(f"event: {body['type']}{end}")
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        lines.append(f"data: {text}{end}{end}")
    return "".join(lines).encode()


# -- samples
def chunk(
    delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    choices = (
        [] if delta is None else [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    common = {
        "id": "chatcmpl-B9x",
        "object": "chat.completion.chunk",
        "created": 1790055037,
        "model": "gpt-5-2025-08-07",
    }
    return {**common, "choices": choices, **more}


def part(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": arguments}
    if name is None:
        return {"tool_calls": [{"index": index, "function": function}]}
    call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, **function}}
    return {"tool_calls": [call]}


CHAT_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 10},
}
CHAT_PARTS = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Grüße 😀"}),
    chunk(part(0, "", "weather")),
    chunk(part(0, '{"city":')),
    chunk(part(0, '"Ulm"}')),
    chunk(part(1, "{}", "time")),
    chunk({}, "tool_calls"),
)
CHAT_STREAM = events(*CHAT_PARTS, chunk(usage=CHAT_USAGE), "[DONE]")
CHAT_FACTS = AnswerFacts(
    usage=Usage(input_tokens=120, output_tokens=30, cached_input_tokens=64),
    model="gpt-5-2025-08-07",
    minted_ids=("call_0", "call_1"),
    tool_names=("weather", "time"),
    text_size=23,
    finish="tool_calls",
    is_complete=True,
)
CHAT_DOCUMENT = {
    "id": "chatcmpl-B9x",
    "object": "chat.completion",
    "model": "gpt-5-2025-08-07",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Grüße 😀",
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Ulm"}'},
                    },
                    {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": CHAT_USAGE,
}

RESPONSE = {
    "id": "resp_68a",
    "object": "response",
    "status": "completed",
    "model": "gpt-5-2025-08-07",
    "error": None,
    "incomplete_details": None,
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Grüße 😀"}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_0",
            "name": "weather",
            "arguments": '{"city":"Ulm"}',
        },
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ],
    "usage": {
        "input_tokens": 120,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 10},
        "total_tokens": 150,
    },
}
RESPONSE_PARTS = (
    {
        "type": "response.created",
        "sequence_number": 0,
        "response": {**RESPONSE, "status": "in_progress", "output": [], "usage": None},
    },
    {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {"type": "message", "id": "msg_1", "content": []},
    },
    {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Grüße "},
    {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "😀"},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"city":"Ulm"}'},
    {"type": "response.output_item.done", "output_index": 1, "item": RESPONSE["output"][2]},  # type: ignore[index]
)
RESPONSE_STREAM = events(*RESPONSE_PARTS, {"type": "response.completed", "response": RESPONSE}, named=True)
RESPONSE_FACTS = AnswerFacts(
    usage=Usage(input_tokens=120, output_tokens=30, cached_input_tokens=64),
    model="gpt-5-2025-08-07",
    minted_ids=("call_0", "ws_1"),
    tool_names=("weather", "web_search_call"),
    text_size=21,
    finish="completed",
    is_complete=True,
)

MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "Grüße 😀"},
        {"type": "tool_use", "id": "toolu_01", "name": "weather", "input": {"city": "Ulm"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 20,
        "cache_creation_input_tokens": 36,
        "cache_read_input_tokens": 64,
        "output_tokens": 30,
    },
}
MESSAGE_HEAD = {
    **MESSAGE,
    "content": [],
    "stop_reason": None,
    "usage": {**MESSAGE["usage"], "output_tokens": 1},
}  # type: ignore[dict-item]
MESSAGE_PARTS = (
    {"type": "message_start", "message": MESSAGE_HEAD},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Grüße 😀"}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_01", "name": "weather", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": '{"city":"Ulm"}'},
    },
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 30},
    },
)
MESSAGE_STREAM = events(*MESSAGE_PARTS, {"type": "message_stop"}, named=True)
MESSAGE_FACTS = AnswerFacts(
    usage=Usage(input_tokens=120, output_tokens=30, cached_input_tokens=64, cache_write_tokens=36),
    model="claude-sonnet-5",
    minted_ids=("toolu_01",),
    tool_names=("weather",),
    text_size=23,
    finish="tool_use",
    is_complete=True,
)
STREAMS = [
    ("chat/completions", CHAT_STREAM, CHAT_FACTS),
    ("responses", RESPONSE_STREAM, RESPONSE_FACTS),
    ("messages", MESSAGE_STREAM, MESSAGE_FACTS),
]
DOCUMENTS = [
    ("chat/completions", CHAT_DOCUMENT, CHAT_FACTS),
    ("responses", RESPONSE, RESPONSE_FACTS),
    ("messages", MESSAGE, MESSAGE_FACTS),
]


# -- answers
@pytest.mark.parametrize(("endpoint", "data", "facts"), STREAMS)
def test_a_stream_says_the_same_however_it_is_cut(endpoint: str, data: bytes, facts: AnswerFacts) -> None:
    assert read(endpoint, data) == facts
    assert read(endpoint, data, cuts=list(range(len(data)))) == facts
    returned = data.replace(b"\n", b"\r\n")
    assert read(endpoint, returned) == read(endpoint, returned, cuts=list(range(len(returned)))) == facts
    bare = data.replace(b"\n", b"\r")
    assert read(endpoint, bare) == read(endpoint, bare, cuts=list(range(len(bare)))) == facts


@given(
    st.sampled_from(STREAMS),
    st.lists(st.integers(0, 4000), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@QUICK
def test_a_stream_says_the_same_however_it_is_cut_and_ended(
    sample: tuple[str, bytes, AnswerFacts], cuts: list[int], end: str
) -> None:
    endpoint, data, facts = sample
    noisy = b"\xef\xbb\xbf: hello\n\nretry: 10\nid: 7\n\n" + data.replace(b"data: ", b": keep-alive\ndata:")
    assert read(endpoint, noisy.replace(b"\n", end.encode()), cuts=cuts) == facts


@pytest.mark.parametrize(("endpoint", "body", "facts"), DOCUMENTS)
def test_a_document_says_what_its_stream_says(endpoint: str, body: Any, facts: AnswerFacts) -> None:
    data = json.dumps(body, indent=1).encode()
    assert read(endpoint, data, DOCUMENT, cuts=[3, 50, 51]) == facts
    assert read(endpoint, data, "", cuts=[1]) == facts  # some servers forget to say what they send


def test_a_stream_that_is_not_called_one_is_recognised() -> None:
    assert read("chat/completions", b"\n" + CHAT_STREAM, "text/plain") == CHAT_FACTS


@pytest.mark.parametrize(
    ("endpoint", "data", "finish"),
    [
        ("chat/completions", events(*CHAT_PARTS), "tool_calls"),  # no [DONE], but every choice finished
        ("chat/completions", events(chunk({"content": "a"}), "[DONE]"), ""),
        ("chat/completions", CHAT_STREAM[:-1], "tool_calls"),
        ("chat/completions", CHAT_STREAM.rstrip(), "tool_calls"),
        ("chat/completions", events(*CHAT_PARTS, chunk({"content": ""})), "tool_calls"),
        ("responses", events({"type": "response.incomplete", "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}}), "max_output_tokens"),
        ("messages", events({"type": "message_stop"}).rstrip(), ""),
        ("messages", MESSAGE_STREAM + events({"type": "a_new_event", "delta": 7, "message": []}), "tool_use"),
    ],
)  # fmt: skip
def test_a_stream_with_its_last_event_is_complete(endpoint: str, data: bytes, finish: str) -> None:
    facts = read(endpoint, data)
    assert (facts.is_complete, facts.problem, facts.finish) == (True, "", finish)


@pytest.mark.parametrize(
    ("endpoint", "data", "problem"),
    [
        ("chat/completions", b"", "ended before its last event"),
        ("chat/completions", events(*CHAT_PARTS[:-1]), "ended before its last event"),
        ("chat/completions", events(chunk({"content": "a"}, "stop"), chunk({"content": "b"}, index=1)), "ended before"),
        ("chat/completions", events(chunk({"content": "a"}), chunk({}, index=1), chunk({}, "stop")), "ended before"),
        ("chat/completions", events(chunk({"content": "a"}), "{nonsense", "[DONE]"), "an event is not JSON"),
        ("chat/completions", events(chunk({"content": "a"}))[:-9], "an event is not JSON"),
        ("chat/completions", events(chunk({"content": "a"}), {"error": {"message": "out of memory"}}, "[DONE]"), "says: out of memory"),
        ("chat/completions", events({"error": "queue full"}), "says: queue full"),
        ("responses", events(*RESPONSE_PARTS, named=True), "ended before its last event"),
        ("responses", events({"type": "error", "code": "server_error", "message": "overloaded"}), "says: overloaded"),
        ("messages", events(*MESSAGE_PARTS, named=True), "ended before its last event"),
        ("messages", events(*MESSAGE_PARTS[:3], {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "says: Overloaded"),
    ],
)  # fmt: skip
def test_a_stream_that_broke_off_or_failed_is_not_complete(endpoint: str, data: bytes, problem: str) -> None:
    facts = read(endpoint, data)
    assert not facts.is_complete and problem in facts.problem


@given(st.sampled_from(STREAMS), st.integers(0, 4000))
@QUICK
def test_no_beginning_of_a_stream_is_taken_for_all_of_it(
    sample: tuple[str, bytes, AnswerFacts], length: int
) -> None:
    endpoint, data, facts = sample
    last = {
        "chat/completions": b'"tool_calls"}]',
        "responses": b'"response.completed"',
        "messages": b'"message_stop"',
    }[endpoint]
    told = read(endpoint, data[:length])
    whole = last in data[:length] and length >= len(data.rstrip())
    assert told.is_complete or not whole
    if not told.is_complete:
        assert told.problem
    elif endpoint != "chat/completions":  # chat is complete with the end of its choices
        assert told == facts


def test_a_response_that_says_it_failed_is_a_whole_answer_with_a_problem() -> None:
    failed = {
        **RESPONSE,
        "status": "failed",
        "error": {"code": "server_error", "message": "the model broke"},
        "output": [],
    }
    for facts in (
        read("responses", events({"type": "response.failed", "response": failed})),
        read("responses", json.dumps(failed).encode(), DOCUMENT),
    ):
        assert facts.is_complete and facts.finish == "failed"
        assert facts.problem == "the response failed: the model broke"


@pytest.mark.parametrize(
    ("endpoint", "data", "problem"),
    [
        ("chat/completions", b"", "not the JSON"),
        ("chat/completions", json.dumps(CHAT_DOCUMENT).encode()[:-5], "not the JSON"),
        ("chat/completions", b"<html>bad gateway</html>", "not the JSON"),
        ("chat/completions", b"[1]", "not the JSON"),
        ("chat/completions", b'{"error":{"message":"no such model","type":"invalid_request_error"}}', "says: no such model"),
        ("responses", b'{"error":{"message":"no such model"}}', "says: no such model"),
        ("messages", b'{"type":"error","error":{"type":"not_found_error","message":"no such model"}}', "says: no such model"),
    ],
)  # fmt: skip
def test_a_document_that_is_no_answer_is_not_complete(endpoint: str, data: bytes, problem: str) -> None:
    facts = read(endpoint, data, DOCUMENT)
    assert not facts.is_complete and problem in facts.problem


def test_an_answer_of_an_odd_shape_is_still_paid_for() -> None:
    odd = {"model": "m", "choices": {"0": "x"}, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    facts = read("chat/completions", json.dumps(odd).encode(), DOCUMENT)
    assert facts.is_complete and facts.usage == Usage(input_tokens=3, output_tokens=4) and facts.model == "m"


@pytest.mark.parametrize(
    ("endpoint", "body", "usage"),
    [
        ("embeddings", {"object": "list", "model": "e", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(input_tokens=8)),
        ("messages/count_tokens", {"input_tokens": 2095}, None),  # a count, nothing was used
        ("chat/completions", {"choices": []}, None),
        ("chat/completions", {"choices": [], "usage": None}, None),
        ("chat/completions", {"usage": {"prompt_tokens": True, "completion_tokens": -1, "prompt_tokens_details": None}}, None),
        ("messages", {"usage": {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": None}}, Usage(input_tokens=5, output_tokens=6)),
    ],
)  # fmt: skip
def test_usage_is_what_the_upstream_says_and_nothing_else(
    endpoint: str, body: Any, usage: Usage | None
) -> None:
    facts = read(endpoint, json.dumps(body).encode(), DOCUMENT)
    assert facts.usage == usage and facts.is_complete


def test_a_chat_stream_without_usage_says_none_and_its_size() -> None:
    facts = read("chat/completions", events(*CHAT_PARTS, "[DONE]"))
    assert facts.usage is None and facts.text_size == CHAT_FACTS.text_size


@given(
    st.binary(max_size=200),
    st.sampled_from(["chat/completions", "responses", "messages"]),
    st.sampled_from([SSE, DOCUMENT, ""]),
)
@QUICK
def test_a_reader_takes_any_bytes(data: bytes, endpoint: str, content_type: str) -> None:
    facts = read(endpoint, data, content_type, cuts=[1, 7, 30])
    assert facts.is_complete or facts.problem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "error",
                    "usage",
                    "type",
                    "item",
                    "response",
                    "output",
                    "index",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.sampled_from(["chat/completions", "responses", "messages"]))
@QUICK
def test_a_reader_takes_any_json(bodies: list[Any], endpoint: str) -> None:
    read(endpoint, events(*bodies))
    read(endpoint, json.dumps(bodies[0] if bodies else {}).encode(), DOCUMENT)


# -- events
def test_data_of_several_lines_is_joined() -> None:
    reader = EventReader()
    assert list(reader.feed(b"event: x\ndata: a\ndata:b\ndata\nid: 1\n\n\n: only a comment\n\ndata: c")) == [
        b"a\nb"
    ]
    assert list(reader.feed(b"\n\n")) == [b"c"]
    assert reader.end() is None
    assert [*reader.feed(b"data: a\r"), *reader.feed(b"\ndata: b\r\n\r"), *reader.feed(b"\n")] == [b"a\nb"]


@pytest.mark.parametrize("size", [EVENT_BYTES_MAX + 1, 3 * EVENT_BYTES_MAX])
@pytest.mark.parametrize("step", [64 * 1024, 32 * EVENT_BYTES_MAX])
def test_an_event_without_end_is_dropped_and_told(size: int, step: int) -> None:
    data = b"data: " + b"x" * size + b"\n\n" + events("[DONE]")
    facts = read("chat/completions", data, cuts=list(range(0, len(data), step)))
    assert not facts.is_complete and "larger" in facts.problem
    reader = EventReader(limit=10)
    assert list(reader.feed(b"data: " + b"y" * 30)) == list(reader.feed(b"y" * 30 + b"\n")) == []
    assert list(reader.feed(b"\ndata: z\n\n")) == [b"z"] and reader.dropped == 1


def test_a_long_stream_keeps_little() -> None:
    reader = AnswerReader("chat/completions", SSE)
    piece = events(chunk({"content": "word "})) * 40
    reader.feed(piece)
    tracemalloc.start()
    try:
        for _ in range(200):
            reader.feed(piece)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 64 * 1024


def test_streams_are_read_fast() -> None:
    piece = events(*(chunk({"content": " word"}) for _ in range(8)))
    reader = AnswerReader("chat/completions", SSE)
    rate = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(500):
            reader.feed(piece)
        rate = max(rate, 500 * len(piece) / (time.perf_counter() - begin))
    assert rate > 20_000_000  # bytes a second; ten times as much on an idle machine


# -- requests
@pytest.mark.parametrize(
    ("endpoint", "body", "limit", "tools"),
    [
        (
            "chat/completions",
            {"max_tokens": 7, "tools": [{"type": "function", "function": {"name": "a"}}]},
            7,
            ("a",),
        ),
        ("chat/completions", {"max_completion_tokens": 8, "max_tokens": None, "stream": True}, 8, ()),
        (
            "responses",
            {"max_output_tokens": 9, "input": "hi", "tools": [{"type": "function", "name": "b"}]},
            9,
            ("b",),
        ),
        ("messages", {"max_tokens": 10, "tools": [{"name": "c", "input_schema": {}}]}, 10, ("c",)),
        ("embeddings", {"input": ["x"]}, None, ()),
    ],
)
def test_a_request_says_what_the_gateway_needs(
    endpoint: str, body: dict[str, Any], limit: int | None, tools: tuple[str, ...]
) -> None:
    data = json.dumps({"model": "m", **body}).encode()
    facts = read_request(endpoint, data)
    assert (facts.model, facts.output_tokens_max, facts.tools) == ("m", limit, tools)
    assert facts.is_stream is bool(body.get("stream")) and facts.input_bytes == len(data)
    assert facts.data == {"model": "m", **body}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is a list, expected an object"),
        (b"null", "is null, expected an object"),
        (b"{}", "names no model (found nothing)"),
        (b'{"model":""}', "found an empty string"),
        (b'{"model":" "}', "found an empty string"),
        (b'{"model":5}', "found a number"),
        (b'{"model":"m","stream":"yes"}', "has a string in `stream`, expected a boolean"),
        (b'{"model":"m","messages":{}}', "has an object in `messages`, expected a list"),
        (b'{"model":"m","tools":"x"}', "has a string in `tools`, expected a list"),
        (b'{"model":"m","max_tokens":"7"}', "has a string in `max_tokens`, expected a number of tokens"),
        (b'{"model":"m","max_tokens":-7}', "has `-7` in `max_tokens`"),
        (b'{"model":"m","max_output_tokens":1.5}', "has `1.5` in `max_output_tokens`"),
        (b'{"model":"m","max_tokens":true}', "has `True` in `max_tokens`"),
    ],
)
def test_a_request_that_is_none_is_refused_with_advice(body: bytes, problem: str) -> None:
    with pytest.raises(RequestInvalidError) as caught:
        read_request("chat/completions", body)
    assert problem in caught.value.message and "`chat/completions`" in caught.value.message
    assert "; s" in caught.value.message  # what to do: send or set something
    assert caught.value.facts["endpoint"] == "chat/completions"


@pytest.mark.parametrize(
    ("endpoint", "status", "kind"),
    [
        ("chat/completions", 400, "invalid_request_error"),
        ("responses", 429, "rate_limit_error"),
        ("embeddings", 503, "server_error"),
        ("messages", 402, "invalid_request_error"),
        ("messages", 404, "not_found_error"),
        ("messages/count_tokens", 529, "overloaded_error"),
        ("messages", 502, "api_error"),
    ],
)
def test_an_error_is_told_in_the_words_of_the_protocol(endpoint: str, status: int, kind: str) -> None:
    told = msgspec.json.decode(error_body(endpoint, "budget-exhausted", "the budget is used up", status))
    if endpoint.startswith("messages"):
        assert told == {
            "type": "error",
            "error": {"type": kind, "message": "budget-exhausted: the budget is used up"},
        }
    else:
        error = {"message": "the budget is used up", "type": kind, "param": None, "code": "budget-exhausted"}
        assert told == {"error": error}
    assert not read(endpoint, msgspec.json.encode(told), DOCUMENT).is_complete
