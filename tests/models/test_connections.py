"""Connections to upstreams: kept, reused, and never used again once they are not clean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from perdure.models.connections import FAILURES, Connections

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Answers each request on a connection with the same bytes, and counts."""

    def __init__(self, answer: bytes = ANSWER, *, answers_max: int = 1_000) -> None:
        self.answer = answer
        self.answers_max = answers_max  # after so many it hangs up
        self.opened = 0
        self.open = 0
        self.heads: list[bytes] = []
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        try:
            for _ in range(self.answers_max):
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await reader.readexactly(4)
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1
            self.closed.set()

    async def left(self, count: int) -> None:
        """Until no more than ``count`` connections are open."""
        async with asyncio.timeout(5):
            while self.open > count:
                self.closed.clear()
                await self.closed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx2.URL]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield httpx2.URL(f"http://127.0.0.1:{port}/v1/chat")
        finally:
            server.close()
            await self.left(0)


@asynccontextmanager
async def kept(idle_max: int = 8, idle_ms: int = 10_000) -> AsyncIterator[Connections]:
    connections = Connections(idle_max=idle_max, idle_ms=idle_ms, connect_ms=1_000)
    try:
        yield connections
    finally:
        await connections.aclose()


async def ask(connections: Connections, url: httpx2.URL) -> bytes:
    reply = await connections.post(url, {"x-a": "1"}, b"body")
    try:
        return b"".join([chunk async for chunk in reply.body()])
    finally:
        await reply.aclose()


async def test_one_after_the_other_share_a_connection() -> None:
    server = Server()
    async with server.running() as url, kept() as connections:
        assert [await ask(connections, url) for _ in range(3)] == [b"hello"] * 3
        assert server.opened == 1
    head = server.heads[0].lower()
    assert head.startswith(b"post /v1/chat http/1.1\r\n")
    assert f"host: 127.0.0.1:{url.port}".encode() in head
    assert b"content-length: 4" in head
    assert b"x-a: 1" in head


async def test_side_by_side_have_one_each_and_only_some_are_kept() -> None:
    server = Server()
    async with server.running() as url, kept(idle_max=2) as connections:
        assert await asyncio.gather(*(ask(connections, url) for _ in range(5))) == [b"hello"] * 5
        assert server.opened == 5
        await server.left(2)
        assert await asyncio.gather(*(ask(connections, url) for _ in range(2))) == [b"hello"] * 2
        assert server.opened == 5


async def test_one_that_the_other_side_hung_up_is_not_used_again() -> None:
    server = Server(answers_max=1)
    async with server.running() as url, kept() as connections:
        for _ in range(3):
            assert await ask(connections, url) == b"hello"
            await server.left(0)
        assert server.opened == 3


async def test_one_whose_answer_was_not_read_to_its_end_is_not_used_again() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhello")
    async with server.running() as url, kept() as connections:
        for _ in range(2):
            reply = await connections.post(url, {}, b"body")
            assert reply.status == 200
            await reply.aclose()
            await reply.aclose()
            await server.left(0)
        assert server.opened == 2


async def test_what_has_rested_for_long_is_closed() -> None:
    server = Server()
    async with server.running() as url, kept(idle_ms=1) as connections:
        await asyncio.gather(*(ask(connections, url) for _ in range(3)))
        await asyncio.sleep(0.01)  # the rest itself is what is tested
        assert await ask(connections, url) == b"hello"
        assert server.opened == 4


async def test_credentials_of_an_address_are_sent_as_such() -> None:
    server = Server()
    async with server.running() as url, kept() as connections:
        await ask(connections, url.copy_with(userinfo=b"me:wo%20rd"))
    assert b"authorization: Basic bWU6d28gcmQ=\r\n" in server.heads[0]
    assert b"me:" not in server.heads[0]


async def test_nobody_there_is_a_failure() -> None:
    server = Server()
    async with server.running() as url:
        pass
    async with kept() as connections:
        with pytest.raises(FAILURES):
            await ask(connections, url)
