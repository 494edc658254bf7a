"""The way to an external judge over HTTP. Nothing stands between a request and its connection: no cookies, no redirects, no proxy."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping

import httpx2

from perdure.core.errors import DefinitionError, UnavailableError
from perdure.ports import JudgeAnswer

CONNECTIONS_MAX = 64  # beyond what a judge is asked at once by default, so that it is the gate that bounds
KEEPALIVE_S = (
    20.0  # below the idle time-outs of common load balancers (60 s), so that they do not close first
)


class HttpJudge:
    """Implements the ``JudgeLink`` port.

    Args:
        url: the address below which ``/validate`` and ``/analyze-tool-execution`` are; ``https``, or ``http`` on this machine.
        certificates: what to trust instead of the public authorities, for a judge with a certificate of one's own.

    Raises:
        DefinitionError: the address is none, has a user, a query or a fragment, or would send actions unencrypted.
    """

    def __init__(self, url: str, *, certificates: ssl.SSLContext | None = None) -> None:
        self._base = _checked(url)
        limits = httpx2.Limits(
            max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=KEEPALIVE_S
        )  # fmt: skip
        # The environment has no say: it could name other certificates to be trusted.
        verify = certificates or httpx2.create_ssl_context(trust_env=False)
        self._transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, *, limit_bytes: int
    ) -> JudgeAnswer:
        """Ask once (see the port)."""
        request = httpx2.Request("POST", f"{self._base}{path}", headers=dict(headers), content=body)
        data, is_whole = bytearray(), True
        try:
            response = await self._transport.handle_async_request(request)
            try:
                stream = response.stream
                if not isinstance(stream, httpx2.AsyncByteStream):
                    raise httpx2.ReadError("the answer cannot be read")
                async for chunk in stream:
                    data += chunk
                    if len(data) > limit_bytes:
                        is_whole = False
                        break
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            # Its text may quote the request or what the other side sent; the cause holds the request.
            host = request.url.host
            message = f"`{host}` could not be reached, or broke off its answer ({type(error).__name__})"
            raise UnavailableError(message, host=host) from None
        return JudgeAnswer(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            encoding=response.headers.get("content-encoding", ""),
            body=bytes(data[:limit_bytes]),
            is_whole=is_whole,
        )

    async def close(self) -> None:
        """Close connections."""
        await self._transport.aclose()


def _checked(url: str) -> str:
    """The address without a slash at its end. A refusal does not show it: some judges have a key in it."""
    try:
        parts = httpx2.URL(url)
        host = parts.host
    except (httpx2.InvalidURL, ValueError, TypeError):
        raise DefinitionError("the judge's `url` is none; expected `https://host/path`") from None
    if parts.userinfo or parts.query or parts.fragment or not host or "?" in url or "#" in url:
        raise DefinitionError(
            "the judge's `url` has no host, or a user, a query or a fragment; leave them out"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(host)):
        message = f"the judge at `{host}` must be asked over https: what agents do would go there unencrypted"
        raise DefinitionError(message, host=host)
    return url.rstrip("/")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
