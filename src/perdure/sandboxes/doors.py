"""The ways out of a sandbox: listeners on its own loopback whose connections are served outside, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping

from perdure.ports import Door

READ_BYTES = 65_536
CONNECTIONS_MAX = 64  # open at once through all doors of a sandbox; more wait


class Doors:
    """The doors of one sandbox.

    Args:
        doors: who serves the connections to a port.
        bytes_max: of all connections together, both ways.
        breached: called when that is used up; connections are cut then.
    """

    def __init__(self, doors: Mapping[int, Door], bytes_max: int, breached: Callable[[], None]) -> None:
        self._doors = doors
        self._left = bytes_max
        self._breached = breached
        self._listeners: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)

    @property
    def ports(self) -> list[int]:
        """Where they are, inside."""
        return sorted(self._doors)

    def __bool__(self) -> bool:
        return bool(self._doors)

    async def serve(self, listeners: list[int]) -> None:
        """Take connections from listening sockets, one for each port in order."""
        loop = asyncio.get_running_loop()
        for port, descriptor in zip(self.ports, listeners, strict=True):
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)  # noqa: FBT003 - the standard library's own
            self._listeners.append(loop.create_task(self._accept(listener, self._doors[port])))

    async def _accept(self, listener: socket.socket, door: Door) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                await self._room.acquire()
                connection, _ = await loop.sock_accept(listener)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = loop.create_task(self._connection(connection, door))
                self._connections.add(task)
                task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._room.release()
        if not task.cancelled():
            task.exception()  # a connection that broke is that connection's affair

    async def _connection(self, connection: socket.socket, door: Door) -> None:
        """Serve one through a pair of our own, so that each byte is counted."""
        ours, theirs = socket.socketpair()
        inner = await asyncio.open_connection(sock=connection)
        near = await asyncio.open_connection(sock=ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        copying = [
            asyncio.ensure_future(self._copy(inner[0], near[1])),
            asyncio.ensure_future(self._copy(near[0], inner[1])),
        ]
        try:
            await door(reader, writer)
            writer.close()
            await copying[1]
        finally:
            for task in copying:
                task.cancel()
            await asyncio.gather(*copying, return_exceptions=True)
            for each in (writer, near[1], inner[1]):
                each.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(READ_BYTES):
                self._left -= len(data)
                if self._left < 0:
                    self._breached()
                    return
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

    async def close(self) -> None:
        """Cut what is open."""
        tasks = [*self._listeners, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
