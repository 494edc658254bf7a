"""Model upstreams and requests as values: who offers which model, one request in its wire format, what it used."""

from __future__ import annotations

from typing import Literal

import msgspec

Wire = Literal["openai", "anthropic", "scripted", "local"]
UPSTREAM_CONCURRENCY = 64  # requests at once to one upstream, where the configuration says nothing
UPSTREAM_TIMEOUT_MS = 600_000  # the official SDKs wait ten minutes too
UPSTREAM_SILENCE_MS = 120_000  # without a byte for so long, an upstream counts as hanging


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars for a million tokens, as decimal text (``"2.50"``); a missing one is unknown, never zero."""

    input: str | None = None
    output: str | None = None
    cached_input: str | None = None


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place that answers model requests.

    Attributes:
        name: what it is called; several with the same name stand in for each other, in their order.
        base_url: the address before ``/chat/completions`` or ``/messages``, such as ``https://api.openai.com/v1``.
        wire: which protocol it speaks (``scripted`` and ``local`` answer in this process).
        key: a reference to its key, such as ``secret://openai``; empty for none.
        models: names it offers, with ``*`` and ``?``.
        rename: what it calls a model that agents call otherwise.
        concurrency: requests at once.
        timeout_ms: how long one request may take altogether.
        silence_ms: how long it may send nothing.
        attempts: how often one request is tried after 429, 5xx or no connection, before the next upstream's turn.
        prices: what its models cost, by name; others are looked up in the table of ``genai-prices``.
        path: for ``local`` the model file (GGUF), for ``scripted`` a file of answers.
    """

    name: str
    base_url: str = ""
    wire: Wire = "openai"
    key: str = ""
    models: tuple[str, ...] = ("*",)
    rename: dict[str, str] = msgspec.field(default_factory=dict)
    concurrency: int = UPSTREAM_CONCURRENCY
    timeout_ms: int = UPSTREAM_TIMEOUT_MS
    silence_ms: int = UPSTREAM_SILENCE_MS
    attempts: int = 2
    prices: dict[str, Price] = msgspec.field(default_factory=dict)
    path: str = ""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request in its wire format.

    Attributes:
        endpoint: ``chat/completions``, ``responses``, ``embeddings``, ``messages`` or ``messages/count_tokens``.
        model: as the body names it.
        body: the JSON as it came.
        headers: those of the client that go on to the upstream (``anthropic-version``, ``anthropic-beta``, ``openai-beta``).
        key: the idempotency key ``run/call``.
    """

    endpoint: str
    model: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    key: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that a model request used, as the upstream says; ``None`` where it does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None  # part of input_tokens
    cache_write_tokens: int | None = None  # part of input_tokens
