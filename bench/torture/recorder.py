"""The world that tortured agents act on: an HTTP service in its own process that writes down whatever reaches it.

It never recognises a key a second time: what is sent twice is done twice, and stands in its log twice. Now and then it hangs
up after the effect and before the answer, so that doubt arises without a kill, too. ``python -m bench.torture.recorder LOG``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HEAD_BYTES_MAX = 64 * 1024
BEFORE_MS_MAX = 6.0  # between the arrival of a request and its effect
AFTER_MS_MAX = 14.0  # between the effect and the answer
HANGS_UP = 0.01  # of all requests: done, and not answered
PROBE = "/orders/"

OPERATIONS = {
    ("get", "/articles"): ("look", {"item": "string"}),
    ("put", "/addresses"): ("readdress", {"street": "string"}),
    ("post", "/payments"): ("pay", {"to": "string", "cents": "integer"}),
}


def document(port: int) -> dict[str, Any]:
    """What the service is, as OpenAPI: `look` is a read, `readdress` may be repeated, `pay` must not be."""
    paths: dict[str, Any] = {}
    for (method, path), (name, arguments) in OPERATIONS.items():
        parameters = [
            {"name": key, "in": "query", "required": True, "schema": {"type": kind}}
            for key, kind in arguments.items()
        ]
        answers = {"200": {"description": "done"}}
        paths[path] = {
            method: {"operationId": name, "summary": name, "parameters": parameters, "responses": answers}
        }
    return {"openapi": "3.1.0", "info": {"title": "shop", "version": "1"}, "paths": paths,
            "servers": [{"url": f"http://127.0.0.1:{port}"}]}  # fmt: skip


class Recorder:
    """Does what it is asked to, and notes it."""

    def __init__(self, log: Path) -> None:
        self._file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._chance = random.Random()  # the timing of the world is not to be repeatable
        self._orders: dict[str, str] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head[1:])
            }
            url, key = urlsplit(target), headers.get("idempotency-key", "")
            body = await self._done(method, url.path, dict(parse_qsl(url.query)), key)
            if body is not None:
                data = json.dumps(body).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                    b"content-length: %d\r\n\r\n" % len(data) + data
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # whoever asked is dead
        finally:
            writer.close()

    async def _done(self, method: str, path: str, asked: dict[str, str], key: str) -> dict[str, Any] | None:
        if path.startswith(PROBE):
            return {"receipt": self._orders.get(path[len(PROBE) :])}
        await asyncio.sleep(self._chance.uniform(0, BEFORE_MS_MAX) / 1000)
        receipt = f"{self._chance.getrandbits(64):016x}"
        line = {"key": key, "method": method, "path": path, "asked": asked, "receipt": receipt}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        if path == "/orders":
            self._orders[key] = receipt
        await asyncio.sleep(self._chance.uniform(0, AFTER_MS_MAX) / 1000)
        return None if self._chance.random() < HANGS_UP else {"receipt": receipt}


async def main(log: Path) -> None:
    """Serve until killed; the port is the first line of the output."""
    serve = Recorder(log).serve
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
