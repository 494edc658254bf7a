"""Joins connections: what comes in on one goes out on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from perdure.ports import WalledProgram

READ_BYTES = 65_536
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def joined(one: Connection, other: Connection) -> None:
    """Pass bytes both ways until both sides have said all; both are closed then."""
    try:
        await asyncio.gather(_passed(one[0], other[1]), _passed(other[0], one[1]))
    finally:
        for _, writer in (one, other):
            writer.close()


async def _passed(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(READ_BYTES):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


@contextlib.asynccontextmanager
async def window(wall: WalledProgram, port: int) -> AsyncIterator[int]:
    """A loopback port outside that leads to a port which a program listens on behind its wall."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        try:
            inner = await wall.connect(port)
        except ConnectionError:
            writer.close()
            return
        await joined((reader, writer), inner)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
