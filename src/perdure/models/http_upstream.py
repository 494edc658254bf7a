"""One upstream over HTTP: sends a request once, with the real key, and gives the answer as it arrives.

Nothing is buffered and nothing is translated. Trying again and choosing among upstreams is done in
:mod:`perdure.models.upstreams`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from email.utils import parsedate_to_datetime

import httpx2
import msgspec

from perdure.core.errors import DefinitionError, RequestInvalidError, UpstreamError, UpstreamInvalidError
from perdure.core.models import ModelRequest, Upstream
from perdure.models.connections import FAILURES, Connections, Reply
from perdure.ports import Answer, Secrets

ANSWER_BYTES_MAX = (
    64 * 1024 * 1024
)  # decoded; the longest answers of today's models are under one MiB, images under 30
FAILURE_BYTES_MAX = 16 * 1024  # of the body of a 429 or 5xx: enough to say why, the rest is not read
CONNECT_TIMEOUT_MS = 10_000  # an address that does not answer by then is down: the next upstream's turn
KEEPALIVE_CONNECTIONS_MAX = (
    128  # idle connections kept; open ones are bounded by each upstream's `concurrency`
)
KEEPALIVE_MS = (
    30_000  # below the idle time-outs of common load balancers (60 s), so that they do not close first
)
RETRY_AFTER_MS_CAP = 86_400_000  # longer is nonsense, and an endless number would not fit an integer column
ANTHROPIC_VERSION = "2023-06-01"  # what the protocol asks for where the client does not say
# A client's own credentials, cookies and choice of organisation never reach an upstream: what may pass is named.
FORWARDED_HEADERS = frozenset({"anthropic-version", "anthropic-beta", "openai-beta"})
ANSWER_HEADERS = frozenset({"x-request-id", "request-id"})
ANSWER_HEADER_PREFIXES = ("openai-", "anthropic-")
ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})  # what can be decoded without further packages


def new_client() -> Connections:
    """The connections that all upstreams share. There are no proxies, redirects or cookies, which would carry keys elsewhere."""
    # Silence and the total are watched here, in one place for head and body; the client only bounds connecting.
    return Connections(
        idle_max=KEEPALIVE_CONNECTIONS_MAX, idle_ms=KEEPALIVE_MS, connect_ms=CONNECT_TIMEOUT_MS
    )


class HttpUpstream:
    """An upstream that speaks the wire format of OpenAI or Anthropic.

    Args:
        upstream: its configuration.
        secrets: where its key is looked up, for each request anew.
        client: shared; closed by whoever made it.
    """

    def __init__(self, upstream: Upstream, secrets: Secrets, client: Connections) -> None:
        self._upstream = upstream
        self._secrets = secrets
        self._client = client
        self._urls: dict[str, httpx2.URL] = {}  # by endpoint; there are five

    @contextlib.asynccontextmanager
    async def open(self, request: ModelRequest, model: str) -> AsyncIterator[Answer]:
        """Send once; ``model`` is what this upstream calls it.

        Raises:
            UpstreamError: no connection, no head in time, 429 or 5xx.
            UpstreamInvalidError: a redirect, or a body in an encoding that was not asked for.
            RequestInvalidError: the model is to be renamed in a body that is no JSON object.
            SecretUnknownError: the key is nowhere to be found.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._upstream.timeout_ms / 1000
        key = self._key()
        with self._translated(None, key):
            url = self._url(request.endpoint)
            async with self._in_time(deadline, None):
                response = await self._client.post(url, self._headers(request, key), _body(request, model))
        chunks = self._chunks(response, key, deadline)
        try:
            await self._check_head(response, chunks, key)
            yield Answer(
                status=response.status,
                content_type=response.headers.get("content-type", "application/json"),
                headers=_passed_on(response.headers),
                chunks=chunks,
                upstream=self._upstream.name,
                model=model,
            )
        finally:
            await chunks.aclose()
            await response.aclose()

    async def close(self) -> None:
        """The client is shared, so there is nothing to let go of."""

    def _url(self, endpoint: str) -> httpx2.URL:
        """Where requests of a kind go.

        Raises:
            InvalidURL: the configured address is none.
        """
        url = self._urls.get(endpoint)
        if url is None:
            url = self._urls[endpoint] = httpx2.URL(f"{self._upstream.base_url.rstrip('/')}/{endpoint}")
        return url

    def _key(self) -> str:
        """The key, which is asked for at each dispatch so that a rotated one is used at once.

        Raises:
            SecretUnknownError: it is nowhere to be found.
            DefinitionError: it cannot be a key. Said here, as the HTTP client would quote it.
        """
        key = self._secrets.resolve(self._upstream.key).strip() if self._upstream.key else ""
        if not (key.isascii() and key.isprintable()):
            name = self._upstream.name
            message = f"the key of upstream `{name}` has characters that no header can hold; store it again"
            raise DefinitionError(message, upstream=name)
        return key

    def _headers(self, request: ModelRequest, key: str) -> dict[str, str]:
        headers = {
            name.lower(): value for name, value in request.headers if name.lower() in FORWARDED_HEADERS
        }
        headers |= {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",  # compressing a stream delays its tokens
            "user-agent": "perdure",
        }
        if request.key:
            headers["idempotency-key"] = request.key
        if self._upstream.wire == "anthropic":
            headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
            if key:
                headers["x-api-key"] = key
        elif key:
            headers["authorization"] = f"Bearer {key}"
        return headers

    @contextlib.asynccontextmanager
    async def _in_time(self, deadline: float, status: int | None) -> AsyncIterator[None]:
        """Bounds one wait for bytes: by the silence allowed and by what is left of the total."""
        silent_at = asyncio.get_running_loop().time() + self._upstream.silence_ms / 1000
        try:
            async with asyncio.timeout_at(min(deadline, silent_at)):
                yield
        except TimeoutError as error:
            limit = "timeout_ms" if deadline <= silent_at else "silence_ms"
            milliseconds = getattr(self._upstream, limit)
            message = (
                f"upstream `{self._upstream.name}` sent nothing more within its `{limit}` of {milliseconds}; "
                "if it is only slow, raise that setting"
            )
            raise UpstreamError(
                message, upstream=self._upstream.name, status=status, is_silent=True
            ) from error

    @contextlib.contextmanager
    def _translated(self, status: int | None, key: str) -> Iterator[None]:
        """What the HTTP client raises, as errors that say whose it was; never with the key."""
        try:
            yield
        except FAILURES as error:
            did = "could not be reached" if status is None else "broke off its answer"
            what = without(f"{type(error).__name__}: {error}", key)
            message = f"upstream `{self._upstream.name}` {did}: {what}"
            # The cause holds the request, whose headers hold the key: it is not shown.
            raise UpstreamError(message, upstream=self._upstream.name, status=status) from None

    async def _check_head(self, response: Reply, chunks: AsyncIterator[bytes], key: str) -> None:
        status, name = response.status, self._upstream.name
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ENCODINGS:
            message = f"upstream `{name}` sent its answer as `{encoding}`; `identity` was asked for"
            raise UpstreamInvalidError(message, upstream=name, status=status)
        if 300 <= status < 400:
            message = f"upstream `{name}` answered with a redirect ({status}); set its `base_url` to the final address"
            raise UpstreamInvalidError(message, upstream=name, status=status)
        if status == 429 or status >= 500:
            text = await _failure_text(chunks, key)
            raise UpstreamError(
                f"upstream `{name}` answered with {status}; expected below 500 and not 429",
                upstream=name,
                status=status,
                retry_after_ms=retry_after_ms(response.headers),
                body=text,
            )

    async def _chunks(self, response: Reply, key: str, deadline: float) -> AsyncGenerator[bytes, None]:
        status, size = response.status, 0
        async with contextlib.aclosing(response.body()) as stream:
            while True:
                with self._translated(status, key):
                    async with self._in_time(deadline, status):
                        chunk = await anext(stream, None)
                if chunk is None:
                    return
                size += len(chunk)
                if size > ANSWER_BYTES_MAX:
                    message = (
                        f"upstream `{self._upstream.name}` sent more than {ANSWER_BYTES_MAX} bytes; "
                        "the rest was not read"
                    )
                    raise UpstreamInvalidError(message, upstream=self._upstream.name, status=status)
                if chunk:
                    yield chunk


