"""Connections to upstreams: kept alive one by one, the one used last first.

The HTTP library's own pool looks at each of its connections, with two system calls each, at the start and at the end of
every request: with 64 in flight that was a third of the gateway's time. Here each connection is a pool of one, and a
request looks at its own only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import httpx2

_Origin = tuple[str, str, int | None]


class Connections(httpx2.AsyncBaseTransport):
    """A transport for ``httpx2.AsyncClient``. How many are open at once is bounded by who asks.

    Args:
        idle_max: connections kept while nobody uses them; one more is closed.
        idle_ms: how long one is kept so.
    """

    def __init__(self, *, idle_max: int, idle_ms: int) -> None:
        self._idle_max = idle_max
        self._idle_s = idle_ms / 1000
        self._limits = httpx2.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=self._idle_s
        )
        # Certificates are read once. The environment has no say: it could name others to be trusted.
        self._certificates = httpx2.create_ssl_context(trust_env=False)
        self._idle: dict[_Origin, deque[tuple[float, httpx2.AsyncHTTPTransport]]] = {}
        self._idle_count = 0
        self._is_closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send on the connection that was used last, or on a new one; it is free again when the answer is closed."""
        origin = (request.url.scheme, request.url.host, request.url.port)
        idle = self._idle.get(origin)
        if idle:
            _, connection = idle.pop()
            self._idle_count -= 1
        else:
            connection = httpx2.AsyncHTTPTransport(
                verify=self._certificates, trust_env=False, limits=self._limits
            )
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _Lent(response.stream, connection, origin, self)
        return response

    async def give_back(self, origin: _Origin, connection: httpx2.AsyncHTTPTransport) -> None:
        """It is free again; those that nobody has used for long are closed."""
        now = asyncio.get_running_loop().time()
        surplus: list[httpx2.AsyncHTTPTransport] = []
        if self._is_closed or self._idle_count >= self._idle_max:
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


class _Lent(httpx2.AsyncByteStream):
    """The body of an answer, on a connection that is nobody else's until it is closed."""

    def __init__(
        self,
        body: httpx2.AsyncByteStream,
        connection: httpx2.AsyncHTTPTransport,
        origin: _Origin,
        connections: Connections,
    ) -> None:
        self._body = body
        self._connection = connection
        self._origin = origin
        self._connections = connections
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk

    async def aclose(self) -> None:
        """Let the connection go; one whose answer was not read to its end is closed by the library."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self._body.aclose()
        except BaseException:
            await self._connection.aclose()
            raise
        await self._connections.give_back(self._origin, self._connection)
