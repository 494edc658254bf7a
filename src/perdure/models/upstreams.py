"""Everyone who answers model requests, as configured: who is asked first, how often, and who stands in.

How one upstream is reached is next door: :mod:`~perdure.models.http_upstream`, :mod:`~perdure.models.scripted` and
:mod:`~perdure.models.local`. Prices, journals and budgets are not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perdure.core.errors import DefinitionError, ModelUnknownError, UpstreamError, UpstreamInvalidError
from perdure.core.models import ModelRequest, Price, Upstream
from perdure.gateway.prices import check_price
from perdure.kernel.retry import delay_ms
from perdure.ports import Answer, Entropy, Secrets

if TYPE_CHECKING:
    from perdure.models.connections import Connections

OPENAI_ENDPOINTS = frozenset({"chat/completions", "responses", "embeddings"})
ANTHROPIC_ENDPOINTS = frozenset({"messages", "messages/count_tokens"})
ENDPOINTS = {
    "openai": OPENAI_ENDPOINTS,
    "anthropic": ANTHROPIC_ENDPOINTS,
    "scripted": OPENAI_ENDPOINTS | ANTHROPIC_ENDPOINTS,
    "local": frozenset({"chat/completions"}),
}
BACKOFF_FIRST_MS = 500  # what the official SDKs wait first
BACKOFF_MAX_MS = 8_000  # and at most
RETRY_AFTER_WAIT_MS_MAX = 30_000  # longer, and somebody else answers sooner, or the caller should know
RETRY_AFTER_OTHERS_MS_MAX = 1_000  # and so much while others are left to ask
REST_MS_MAX = 60_000  # who asked for longer is tried again after this: limits are often raised meanwhile
FAILED_MS = 5_000  # so long an upstream comes last after it failed, or it would slow down every request
RESTS_MAX = 256  # models of one upstream that are remembered as resting
FREE = Price(input="0", output="0", cached_input="0")


class Backend(Protocol):
    """How one upstream is reached: one attempt, in its own wire format."""

    def open(self, request: ModelRequest, model: str) -> contextlib.AbstractAsyncContextManager[Answer]:
        """Send once.

        Raises:
            UpstreamError: as if it had not been sent; ``facts`` has ``status``, ``retry_after_ms`` and ``body``.
            UpstreamInvalidError: the answer is not what the protocol allows.
        """
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class ConfiguredUpstreams:
    """The upstreams of a configuration, in its order. Belongs to one event loop; close it when it is done.

    Args:
        upstreams: who there is; the first that offers a model is asked first, the others stand in for it.
        secrets: where keys are looked up, at each dispatch.
        entropy: for the jitter of waiting and for ids of scripted answers; the system's where none is given.

    Raises:
        DefinitionError: an upstream cannot work as it is configured.
    """

    def __init__(
        self, upstreams: Sequence[Upstream], secrets: Secrets, *, entropy: Entropy | None = None
    ) -> None:
        self._secrets = secrets
        self._entropy = entropy or _SystemEntropy()
        self._client: Connections | None = None
        self._seats = [_Seat(_checked(item)) for item in upstreams]
        for seat in self._seats:
            if seat.upstream.wire in ("scripted", "local"):  # a missing file or package is told at start
                self._backend(seat)

    def __repr__(self) -> str:
        return f"ConfiguredUpstreams({', '.join(seat.upstream.name for seat in self._seats)})"

    def offers(self, model: str, endpoint: str) -> bool:
        """Whether somebody answers requests of that kind for that model."""
        return any(_offers(seat.upstream, model, endpoint) for seat in self._seats)

    def names(self) -> list[str]:
        """Model names that agents may ask for, sorted; patterns are left out."""
        found: set[str] = set()
        for seat in self._seats:
            found.update(seat.upstream.rename)
            found.update(name for name in seat.upstream.models if not any(mark in name for mark in "*?["))
        return sorted(found)

    def price(self, model: str) -> Price | None:
        """What the configuration says that a model costs, wherever it is answered: the dearest of those who offer it.

        ``None`` when one of them has no configured price. Local models cost nothing.
        """
        prices = [_price(seat.upstream, model) for seat in self._seats if _names(seat.upstream, model)]
        known = [price for price in prices if price is not None]
        if not known or len(known) < len(prices):
            return None
        first, *others = known
        for other in others:
            first = _dearest(first, other)
        return first

    @contextlib.asynccontextmanager
    async def open(self, request: ModelRequest) -> AsyncIterator[Answer]:
        """Send a request, with the real key; the body is read inside the context.

        A request counts towards the ``concurrency`` of the upstream that answers until the context ends.

        Raises:
            ModelUnknownError: nobody offers the model, or nobody who does answers that endpoint.
            UpstreamError: nobody answered, or only with 429 and 5xx; ``facts`` has ``status``, ``retry_after_ms`` and
                the last ``body`` (text), where there was one.
            UpstreamInvalidError: the last of them answered with something that the protocol does not allow.
        """
        async with contextlib.AsyncExitStack() as stack:
            yield await self._answer(request, stack)

    async def close(self) -> None:
        """End connections and let go of models in memory."""
        for seat in self._seats:
            if seat.backend is not None:
                await seat.backend.close()
                seat.backend = None
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _answer(self, request: ModelRequest, stack: contextlib.AsyncExitStack) -> Answer:
        """The first answer that somebody gives; ``stack`` holds what must be closed when it has been read."""
        seats = [seat for seat in self._seats if _offers(seat.upstream, request.model, request.endpoint)]
        if not seats:
            raise self._unknown(request)
        now = asyncio.get_running_loop().time()
        last: UpstreamError | UpstreamInvalidError | None = None
        # Sorting is stable: those who are well keep the configured order.
        seats.sort(key=lambda seat: seat.unwell_ms(request.model, now))
        for seat in seats:
            patience_ms = RETRY_AFTER_WAIT_MS_MAX if seat is seats[-1] else RETRY_AFTER_OTHERS_MS_MAX
            for attempt in range(1, seat.upstream.attempts + 1):
                try:
                    return await self._attempt(seat, request, stack)
                except (UpstreamError, UpstreamInvalidError) as error:
                    last = error
                wait_ms = self._wait_ms(seat, request.model, attempt, last, patience_ms)
                if wait_ms is None:
                    break
                await asyncio.sleep(wait_ms / 1000)
            if not seat.rest_ms(request.model, now):  # one that asked for a rest is well for other models
                seat.failed(asyncio.get_running_loop().time())
        if last is None:
            raise DefinitionError(f"no upstream of `{request.model}` may be tried even once")
        raise last

    async def _attempt(self, seat: _Seat, request: ModelRequest, stack: contextlib.AsyncExitStack) -> Answer:
        model = request.model
        async with contextlib.AsyncExitStack() as attempt:
            await attempt.enter_async_context(seat.semaphore)
            rest_ms = seat.rest_ms(model, asyncio.get_running_loop().time())
            if rest_ms:
                message = f"upstream `{seat.upstream.name}` asked not to be asked again for {rest_ms} ms"
                raise UpstreamError(message, upstream=seat.upstream.name, status=429, retry_after_ms=rest_ms)
            backend = self._backend(seat)
            renamed = seat.upstream.rename.get(model, model)
            answer = await attempt.enter_async_context(backend.open(request, renamed))
            seat.answered(model)
            await stack.enter_async_context(attempt.pop_all())
            return answer

    def _wait_ms(
        self,
        seat: _Seat,
        model: str,
        attempt: int,
        error: UpstreamError | UpstreamInvalidError,
        patience_ms: int,
    ) -> int | None:
        """How long to wait before this upstream is tried again; ``None`` when it is the next one's turn."""
        asked_ms = error.facts.get("retry_after_ms")
        if asked_ms:
            seat.rest(model, asked_ms, asyncio.get_running_loop().time())
        if attempt >= seat.upstream.attempts or isinstance(error, UpstreamInvalidError):
            return None
        if error.facts.get("is_silent"):  # it may well be working on it: asking again would pay twice
            return None
        if asked_ms is not None:
            return int(asked_ms) if asked_ms <= patience_ms else None
        chance = self._entropy.bits(16)
        return delay_ms(attempt, first_ms=BACKOFF_FIRST_MS, max_ms=BACKOFF_MAX_MS, chance=chance)

    def _backend(self, seat: _Seat) -> Backend:
        """How to reach it. Each way is imported by who uses it only: together they take a quarter of a second."""
        if seat.backend is None:
            seat.backend = self._made(seat.upstream)
        return seat.backend

    def _made(self, upstream: Upstream) -> Backend:
        match upstream.wire:
            case "scripted":
                from perdure.models.scripted import ScriptedUpstream

                return ScriptedUpstream(upstream, self._entropy)
            case "local":
                from perdure.models.local import LocalUpstream

                return LocalUpstream(upstream, self._entropy)
            case "openai" | "anthropic":
                from perdure.models.http_upstream import HttpUpstream, new_client

                self._client = self._client or new_client()
                return HttpUpstream(upstream, self._secrets, self._client)

    def _unknown(self, request: ModelRequest) -> ModelUnknownError:
        near = sorted({s.upstream.name for s in self._seats if _names(s.upstream, request.model)})
        if near:
            who = ", ".join(f"`{name}`" for name in near)
            message = (
                f"no upstream answers `{request.endpoint}` for model `{request.model}`; {who} offers it in another "
                "protocol: use that, or add an upstream"
            )
        else:
            known = ", ".join(f"`{name}`" for name in self.names()) or "none by name"
            message = f"no upstream offers model `{request.model}`; offered are {known}: add it to `models`"
        return ModelUnknownError(message, model=request.model, endpoint=request.endpoint)


