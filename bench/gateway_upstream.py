"""The model provider of the gateway's measures: ``python -m bench.gateway_upstream``. Prints its port and serves.

Raw asyncio, no framework, an answer at once: it must not be what is measured. It knows each call by the mark in its
body (``bench-call NAME``) and counts how often each one came: ``GET /seen/PREFIX``.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time

from bench.gateway_load import MARK

TOKENS = 8  # of a stream
TOKEN_MS = 3  # between them: above what is measured about the first one

_MARK = re.compile(re.escape(MARK.encode()) + rb"([\w./-]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_WORDS = "It is known that a call which was answered once need not be made again. " * 6
_USAGE = {"prompt_tokens": 700, "completion_tokens": 90, "total_tokens": 790}
_COMMON = {"id": "chatcmpl-bench", "created": 1_790_000_000, "model": "gpt-4o-mini-2024-07-18"}


def _answer(kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _document() -> bytes:
    message = {"role": "assistant", "content": _WORDS, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    told = {**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return _answer("application/json", json.dumps(told).encode())


def _events() -> list[bytes]:
    """The parts of a stream as they are written: the head, a token each, the end."""
    parts = [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"]
    deltas = [{"content": f" word{i}"} for i in range(TOKENS)]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    for choice in choices:
        told = {**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}
        parts.append(_chunk(b"data: " + json.dumps(told).encode() + b"\n\n"))
    told = {**_COMMON, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}
    parts.append(_chunk(b"data: " + json.dumps(told).encode() + b"\n\n"))
    parts.append(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    return parts


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


DOCUMENT, EVENTS = _document(), _events()


class Seen:
    """How often each call came, and when it came first (monotonic seconds, the same clock in every process)."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def note(self, name: str) -> None:
        """It came."""
        self._times.setdefault(name, []).append(time.monotonic())

    def told(self, prefix: str) -> bytes:
        """The calls whose names begin so: how many, how many of them more than once, when the last new one came."""
        found = [times for name, times in self._times.items() if name.startswith(prefix)]
        told = {
            "calls": len(found),
            "repeated": sum(len(times) - 1 for times in found),
            "newest_at": max((times[0] for times in found), default=0.0),
        }
        return _answer("application/json", json.dumps(told).encode())


class _Connection(asyncio.Protocol):
    """One connection; its requests come one after the other."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answers leave at once."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Answer when the request is whole."""
        buffer = self._buffer
        buffer += data
        head_size = buffer.find(b"\r\n\r\n") + 4
        if head_size < 4:
            return
        found = _LENGTH.search(buffer, 0, head_size)
        if len(buffer) < head_size + (int(found[1]) if found else 0):
            return
        request = bytes(buffer)
        buffer.clear()
        self._serve(request)

    def _serve(self, request: bytes) -> None:
        if request.startswith(b"GET /seen/"):
            self._transport.write(self._seen.told(request.split(b" ", 2)[1].decode().removeprefix("/seen/")))
            return
        mark = _MARK.search(request, max(0, len(request) - 400))  # it is in the last message
        if mark is not None:
            self._seen.note(mark[1].decode())
        if b'"stream": true' in request or b'"stream":true' in request:
            self._transport.write(EVENTS[0] + EVENTS[1])
            asyncio.get_running_loop().call_later(TOKEN_MS / 1000, self._go_on, 2)
        else:
            self._transport.write(DOCUMENT)

    def _go_on(self, at: int) -> None:
        self._transport.write(EVENTS[at])
        if at + 1 < len(EVENTS):
            asyncio.get_running_loop().call_later(TOKEN_MS / 1000, self._go_on, at + 1)


async def main() -> None:
    """Serve until killed."""
    seen = Seen()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(seen), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
