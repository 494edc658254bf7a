"""Calls over HTTP to addresses that were checked: redirects looked at one by one, answers bounded, doubt told as doubt."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin

import httpx2
import msgspec

from perdure.core.errors import AddressRefusedError, ToolDoubtfulError, ToolFailedError, ToolUnreachableError
from perdure.core.tools import Effect, Recovery, ToolOutput, ToolSpec, ToolUse
from perdure.ports import Secrets
from perdure.tools.addresses import Resolve, check_url, resolve

REDIRECTS_MAX = 5
READ_BYTES_MAX = 16 * 1024 * 1024  # of an answer: beyond it nothing is read
BINARY_BYTES_MAX = 64 * 1024  # of an answer that is no text, shown as base64
CONNECT_S = 10.0
SAFE = ("GET", "HEAD", "OPTIONS")
REDIRECTS = (301, 302, 303, 307, 308)
CREDENTIALS = ("authorization", "cookie", "proxy-authorization", "x-api-key")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class HttpCaller:
    """Sends requests of tools.

    Args:
        allow: private places that may be reached (see ``check_url``).
        resolver: resolves names.
    """

    def __init__(self, *, allow: Collection[str] = (), resolver: Resolve = resolve) -> None:
        self._allow = allow
        self._resolver = resolver
        self._client: httpx2.AsyncClient | None = None

    async def send(self, call: Call, *, timeout_s: float, limit: int) -> ToolOutput:
        """The answer, as a value: JSON as data, text as text, other bytes as base64. Status 400 and above is an error.

        Raises:
            AddressRefusedError, ToolUnreachableError: nothing was sent.
            ToolDoubtfulError: it was sent and no whole answer came; the declaration of the tool decides what follows.
        """
        for _ in range(REDIRECTS_MAX + 1):
            status, headers, body, is_cut = await self._once(call, timeout_s, limit)
            where = headers.get("location")
            if status not in REDIRECTS or where is None:
                return _output(status, headers, body, is_cut=is_cut)
            call = _redirected(call, status, urljoin(call.url, where))
        raise ToolFailedError(f"more than {REDIRECTS_MAX} redirects, the last to `{call.url:.200}`")

    async def _once(
        self, call: Call, timeout_s: float, limit: int
    ) -> tuple[int, Mapping[str, str], bytes, bool]:
        target = await check_url(call.url, allow=self._allow, resolver=self._resolver)
        if self._client is None:
            # No connection is kept: it was proven for one name, and another name may share the address.
            limits = httpx2.Limits(max_keepalive_connections=0)
            self._client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, limits=limits)
        url = httpx2.URL(call.url)
        # The connection goes to the address that was checked; the name stays in Host and in the certificate.
        request = self._client.build_request(
            call.method,
            url.copy_with(host=target.address),
            headers={**call.headers, "host": url.netloc.decode("ascii"), "accept-encoding": "identity"},
            content=call.body,
            timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            extensions={"sni_hostname": target.host},
        )
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.send(request, stream=True)
                async with contextlib.aclosing(response):
                    body, is_cut = await _bounded(response, limit)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ToolUnreachableError(f"`{target.host}:{target.port}` cannot be reached: {error}") from error
        except (httpx2.HTTPError, TimeoutError) as error:
            told = str(error) or f"no answer within {timeout_s:g} s"
            message = f"{call.method} `{call.url:.200}` was sent and not answered: {told}"
            raise ToolDoubtfulError(message) from error
        return response.status_code, response.headers, body, is_cut

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


async def _bounded(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """The body up to a limit, and whether there was more."""
    chunks: list[bytes] = []
    size = 0
    limit = min(limit, READ_BYTES_MAX)
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(chunks)[:limit], True
    return b"".join(chunks), False


def _redirected(call: Call, status: int, url: str) -> Call:
    """The request that a redirect asks for; what proves who asks stays with the host that it was meant for.

    Raises:
        AddressRefusedError: it leads from https to http.
    """
    before, after = httpx2.URL(call.url), httpx2.URL(url)
    if before.scheme == "https" and after.scheme == "http":
        raise AddressRefusedError(f"a redirect leads from https to `{url:.200}`; that is refused", url=url)
    headers = dict(call.headers)
    if (before.host, before.port) != (after.host, after.port):
        headers = {name: value for name, value in headers.items() if name.lower() not in CREDENTIALS}
    if status == 303 or (status in (301, 302) and call.method == "POST"):
        headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        return Call("GET", url, headers)
    return Call(call.method, url, headers, call.body)


def _output(status: int, headers: Mapping[str, str], body: bytes, *, is_cut: bool) -> ToolOutput:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    value = _value(kind, body, is_cut=is_cut)
    if status >= 400:
        return ToolOutput(value={"status": status, "body": value}, is_error=True)
    return ToolOutput(value={"truncated": True, "body": value} if is_cut else value)


def _value(kind: str, body: bytes, *, is_cut: bool) -> Any:
    if not is_cut and (kind.endswith("json") or not kind):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(body) if body else None
    try:
        return body.decode(errors="ignore" if is_cut and kind.startswith("text/") else "strict")
    except UnicodeDecodeError:
        shown = base64.b64encode(body).decode() if len(body) <= BINARY_BYTES_MAX else None
        return {"content_type": kind, "size_bytes": len(body), "base64": shown}


def declared(method: str) -> tuple[Recovery, Effect]:
    """What a method says of itself: reads may be repeated, PUT and DELETE too, the rest may not."""
    if method in SAFE:
        return "pure", "read"
    return ("idempotent", "irreversible") if method in ("PUT", "DELETE") else ("opaque", "irreversible")


class HttpTool:
    """One request as a tool. Implements ``Tool``.

    Args:
        name: what it is called.
        method: ``GET``, ``POST`` and so on.
        url: with ``{argument}`` where an argument goes into the path; each is encoded as one part of it.
        description: what a model reads.
        parameters: JSON Schema of the arguments.
        query: arguments that go into the query string.
        body: the argument that is sent as JSON; ``*`` sends all that are not used elsewhere.
        headers: values, or references such as ``secret://shop``, resolved when it is sent.
        secrets: resolves references.
        allow: private places that may be reached.
        recovery, effect: what it declares; by default what its method says.
        timeout_ms: how long one call may take.
    """

    def __init__(
        self,
        name: str,
        method: str,
        url: str,
        *,
        description: str = "",
        parameters: dict[str, Any] | None = None,
        query: Collection[str] = (),
        body: str = "",
        headers: Mapping[str, str] | None = None,
        secrets: Secrets | None = None,
        allow: Collection[str] = (),
        recovery: Recovery | None = None,
        effect: Effect | None = None,
        timeout_ms: int = 30_000,
        caller: HttpCaller | None = None,
    ) -> None:
        self._method = method.upper()
        default_recovery, default_effect = declared(self._method)
        self.spec = ToolSpec(
            name=name,
            description=description,
            parameters=parameters or {"type": "object"},
            recovery=recovery or default_recovery,
            effect=effect or default_effect,
            source="http",
            timeout_ms=timeout_ms,
        )
        self._url = url
        self._query = tuple(query)
        self._body = body
        self._headers = dict(headers or {})
        self._secrets = secrets
        self._caller = caller or HttpCaller(allow=allow)

    async def call(self, use: ToolUse) -> ToolOutput:
        """Send it."""
        rest = dict(use.arguments)
        url = self._url
        for name in list(rest):
            if f"{{{name}}}" in url:
                url = url.replace(f"{{{name}}}", path_part(rest.pop(name)))
        asked = [(name, rest.pop(name)) for name in self._query if name in rest]
        if asked:
            url = str(httpx2.URL(url).copy_merge_params([(name, _text(value)) for name, value in asked]))
        body: bytes | None = None
        headers = {name: resolved(value, self._secrets) for name, value in self._headers.items()}
        if self._body:
            body = msgspec.json.encode(rest if self._body == "*" else rest.get(self._body))
            headers["content-type"] = "application/json"
        if self._method not in SAFE:
            headers["idempotency-key"] = use.key
        call = Call(self._method, url, headers, body)
        return await self._caller.send(call, timeout_s=self.spec.timeout_ms / 1000, limit=READ_BYTES_MAX)


def resolved(value: str, secrets: Secrets | None) -> str:
    """A header's value; a reference becomes the secret.

    Raises:
        ToolFailedError: there is a reference and nobody to resolve it.
        SecretUnknownError: nothing has that name.
    """
    start = value.find("secret://")
    if start < 0:
        return value
    if secrets is None:
        raise ToolFailedError("a header refers to a secret, and this tool was made without secrets")
    return value[:start] + secrets.resolve(value[start:])


def path_part(value: Any) -> str:
    """A value as one part of a path: nothing in it can leave that part.

    Raises:
        ToolFailedError: it is ``.`` or ``..``, or empty: servers take those for another path.
    """
    text = _text(value)
    if text in ("", ".", ".."):
        raise ToolFailedError(f"`{text}` cannot be a part of a path")
    return quote(text, safe="")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
