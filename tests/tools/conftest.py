"""A real HTTP server for tools to call."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[str, str, dict[str, str], bytes], Awaitable[Answer | None]]


class Shop:
    """What the server was asked, and its port. ``handler`` may answer otherwise; ``None`` breaks the connection off."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.port = 0
        self.handler: Handler | None = None
        self.serving: set[asyncio.Task[None]] = set()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.append((method, path, headers, body))
            answer: Answer | None = (
                200,
                {"content-type": "application/json"},
                json.dumps({"path": path}).encode(),
            )
            if self.handler is not None:
                answer = await self.handler(method, path, headers, body)
            if answer is not None:
                status, told, data = answer
                told.setdefault("content-length", str(len(data)))
                lines = [
                    f"HTTP/1.1 {status} X",
                    *(f"{name}: {value}" for name, value in told.items()),
                    "connection: close",
                ]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await asyncio.gather(*made.serving, return_exceptions=True)
    await server.wait_closed()
