"""What the answers of each protocol say, event by event or as one document.

Only fields that are read are declared, so the rest is skipped without being built. A field may be missing or be anything:
compatible servers take liberties, and what is not understood is left out rather than refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from perdure.core.models import Usage

TOOL_CALLS_MAX = 1_000  # tool calls and choices kept of one answer: no model asks for more at once
PROBLEM_TEXT_MAX = 500  # characters of what an upstream says went wrong


class Tally:
    """What an answer has said so far."""

    def __init__(self) -> None:
        self.model = ""
        self.ids: list[str] = []
        self.names: list[str] = []
        self.text_size = 0
        self.finish = ""
        self.problem = ""
        self.is_ended = False  # its last event was read
        self.is_broken = False  # what was read is no answer
        self.choices: dict[int, bool] = {}  # whether each choice of a stream has finished
        self.counts: dict[str, int] = {}

    def fail(self, problem: str) -> None:
        """It is no answer; the first reason counts."""
        self.problem = self.problem or problem[:PROBLEM_TEXT_MAX]
        self.is_broken = True

    def refuse(self, error: Any) -> None:
        """It says that it failed."""
        said = (
            error.get("message") or error.get("type") or error.get("code")
            if isinstance(error, dict)
            else error
        )
        self.fail(f"the upstream says: {said}")

    def named(self, model: Any) -> None:
        """It says who answers."""
        if isinstance(model, str) and model:
            self.model = model

    def asked(self, name: Any, call_id: Any) -> None:
        """It asks for a tool; the parts of one request may come more than once."""
        if isinstance(call_id, str) and call_id:
            if call_id in self.ids or len(self.ids) >= TOOL_CALLS_MAX:
                return
            self.ids.append(call_id)
        if isinstance(name, str) and name and len(self.names) < TOOL_CALLS_MAX:
            self.names.append(name)

    def wrote(self, *texts: Any) -> None:
        """It says something, in text, reasoning or arguments."""
        for text in texts:
            if isinstance(text, str):
                self.text_size += len(text)
            elif isinstance(text, list):
                parts = (part.get("text") for part in text if isinstance(part, dict))
                self.text_size += sum(len(part) for part in parts if isinstance(part, str))

    def count(self, name: str, value: Any) -> None:
        """It says a number of tokens; the last one counts."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            self.counts[name] = value

    def usage(self) -> Usage | None:
        """The tokens used, ``None`` if it said nothing of them."""
        counts = self.counts
        if not counts:
            return None
        fresh = counts.get("fresh")  # of Anthropic: without those read from and written to a cache
        total = counts.get("input")
        if fresh is not None:
            total = fresh + counts.get("cached", 0) + counts.get("written", 0)
        return Usage(
            input_tokens=total,
            output_tokens=counts.get("output"),
            cached_input_tokens=counts.get("cached"),
            cache_write_tokens=counts.get("written"),
        )


