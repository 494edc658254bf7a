"""Wire formats of model requests and answers, read and never changed: OpenAI chat, responses, embeddings, and Anthropic messages.

Pure and incremental: bytes in, facts out. Whoever sends and receives is in ``gateway.gateway`` and the room ``models``.
"""

from __future__ import annotations

from perdure.gateway.wire.answers import AnswerFacts, AnswerReader
from perdure.gateway.wire.requests import RequestFacts, error_body, read_request
from perdure.gateway.wire.sse import EVENT_BYTES_MAX, EventReader

__all__ = (
    "EVENT_BYTES_MAX",
    "AnswerFacts",
    "AnswerReader",
    "EventReader",
    "RequestFacts",
    "error_body",
    "read_request",
)
