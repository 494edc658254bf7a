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