class _Seat:
    """One upstream while it is in use: how many are served, and for which models it asked to be left alone."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.semaphore = asyncio.Semaphore(upstream.concurrency)
        self.backend: Backend | None = None
        self.rests: dict[str, float] = {}  # model: loop time until which it rests; limits are per model
        self.failed_until = 0.0  # loop time until which others are asked first

    def failed(self, now: float) -> None:
        """All attempts of a request were in vain: for a while others are asked first."""
        self.failed_until = now + FAILED_MS / 1000

    def answered(self, model: str) -> None:
        """It works again."""
        self.failed_until = 0.0
        self.rests.pop(model, None)

    def unwell_ms(self, model: str, now: float) -> int:
        """How long others should be asked first."""
        return max(self.rest_ms(model, now), int((self.failed_until - now) * 1000), 0)

    def rest(self, model: str, asked_ms: int, now: float) -> None:
        """Remember that it asked for a rest."""
        if len(self.rests) >= RESTS_MAX:
            self.rests = {name: until for name, until in self.rests.items() if until > now}
        if len(self.rests) < RESTS_MAX:
            self.rests[model] = now + min(asked_ms, REST_MS_MAX) / 1000

    def rest_ms(self, model: str, now: float) -> int:
        """How long it rests from now on; zero for one that may be asked."""
        return max(0, int((self.rests.get(model, now) - now) * 1000))


class _SystemEntropy:
    def bits(self, count: int) -> int:
        return int.from_bytes(os.urandom((count + 7) // 8), "big") >> (-count % 8)


def _checked(upstream: Upstream) -> Upstream:
    """The configuration, if it can work.

    Raises:
        DefinitionError: it cannot.
    """
    for setting in ("concurrency", "attempts", "timeout_ms", "silence_ms"):
        value = getattr(upstream, setting)
        if value < 1:
            message = f"upstream `{upstream.name}` has `{setting}` {value}; expected at least 1"
            raise DefinitionError(message, upstream=upstream.name)
    for price in upstream.prices.values():
        check_price(price)
    is_http = upstream.wire in ("openai", "anthropic")
    if is_http and not upstream.base_url.startswith(("https://", "http://")):
        message = (
            f"upstream `{upstream.name}` has the `base_url` `{upstream.base_url}`; expected one that starts with "
            "`https://` or `http://`, such as `https://api.openai.com/v1`"
        )
        raise DefinitionError(message, upstream=upstream.name)
    if not is_http and not Path(upstream.path).is_file():
        message = (
            f"upstream `{upstream.name}` ({upstream.wire}) has the `path` `{upstream.path}`; expected a file"
        )
        raise DefinitionError(message, upstream=upstream.name)
    return upstream


def _names(upstream: Upstream, model: str) -> bool:
    return model in upstream.rename or any(fnmatchcase(model, pattern) for pattern in upstream.models)


def _offers(upstream: Upstream, model: str, endpoint: str) -> bool:
    return endpoint in ENDPOINTS[upstream.wire] and _names(upstream, model)


def _price(upstream: Upstream, model: str) -> Price | None:
    for name in (model, upstream.rename.get(model, model)):
        if name in upstream.prices:
            return upstream.prices[name]
    return FREE if upstream.wire == "local" else None


def _dearest(one: Price, other: Price) -> Price:
    def dearer(left: str | None, right: str | None) -> str | None:
        if left is None or right is None:
            return None  # unknown; for cached input that means: charged as input
        return max(left, right, key=Decimal)

    return Price(
        input=dearer(one.input, other.input),
        output=dearer(one.output, other.output),
        cached_input=dearer(one.cached_input, other.cached_input),
    )
