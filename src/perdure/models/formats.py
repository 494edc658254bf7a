"""Answers made in this process, in the wire formats of OpenAI and Anthropic: as one document, or as a stream.

For upstreams that have no server of their own. What they say is a :class:`Said`; nothing here decides what that is.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

EMBEDDING_DIMENSIONS = 16  # where the request says nothing
EMBEDDING_DIMENSIONS_MAX = 4_096  # the longest vectors that real models give
STREAM_TYPE = "text/event-stream"
JSON_TYPE = "application/json"

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call that the model asks for; ``arguments`` are JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a model answers.

    Attributes:
        model: as the request named it.
        text: what it says, before its calls if there are any.
        calls: the tools that it asks for.
        input_tokens: how long the request was.
        output_tokens: how long the answer is.
        new_id: makes an id from a prefix such as ``call``; each time another one.
        is_cut: the answer ended because its tokens ran out.
    """

    model: str
    text: str
    calls: tuple[Call, ...]
    input_tokens: int
    output_tokens: int
    new_id: Callable[[str], str]
    is_cut: bool = False


def chat(said: Said) -> bytes:
    """A ``chat.completion``."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None}
    if said.calls:
        message["tool_calls"] = [_chat_call(said, call) for call in said.calls]
    choice = {"index": 0, "message": message, "finish_reason": _chat_reason(said), "logprobs": None}
    head = _chat_head(said, "chat.completion")
    return _encode({**head, "choices": [choice], "usage": _chat_usage(said)})


def chat_stream(said: Said, *, with_usage: bool) -> Iterator[bytes]:
    """The events of a ``chat.completion.chunk`` stream; usage comes only for those who asked for it."""
    head = _chat_head(said, "chat.completion.chunk")

    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _data({**head, "choices": [choice]})

    yield event({"role": "assistant", "content": "" if said.text else None})
    for part in _pieces(said.text):
        yield event({"content": part})
    for index, call in enumerate(said.calls):
        whole = _chat_call(said, call)
        opened = {**whole, "index": index, "function": {"name": call.name, "arguments": ""}}
        yield event({"tool_calls": [opened]})
        for part in _pieces(call.arguments):
            yield event({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield event({}, _chat_reason(said))
    if with_usage:
        yield _data({**head, "choices": [], "usage": _chat_usage(said)})
    yield b"data: [DONE]\n\n"


def responses(said: Said) -> bytes:
    """A ``response``."""
    return _encode(_response(_response_head(said), said, _response_items(said)))


def responses_stream(said: Said) -> Iterator[bytes]:
    """The events of a ``response`` stream."""
    head, items = _response_head(said), _response_items(said)
    begun = {**head, "status": "in_progress", "output": [], "usage": None}
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return _event(kind, {"type": kind, "sequence_number": number - 1, **fields})

    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(items):
        where = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            part = item["content"][0]
            place = {**where, "content_index": 0}
            opened = {**item, "status": "in_progress", "content": []}
            yield event("response.output_item.added", output_index=index, item=opened)
            yield event("response.content_part.added", **place, part={**part, "text": ""})
            for piece in _pieces(part["text"]):
                yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
            yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **place, part=part)
        else:
            opened = {**item, "status": "in_progress", "arguments": ""}
            yield event("response.output_item.added", output_index=index, item=opened)
            for piece in _pieces(item["arguments"]):
                yield event("response.function_call_arguments.delta", **where, delta=piece)
            text = item["arguments"]
            yield event("response.function_call_arguments.done", **where, name=item["name"], arguments=text)
        yield event("response.output_item.done", output_index=index, item=item)
    whole = _response(head, said, items)
    yield event("response.incomplete" if said.is_cut else "response.completed", response=whole)


def messages(said: Said) -> bytes:
    """A ``message``."""
    blocks = [whole for whole, _, _ in _blocks(said)]
    return _encode(_message(said, blocks, _stop_reason(said), said.output_tokens))


def messages_stream(said: Said) -> Iterator[bytes]:
    """The events of a ``message`` stream."""

    def event(kind: str, **fields: Any) -> bytes:
        return _event(kind, {"type": kind, **fields})

    yield event("message_start", message=_message(said, [], None, 1))
    for index, (whole, field, text) in enumerate(_blocks(said)):
        opened = {**whole, "text": ""} if field == "text" else {**whole, "input": {}}
        kind = "text_delta" if field == "text" else "input_json_delta"
        yield event("content_block_start", index=index, content_block=opened)
        for piece in _pieces(text):
            yield event("content_block_delta", index=index, delta={"type": kind, field: piece})
        yield event("content_block_stop", index=index)
    ending = {"stop_reason": _stop_reason(said), "stop_sequence": None}
    yield event("message_delta", delta=ending, usage={"output_tokens": said.output_tokens})
    yield event("message_stop")


def token_count(input_tokens: int) -> bytes:
    """The answer of ``messages/count_tokens``."""
    return _encode({"input_tokens": input_tokens})


def embeddings(
    model: str, texts: list[Any], *, dimensions: int | None, as_base64: bool, input_tokens: int
) -> bytes:
    """A list of embeddings: vectors of length 1 that depend on nothing but the text."""
    count = min(max(dimensions or EMBEDDING_DIMENSIONS, 1), EMBEDDING_DIMENSIONS_MAX)
    rows = []
    for index, text in enumerate(texts):
        vector = _vector(_encode(text), count)
        packed = base64.b64encode(struct.pack(f"<{count}f", *vector)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": packed if as_base64 else vector})
    usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return _encode({"object": "list", "data": rows, "model": model, "usage": usage})


def problem(endpoint: str, message: str) -> bytes:
    """What a real upstream sends with status 400."""
    error = {"type": "invalid_request_error", "message": message}
    if endpoint.startswith("messages"):
        return _encode({"type": "error", "error": error})
    return _encode({"error": {**error, "param": None, "code": None}})


# -- parts ------------------------------------------------------------------------------------
def _data(value: Any) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def _event(kind: str, value: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _data(value)


def _pieces(text: str) -> Iterator[str]:
    """Words with the space before them, about as long as tokens are."""
    start = 0
    while start < len(text):
        end = text.find(" ", start + 1)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


def _chat_head(said: Said, kind: str) -> dict[str, Any]:
    return {"id": said.new_id("chatcmpl"), "object": kind, "created": 0, "model": said.model}


def _chat_call(said: Said, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": said.new_id("call"), "type": "function", "function": function}


def _chat_reason(said: Said) -> str:
    if said.is_cut:
        return "length"
    return "tool_calls" if said.calls else "stop"


def _chat_usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
    }


def _response_head(said: Said) -> dict[str, Any]:
    return {
        "id": said.new_id("resp"),
        "object": "response",
        "created_at": 0,
        "model": said.model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _response(head: dict[str, Any], said: Said, items: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {
        "input_tokens": said.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": said.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": said.input_tokens + said.output_tokens,
    }
    ending: dict[str, Any] = {"status": "completed"}
    if said.is_cut:
        ending = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {**head, **ending, "output": items, "usage": usage}


def _response_items(said: Said) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if said.text or not said.calls:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        item = {"type": "message", "id": said.new_id("msg"), "role": "assistant", "status": "completed"}
        items.append({**item, "content": [part]})
    for call in said.calls:
        item = {"type": "function_call", "id": said.new_id("fc"), "call_id": said.new_id("call")}
        items.append({**item, "name": call.name, "arguments": call.arguments, "status": "completed"})
    return items


def _message(said: Said, blocks: list[Any], stop_reason: str | None, output_tokens: int) -> dict[str, Any]:
    return {
        "id": said.new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": said.input_tokens, "output_tokens": output_tokens},
    }


def _blocks(said: Said) -> list[tuple[dict[str, Any], str, str]]:
    """Each content block, the field of its deltas, and the text that they carry."""
    blocks: list[tuple[dict[str, Any], str, str]] = []
    if said.text or not said.calls:
        blocks.append(({"type": "text", "text": said.text}, "text", said.text))
    for call in said.calls:
        block = {"type": "tool_use", "id": said.new_id("toolu"), "name": call.name}
        whole = {**block, "input": msgspec.json.decode(call.arguments)}
        blocks.append((whole, "partial_json", call.arguments))
    return blocks


def _stop_reason(said: Said) -> str:
    if said.is_cut:
        return "max_tokens"
    return "tool_use" if said.calls else "end_turn"


def _vector(text: bytes, count: int) -> list[float]:
    data = hashlib.shake_256(text).digest(count * 2)
    numbers = [value - 32_767.5 for (value,) in struct.iter_unpack("<H", data)]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]
