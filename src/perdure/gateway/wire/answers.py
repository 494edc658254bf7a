"""Answers: what an upstream said, read while it passes by.

A :class:`AnswerReader` changes nothing and holds nothing back. Of a stream it keeps one unfinished event and some counters;
a document it keeps until its end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core.models import Usage
from perdure.gateway.wire.formats import Tally, format_of
from perdure.gateway.wire.sse import EventReader

DOCUMENT_BYTES_MAX = 64 * 1024 * 1024  # two thousand embeddings of three thousand numbers, in base64


class AnswerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says.

    Attributes:
        usage: the tokens used; ``None`` if it says nothing of them, as chat streams without ``include_usage``.
        model: who answered.
        minted_ids: the ids of its tool calls, in their order.
        tool_names: the tools that it asks for, in their order.
        text_size: characters of text, reasoning and arguments: what to estimate tokens from when ``usage`` is ``None``.
        finish: why it stopped, in the words of the protocol (``stop``, ``tool_calls``, ``end_turn``, ``completed``, ...).
        is_complete: it is a whole answer: a stream had its last event, a document was whole, and neither is an error.
        problem: what is wrong with it, empty if nothing is. A complete answer has a problem when it is a ``responses`` object
            that says that the model failed.
    """

    usage: Usage | None = None
    model: str = ""
    minted_ids: tuple[str, ...] = ()
    tool_names: tuple[str, ...] = ()
    text_size: int = 0
    finish: str = ""
    is_complete: bool = False
    problem: str = ""


class AnswerReader:
    """Reads one answer of ``endpoint`` from its chunks."""

    def __init__(self, endpoint: str, content_type: str) -> None:
        self._format = format_of(endpoint)
        self._tally = Tally()
        kind = content_type.lower()
        self._is_sure = "event-stream" in kind or "json" in kind
        self._events: EventReader | None = EventReader() if "event-stream" in kind else None
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes, cut anywhere."""
        if not self._is_sure and chunk.strip():
            self._is_sure = True
            if chunk.lstrip().startswith((b"data:", b"event:", b"id:", b":")):
                self._events = EventReader()
        if self._events is None:
            self._size_bytes += len(chunk)
            if self._size_bytes <= DOCUMENT_BYTES_MAX:
                self._chunks.append(chunk)
            else:
                self._chunks.clear()
            return
        for data in self._events.feed(chunk):
            self._event(data)

    @property
    def is_finishing(self) -> bool:
        """Whether a stream has said why it stopped: from here on a client may act on the answer."""
        return self._tally.is_ended or bool(self._tally.finish)

    def end(self) -> AnswerFacts:
        """There are no more bytes: what it said."""
        if self._events is None:
            self._document()
        else:
            self._last(self._events)
        tally = self._tally
        return AnswerFacts(
            usage=tally.usage(),
            model=tally.model,
            minted_ids=tuple(tally.ids),
            tool_names=tuple(tally.names),
            text_size=tally.text_size,
            finish=tally.finish,
            is_complete=tally.is_ended and not tally.is_broken,
            problem=tally.problem,
        )

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._tally.is_ended = True
            return
        try:
            event = self._format.event(data)
        except msgspec.ValidationError:
            return  # JSON of another shape: no event that is known here
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._tally.fail(f"an event is not JSON: {error}")
            return
        self._format.read_event(self._tally, event)

    def _last(self, events: EventReader) -> None:
        """Where a stream stops there may be an event that no empty line ended."""
        rest = events.end()
        if rest is not None and not self._tally.is_ended:
            self._event(rest.strip())
        if events.dropped:
            self._tally.fail("an event is larger than any event of a model")
        if not self._tally.is_ended:
            self._tally.fail("the stream ended before its last event")

    def _document(self) -> None:
        if self._size_bytes > DOCUMENT_BYTES_MAX:
            self._tally.fail(f"the answer is larger than {DOCUMENT_BYTES_MAX} bytes")
            return
        data = b"".join(self._chunks)
        self._chunks.clear()
        try:
            document = self._decoded(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._tally.fail(f"the answer is not the JSON of its protocol: {error}")
            return
        self._format.read_document(self._tally, document)
        self._tally.is_ended = True

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._format.document(data)
        except msgspec.ValidationError:
            # Some part of it has another shape. It was paid for all the same, so what it cost is read.
            value = msgspec.json.decode(data, type=dict[str, Any])
            kept = {name: value[name] for name in ("model", "usage", "error", "status") if name in value}
            return self._format.document(msgspec.json.encode(kept))
