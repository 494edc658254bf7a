"""The texts of a model's request or answer, in whatever provider's format: everything but short words in structural places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from perdure.core.paths import DEPTH_MAX, TooLargeError

TEXTS_MAX = 10_000  # of one request: far more than the messages of a conversation that fits a model
# Members whose values say how to read the rest, not what it says. Only if they look like a name: a text there counts.
_STRUCTURE = frozenset({
    "role", "type", "id", "object", "model", "name", "finish_reason", "stop_reason", "tool_call_id", "tool_use_id",
    "call_id", "response_id", "previous_response_id", "format", "media_type", "status", "phase", "service_tier",
    "reasoning_effort", "effort", "system_fingerprint",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# Of those, what whoever makes the request may choose freely; a provider takes only its own words for the others.
_CHOSEN = frozenset({"name", "id", "tool_call_id", "tool_use_id", "call_id"})
# Members whose objects are plain data that a model or tool has made, with names of its own.
_DATA = frozenset({"input", "args", "arguments", "response", "output", "result", "metadata"})
# What is kept with the provider, or fetched by it: it is in no request that passes here.
_ELSEWHERE = frozenset({
    "previous_response_id", "conversation", "conversation_id", "thread_id", "prompt", "container", "container_id",
    "file_id", "file_ids", "vector_store_ids", "cachedContent", "cached_content", "fileUri", "file_uri", "file_url",
    "image_url", "mcp_servers", "web_search_options", "encrypted_content",
})  # fmt: skip
_OWN_TOOLS = (
    "function",
    "custom",
)  # types of tools that the one who asks carries out, and the provider does not
_DECLARED = frozenset({"name", "function", "functionDeclarations", "function_declarations"})


def texts_of(body: Any) -> Iterator[str]:
    """Each text; numbers and truth values are settings.

    Raises:
        TooLargeError: it is too deep, or has too many texts.
    """
    stack: list[tuple[str, Any, int]] = [("", body, 0)]
    count = 0
    while stack:
        name, value, depth = stack.pop()
        if isinstance(value, str):
            if not value or (name in _STRUCTURE and _WORD.fullmatch(value)):
                continue
            count += 1
            if count > TEXTS_MAX:
                raise TooLargeError
            yield value
        elif isinstance(value, Mapping | list | tuple):
            inner = value.items() if isinstance(value, Mapping) else ((name, item) for item in value)
            if depth >= DEPTH_MAX or len(stack) + len(value) > TEXTS_MAX * 4:
                raise TooLargeError
            stack.extend((str(key), item, depth + 1) for key, item in inner)


def names_of(body: Any) -> set[str]:
    """Words in structural places that may be values: the names in plain data, ids and numbers there.

    Most are neither, so they count only if they are known from somewhere.

    Raises:
        TooLargeError: it is too deep, or has too many members.
    """
    found: set[str] = set()
    for name, value, is_data in _members(body):
        if is_data:
            found.add(name)
        if isinstance(value, str):
            if name in _CHOSEN or (is_data and name in _STRUCTURE):
                found.add(value)
        elif is_data and isinstance(value, int | float) and not isinstance(value, bool):
            found.add(str(value))
    return found


def is_whole(body: Any) -> bool:
    """Whether all that the model will see is in the request: no conversation, file, page or tool of the provider.

    Raises:
        TooLargeError: it is too deep, or has too many members.
    """
    return not any(_is_elsewhere(name, value) for name, value, _ in _members(body))


def _is_elsewhere(name: str, value: Any) -> bool:
    if name == "tools" and isinstance(value, list):
        return not all(_is_own_tool(item) for item in value)
    if name == "source" and isinstance(value, Mapping):
        return value.get("type") in ("url", "file")
    if name not in _ELSEWHERE or not value:
        return False
    if isinstance(value, Mapping):  # not the schema of an argument with this name
        value = value.get("id") or value.get("url") or ("" if "type" in value else "object")
    if name in ("prompt", "image_url") and isinstance(value, str):  # a text, or an image that is here
        return name == "image_url" and not value.startswith("data:") and bool(value)
    return bool(value)


def _is_own_tool(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return True  # inside of a schema, `tools` may be anything
    kind = item.get("type")
    return kind in _OWN_TOOLS if isinstance(kind, str) else bool(_DECLARED & item.keys())


def _members(body: Any) -> Iterator[tuple[str, Any, bool]]:
    """Each member of each object, and whether it belongs to plain data."""
    stack: list[tuple[str, Any, bool, int]] = [("", body, False, 0)]
    while stack:
        name, value, is_data, depth = stack.pop()
        if isinstance(value, Mapping):
            inner = [(str(key), item) for key, item in value.items()]
            is_data = is_data or name in _DATA
            yield from ((key, item, is_data) for key, item in inner)
        elif isinstance(value, list | tuple):
            inner = [(name, item) for item in value]
            # The input of some providers is a list of messages.
            yield from (
                (name, item, True) for _, item in inner if is_data and not isinstance(item, Mapping | list)
            )
        else:
            continue
        if depth >= DEPTH_MAX or len(stack) + len(inner) > TEXTS_MAX * 4:
            raise TooLargeError
        stack.extend((key, item, is_data, depth + 1) for key, item in inner)


def answer_texts(text: str) -> list[str]:
    """The texts of an answer as it came over the wire: JSON, or a stream of events whose pieces are put together by their place."""
    try:
        if not text.lstrip().startswith(("event:", "data:", ":", "id:", "retry:")):
            return list(texts_of(msgspec.json.decode(text)))
        pieces: dict[tuple[str, ...], list[str]] = {}
        for line in text.splitlines():
            if line.startswith("data:") and (data := _decoded(line.removeprefix("data:"))) is not None:
                _gather(data, (), pieces)
        return ["".join(found) for found in pieces.values()]
    except (TooLargeError, msgspec.DecodeError, RecursionError):
        return [text]


def _decoded(line: str) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None  # such as the mark of the end


def _gather(data: Any, place: tuple[str, ...], pieces: dict[tuple[str, ...], list[str]]) -> None:
    if len(place) > DEPTH_MAX:
        raise TooLargeError
    if isinstance(data, Mapping):
        # Parts of one text say by an index to which of several they belong.
        number = tuple(str(data[name]) for name in ("index", "output_index") if name in data)
        for name, value in data.items():
            _gather(value, (*place, *number, name), pieces)
    elif isinstance(data, list):
        for value in data:
            _gather(value, place, pieces)
    elif isinstance(data, str) and data and place and place[-1] not in _STRUCTURE:
        pieces.setdefault(place, []).append(data)
