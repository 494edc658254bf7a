"""Calls of services that have sandboxes: bounded, without redirects, and no key in any error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec

from perdure.core.errors import InputInvalidError, PerdureError, SandboxUnavailableError
from perdure.ports import Secrets

CALL_S = 30.0  # for an answer to anything but a job
CONNECT_S = 10.0
UPLOAD_S = 120.0  # for what a job is given to arrive, and for what it leaves to come back
ANSWER_BYTES_MAX = 1 << 20  # of an answer that is JSON
ERROR_LENGTH = 200  # of a service's own words in an error
CONNECTIONS_MAX = 128
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REFERENCE = "secret://"


class CallError(Exception):
    """A call that failed.

    Args:
        message: what happened, without anything secret.
        status: of the answer; 0 if there was none.
        never_sent: whether nothing of the request can have reached the service.
    """

    def __init__(self, message: str, *, status: int = 0, never_sent: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.never_sent = never_sent

    @property
    def was_refused(self) -> bool:
        """Whether nothing was done: it did not arrive, or was turned down."""
        return self.never_sent or 400 <= self.status < 500


class Key:
    """A key that is resolved when it is used, and never shown.

    Args:
        value: the key, or a reference such as ``secret://e2b``.
        secrets: what resolves references.
    """

    def __init__(self, value: str, secrets: Secrets | None = None) -> None:
        if value.startswith(REFERENCE) and secrets is None:
            raise InputInvalidError(
                f"`{value}` is a reference and nothing is there to resolve it; give `secrets`"
            )
        self._value = value
        self._secrets = secrets

    def __repr__(self) -> str:
        return "Key(***)"

    def get(self) -> str:
        """The key.

        Raises:
            SandboxUnavailableError: it cannot be resolved.
        """
        if self._secrets is None or not self._value.startswith(REFERENCE):
            return self._value
        try:
            return self._secrets.resolve(self._value)
        except PerdureError as error:
            raise SandboxUnavailableError(
                f"the key of a sandbox service is missing: {error.message}"
            ) from error


class Calls:
    """The calls of one service.

    Args:
        service: its name, for errors.
        ca_file: certificates to trust instead of the usual ones.
    """

    def __init__(self, service: str, *, ca_file: str | None = None) -> None:
        self._service = service
        self._secret: set[str] = set()
        verify: Any = True
        if ca_file is not None:
            import ssl

            verify = ssl.create_default_context(cafile=ca_file)
        self._client = httpx2.AsyncClient(
            verify=verify, trust_env=False, follow_redirects=False,
            timeout=httpx2.Timeout(CALL_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
        )  # fmt: skip

    def hide(self, *values: str) -> None:
        """Never show these in an error."""
        self._secret.update(value for value in values if value)

    def said(self, text: str) -> str:
        """A service's own words, short and without what is secret."""
        for value in self._secret:
            text = text.replace(value, "***")
        return " ".join(text.split())[:ERROR_LENGTH]

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, url: str, *, seconds: float | None = CALL_S, **request: Any
    ) -> AsyncIterator[httpx2.Response]:
        """An answer whose body is read by the caller.

        Raises:
            CallError: there is none, or it is no success.
        """
        timeout = httpx2.Timeout(seconds, connect=CONNECT_S)
        try:
            async with self._client.stream(method, url, timeout=timeout, **request) as answer:
                if not answer.is_success:
                    words = self.said((await _whole(answer, ANSWER_BYTES_MAX)).decode(errors="replace"))
                    raise CallError(
                        f"{self._service} answered {answer.status_code}: {words}", status=answer.status_code
                    )
                yield answer
        except (
            httpx2.ConnectError,
            httpx2.ConnectTimeout,
            httpx2.PoolTimeout,
            httpx2.UnsupportedProtocol,
        ) as error:
            raise CallError(self._lost(url, error), never_sent=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CallError(self._lost(url, error)) from None

    def _lost(self, url: str, error: Exception) -> str:
        return f"{self._service} at {host_of(url)} cannot be reached: {type(error).__name__} {self.said(str(error))}"

    async def whole(
        self, method: str, url: str, *, most: int = ANSWER_BYTES_MAX, seconds: float = CALL_S, **request: Any
    ) -> bytes:
        """A whole body, in a whole time.

        Raises:
            CallError: it did not come, or is too long.
        """
        try:
            async with asyncio.timeout(seconds):
                async with self.stream(method, url, seconds=seconds, **request) as answer:
                    return await _whole(answer, most)
        except TimeoutError:
            raise CallError(f"{self._service} at {host_of(url)} did not answer in {seconds:g} s") from None

    async def told(self, method: str, url: str, **request: Any) -> dict[str, Any]:
        """An answer that is a JSON object; empty if it has no body."""
        data = await self.whole(method, url, **request)
        if not data.strip():
            return {}
        try:
            found = msgspec.json.decode(data)
        except msgspec.DecodeError:
            found = None
        if not isinstance(found, dict):
            raise CallError(f"{self._service} answered with something that is no JSON object")
        return found

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


async def _whole(answer: httpx2.Response, most: int) -> bytes:
    found = bytearray()
    async for part in answer.aiter_bytes():
        found += part
        if len(found) > most:
            raise CallError(f"an answer has more than {most} bytes")
    return bytes(found)


def host_of(url: str) -> str:
    """The host of an address, with its port if it has one."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def checked_url(url: str, *, allows_http: bool = False) -> str:
    """An address of a service, without a slash at its end.

    Raises:
        InputInvalidError: it is not HTTPS, and not on loopback either: keys and code would be readable on the way.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and (allows_http or parts.hostname in LOOPBACK)):
        return url.rstrip("/")
    raise InputInvalidError(
        f"`{parts.scheme}://{parts.hostname}` is no address for a sandbox service; expected https (http only on loopback)"
    )


def text(found: Mapping[str, Any], name: str) -> str:
    """A field of an answer that must be there.

    Raises:
        CallError: it is not.
    """
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise CallError(f"the answer of the service has no `{name}`")
    return value
