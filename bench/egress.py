"""What the egress proxy costs beside direct connections, over loopback and in turns; without the two audit records of each attempt."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time

from perdure.core.egress import EgressHost, EgressNote, EgressRules
from perdure.tools.egress import EgressProxy

ROUNDS = 400
MANY_BYTES = 64 << 20
REPEATS = 5
NAME = "api.example.org"
SERVER = f"""
import asyncio

BIG = b"x" * (1 << 20)

async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    if b"/big" in head:
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: {MANY_BYTES}\\r\\n\\r\\n")
        for _ in range({MANY_BYTES >> 20}):
            writer.write(BIG)
            await writer.drain()
    else:
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


async def fetched(port: int, request: bytes) -> int:
    """One request on a connection of its own; the bytes that came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    size = 0
    while data := await reader.read(1 << 16):
        size += len(data)
    writer.close()
    return size


async def measured(server: int) -> None:
    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def note(said: EgressNote) -> None:
        return None

    rules = EgressRules(allow=(EgressHost(host=NAME, ports=(server,), private=True),))

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await EgressProxy(rules, note, resolver=here).serve(reader, writer)

    proxy = await asyncio.start_server(door, "127.0.0.1", 0)
    through = proxy.sockets[0].getsockname()[1]

    def asked(path: str, *, is_direct: bool) -> bytes:
        where = path if is_direct else f"http://{NAME}:{server}{path}"
        return f"GET {where} HTTP/1.1\r\nHost: {NAME}:{server}\r\n\r\n".encode()

    ways = {"direct": (server, True), "through the proxy": (through, False)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    rate: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (port, is_direct) in ways.items():
            began = time.perf_counter()
            assert await fetched(port, asked("/", is_direct=is_direct)) > 0
            took[name].append((time.perf_counter() - began) * 1000)
    for _ in range(REPEATS):
        for name, (port, is_direct) in ways.items():
            began = time.perf_counter()
            assert await fetched(port, asked("/big", is_direct=is_direct)) > MANY_BYTES
            rate[name].append(MANY_BYTES / (time.perf_counter() - began) / 1e6)
    for name in ways:
        p99 = statistics.quantiles(took[name], n=100)[98]
        print(
            f"{name}: {statistics.median(took[name]):.2f} ms a request (p99 {p99:.2f}), {statistics.median(rate[name]):.0f} MB/s"
        )
    proxy.close()


def main() -> int:
    """Both ways, in turns."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        asyncio.run(measured(int(server.stdout.readline())))
    finally:
        server.kill()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
