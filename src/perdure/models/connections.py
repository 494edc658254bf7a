"""Connections to upstreams: kept alive, the one used last first, with nothing between them and a request.

A client library does more than is wanted here (redirects, cookies, proxies of the environment), and its pool looks at all of
its connections, with two system calls each, at the start and the end of every request: together that was a third of the
gateway's time. What speaks HTTP is the library's own connection.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import httpcore2
import httpx2

Origin = tuple[bytes, bytes, int]
ENCODED = frozenset({"gzip", "deflate"})
# What is raised when there is no answer, or when it breaks off.
FAILURES = (
    httpcore2.ConnectionNotAvailable,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    httpx2.RequestError,
    httpx2.InvalidURL,
)
_PORTS = {b"http": 80, b"https": 443}


class Connections:
    """Sends requests. How many are under way at once is bounded by who asks.

    Args:
        idle_max: connections kept while nobody uses them; one more is closed.
        idle_ms: how long one is kept so.
        connect_ms: how long connecting may take; nothing else is bounded here.
    """

    def __init__(self, *, idle_max: int, idle_ms: int, connect_ms: int) -> None:
        self._idle_max = idle_max
        self._idle_s = idle_ms / 1000
        self._extensions = {"timeout": {"connect": connect_ms / 1000}}
        # Certificates are read once. The environment has no say: it could name others to be trusted.
        self._certificates = httpx2.create_ssl_context(trust_env=False)
        self._idle: dict[Origin, deque[tuple[float, httpcore2.AsyncHTTPConnection]]] = {}
        self._idle_count = 0
        self._is_closed = False

    async def post(self, url: httpx2.URL, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send once; the head of the answer is there on return. Close it in any case.

        Raises:
            FAILURES: there is none.
        """
        port = url.port or _PORTS.get(url.raw_scheme, 0)
        origin = (url.raw_scheme, url.raw_host, port)
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=port, target=url.raw_path)
        fields = [(b"host", url.netloc), (b"content-length", b"%d" % len(body))]
        named = {**headers, "authorization": _basic(url)} if url.userinfo else headers
        fields += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        request = httpcore2.Request("POST", target, headers=fields, content=body, extensions=self._extensions)
        connection = await self._free(origin)
        if connection is None:
            connection = httpcore2.AsyncHTTPConnection(
                target.origin, ssl_context=self._certificates, keepalive_expiry=self._idle_s
            )
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        return Reply(response, connection, origin, self)

    async def _free(self, origin: Origin) -> httpcore2.AsyncHTTPConnection | None:
        """The one that was used last and is still good."""
        idle = self._idle.get(origin)
        while idle:
            _, connection = idle.pop()
            self._idle_count -= 1
            if not connection.has_expired():  # also that the other side has hung up
                return connection
            await connection.aclose()
        return None

    async def give_back(self, origin: Origin, connection: httpcore2.AsyncHTTPConnection) -> None:
        """It is free again, unless its answer was not read to the end. Those that nobody has used for long are closed."""
        now = asyncio.get_running_loop().time()
        surplus: list[httpcore2.AsyncHTTPConnection] = []
        if self._is_closed or self._idle_count >= self._idle_max or not connection.is_idle():
            surplus.append(connection)
        else:
            self._idle.setdefault(origin, deque()).append((now, connection))
            self._idle_count += 1
        for others in self._idle.values():
            while others and others[0][0] < now - self._idle_s:
                surplus.append(others.popleft()[1])
                self._idle_count -= 1
        for old in surplus:
            await old.aclose()

    async def aclose(self) -> None:
        """Close those that are free; the others are closed when their answers are."""
        self._is_closed = True
        idle = [connection for others in self._idle.values() for _, connection in others]
        self._idle.clear()
        self._idle_count = 0
        for connection in idle:
            await connection.aclose()


def _basic(url: httpx2.URL) -> str:
    """The credentials of an address like ``https://name:word@host``."""
    return f"Basic {b64encode(f'{url.username}:{url.password}'.encode()).decode()}"


class Reply:
    """An answer as it arrives, on a connection that is nobody else's until it is closed."""

    def __init__(
        self,
        response: httpcore2.Response,
        connection: httpcore2.AsyncHTTPConnection,
        origin: Origin,
        connections: Connections,
    ) -> None:
        self.status = response.status
        self.headers = httpx2.Headers(response.headers)
        self._response = response
        self._connection = connection
        self._origin = origin
        self._connections = connections
        self._is_closed = False

    def body(self) -> AsyncGenerator[bytes, None]:
        """The chunks, decoded.

        Raises:
            FAILURES: it broke off.
        """
        if self.headers.get("content-encoding", "").strip().lower() not in ENCODED:
            return self._response.aiter_stream()
        decoding = httpx2.Response(self.status, headers=self.headers, stream=_Stream(self._response))
        return decoding.aiter_bytes()

    async def aclose(self) -> None:
        """Let the connection go."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self._response.aclose()
        except BaseException:
            await self._connection.aclose()
            raise
        await self._connections.give_back(self._origin, self._connection)


class _Stream(httpx2.AsyncByteStream):
    """A body, for the library's decoders."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk
