"""Models: how the gateway reaches whoever answers model requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from perdure.core.models import ModelRequest, Price


@dataclass(slots=True)
class Answer:
    """The head of an upstream's answer, and its body as it arrives.

    Attributes:
        status: below 500 and not 429: those count as not having happened and never get here.
        content_type: such as ``application/json`` or ``text/event-stream``.
        headers: those worth passing on (``x-request-id``, ``openai-*``, ``anthropic-*``).
        chunks: the bytes; raises ``UpstreamError`` when the connection breaks or falls silent before the end.
        upstream: who answers.
        model: what that upstream calls the model.
    """

    status: int
    content_type: str
    headers: tuple[tuple[str, str], ...]
    chunks: AsyncIterator[bytes]
    upstream: str
    model: str


class Upstreams(Protocol):
    """Everyone who answers model requests."""

    def offers(self, model: str, endpoint: str) -> bool:
        """Whether somebody answers requests of that kind for that model."""
        ...

    def names(self) -> list[str]:
        """Model names that agents may ask for, sorted; patterns are left out."""
        ...

    def price(self, model: str) -> Price | None:
        """What the configuration says that a model costs."""
        ...

    def open(self, request: ModelRequest) -> AbstractAsyncContextManager[Answer]:
        """Send a request, with the real key; the body is read inside the context.

        Raises:
            ModelUnknownError: nobody offers the model.
            UpstreamError: nobody answered, or only with 429 and 5xx; ``facts`` has ``status``, ``retry_after_ms`` and the
                last ``body`` (text), where there was one.
        """
        ...