def _count_openai(tally: Tally, usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    tally.count("input", usage.get("prompt_tokens", usage.get("input_tokens")))
    tally.count("output", usage.get("completion_tokens", usage.get("output_tokens")))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    if isinstance(details, dict):
        tally.count("cached", details.get("cached_tokens"))
        tally.count("written", details.get("cache_write_tokens"))


def _count_anthropic(tally: Tally, usage: Any) -> None:
    if isinstance(usage, dict):
        tally.count("fresh", usage.get("input_tokens"))
        tally.count("output", usage.get("output_tokens"))
        tally.count("cached", usage.get("cache_read_input_tokens"))
        tally.count("written", usage.get("cache_creation_input_tokens"))


# -- chat/completions, embeddings
class _Function(Struct):
    name: Any = None
    arguments: Any = None


class _Call(Struct):
    id: Any = None
    function: _Function | None = None


class _Said(Struct):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(Struct):
    index: Any = 0
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: Any = None


class _Chat(Struct):
    model: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


def _read_chat(tally: Tally, chat: _Chat) -> None:
    if chat.error is not None:
        tally.refuse(chat.error)
    if chat.usage is not None:
        _count_openai(tally, chat.usage)
    tally.named(chat.model)
    for choice in chat.choices or ():
        said = choice.delta or choice.message
        if said is not None:
            _read_said(tally, said)
        _read_end(tally, choice)


def _read_end(tally: Tally, choice: _Choice) -> None:
    """Every choice of a stream has an end of its own; the last of them is that of the stream."""
    index = choice.index if isinstance(choice.index, int) else 0
    if isinstance(choice.finish_reason, str) and choice.finish_reason:
        tally.finish = choice.finish_reason
        tally.choices[index] = True
        tally.is_ended = all(tally.choices.values())
    elif index not in tally.choices and len(tally.choices) < TOOL_CALLS_MAX:
        tally.choices[index] = False
        tally.is_ended = False


def _read_said(tally: Tally, said: _Said) -> None:
    if said.content is not None:
        tally.wrote(said.content)
    if said.refusal is not None or said.reasoning_content is not None:
        tally.wrote(said.refusal, said.reasoning_content)
    for call in said.tool_calls or ():
        function = call.function or _Function()
        tally.asked(function.name, call.id)
        tally.wrote(function.arguments)
    if said.function_call is not None:
        tally.asked(said.function_call.name, None)
        tally.wrote(said.function_call.arguments)


# -- responses
class _Item(Struct):
    type: Any = None
    id: Any = None
    call_id: Any = None
    name: Any = None
    arguments: Any = None
    input: Any = None
    content: Any = None


class _Response(Struct):
    model: Any = None
    usage: Any = None
    status: Any = None
    output: list[_Item] | None = None
    error: Any = None
    incomplete_details: Any = None


class _ResponseEvent(Struct):
    type: Any = None
    delta: Any = None
    item: _Item | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def _read_response_event(tally: Tally, event: _ResponseEvent) -> None:
    if event.type == "error":
        tally.refuse(event.error or event.message)
    if event.delta is not None:
        tally.wrote(event.delta)
    if event.item is not None and event.type == "response.output_item.done":
        _read_item(tally, event.item)
    if event.response is not None:
        said = tally.text_size
        _read_response(tally, event.response)
        tally.text_size = said or tally.text_size  # the last event repeats what the deltas said
    if event.type in _RESPONSE_ENDS:
        tally.is_ended = True


def _read_response(tally: Tally, response: _Response) -> None:
    tally.named(response.model)
    _count_openai(tally, response.usage)
    for item in response.output or ():
        _read_item(tally, item)
        tally.wrote(item.content, item.arguments, item.input)
    if isinstance(response.status, str):
        tally.finish = response.status
    details = response.incomplete_details
    if isinstance(details, dict) and isinstance(details.get("reason"), str):
        tally.finish = details["reason"]
    if response.error is not None:
        if response.status is None:  # not a response that failed, but an error in its place
            tally.refuse(response.error)
        elif isinstance(response.error, dict):  # a whole answer, which says that the model failed
            tally.problem = f"the response failed: {response.error.get('message')}"[:PROBLEM_TEXT_MAX]


def _read_item(tally: Tally, item: _Item) -> None:
    if isinstance(item.type, str) and item.type.endswith("_call"):
        tally.asked(item.name or item.type, item.call_id or item.id)


# -- messages
class _Block(Struct):
    type: Any = None
    id: Any = None
    name: Any = None
    text: Any = None
    thinking: Any = None
    input: Any = None


class _Message(Struct):
    model: Any = None
    usage: Any = None
    content: list[_Block] | None = None
    stop_reason: Any = None
    error: Any = None


class _MessageDelta(Struct):
    text: Any = None
    partial_json: Any = None
    thinking: Any = None
    stop_reason: Any = None


class _MessageEvent(Struct):
    type: Any = None
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _MessageDelta | None = None
    usage: Any = None
    error: Any = None


def _read_message_event(tally: Tally, event: _MessageEvent) -> None:
    delta = event.delta
    if delta is not None:
        tally.wrote(delta.text, delta.partial_json, delta.thinking)
        if isinstance(delta.stop_reason, str):
            tally.finish = delta.stop_reason
    if event.usage is not None:
        _count_anthropic(tally, event.usage)
    if event.content_block is not None:
        _read_block(tally, event.content_block)
    if event.message is not None:
        _read_message(tally, event.message)
    if event.error is not None:
        tally.refuse(event.error)
    if event.type == "message_stop":
        tally.is_ended = True


def _read_message(tally: Tally, message: _Message) -> None:
    tally.named(message.model)
    _count_anthropic(tally, message.usage)
    for block in message.content or ():
        _read_block(tally, block)
        if isinstance(block.input, dict):
            tally.text_size += len(msgspec.json.encode(block.input))
    if isinstance(message.stop_reason, str):
        tally.finish = message.stop_reason
    if message.error is not None:
        tally.refuse(message.error)


def _read_block(tally: Tally, block: _Block) -> None:
    if isinstance(block.type, str) and block.type.endswith("tool_use"):
        tally.asked(block.name, block.id)
    tally.wrote(block.text, block.thinking)


# -- which is which
class Format(Struct, frozen=True):
    """How to read one protocol."""

    event: Callable[[bytes], Any]
    read_event: Callable[[Tally, Any], None]
    document: Callable[[bytes], Any]
    read_document: Callable[[Tally, Any], None]


def _format(event: type, read_event: Any, document: type, read_document: Any) -> Format:
    events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(event)
    documents: msgspec.json.Decoder[Any] = msgspec.json.Decoder(document)
    return Format(events.decode, read_event, documents.decode, read_document)


_CHAT = _format(_Chat, _read_chat, _Chat, _read_chat)
_RESPONSES = _format(_ResponseEvent, _read_response_event, _Response, _read_response)
_MESSAGES = _format(_MessageEvent, _read_message_event, _Message, _read_message)


def format_of(endpoint: str) -> Format:
    """How answers of ``endpoint`` are read; those that nobody knows are read as chat."""
    if endpoint.startswith("messages"):
        return _MESSAGES
    return _RESPONSES if endpoint.startswith("responses") else _CHAT