async def _failure_text(chunks: AsyncIterator[bytes], key: str) -> str:
    data = bytearray()
    # A body that breaks off still says more than none, and the status is known.
    with contextlib.suppress(UpstreamError, UpstreamInvalidError):
        async for chunk in chunks:
            data += chunk
            if len(data) >= FAILURE_BYTES_MAX:
                break
    return without(data[:FAILURE_BYTES_MAX].decode(errors="replace"), key)


def without(text: str, key: str) -> str:
    """``text`` with the key taken out: some upstreams repeat it when they complain."""
    return text.replace(key, "[secret]") if key else text


def retry_after_ms(headers: httpx2.Headers) -> int | None:
    """How long an upstream asks to be left alone; ``None`` when it does not say, or not in a known form."""
    try:
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]))
        after = headers.get("retry-after", "").strip()
        if not after:
            return None
        if after[0].isdigit():
            return _bounded(float(after) * 1000)
        # A date is measured against the upstream's own clock, so that a wrong one, there or here, does no harm.
        wait = parsedate_to_datetime(after) - parsedate_to_datetime(headers["date"])
        return _bounded(wait.total_seconds() * 1000)
    except (ValueError, TypeError, KeyError):
        return None


def _bounded(milliseconds: float) -> int | None:
    if milliseconds != milliseconds:  # not a number
        return None
    return int(min(max(milliseconds, 0.0), RETRY_AFTER_MS_CAP))


def _body(request: ModelRequest, model: str) -> bytes:
    """The bytes as they came; only a renamed model is written anew, and everything beside it stays as it was."""
    if model == request.model:
        return request.body
    try:
        fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        message = f"the model `{request.model}` is to be renamed, but the request is no JSON object: {error}"
        raise RequestInvalidError(message, model=request.model) from error
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def _passed_on(headers: httpx2.Headers) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, value)
        for name, value in headers.items()
        if name in ANSWER_HEADERS or name.startswith(ANSWER_HEADER_PREFIXES)
    )
