"""The load: an ordinary program that calls a model at ``OPENAI_BASE_URL``, as many at once as its input says.

One and the same client asks the bare proxy and, as a hosted program, the gateway. Its connections are raw, with prepared
bytes: it must not be what is measured. It needs nothing but the standard library and is started by its path, so that its
own start is short. The input is one line of JSON on stdin, the result one line on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

MARK = "bench-call "
MESSAGES = 10  # of each request, the last with the mark
FAILED = 75  # the exit code after which it is to be started again
_TEXT = "The quick brown fox jumps over the lazy dog, and nobody has asked it why. "


class Asker:
    """One connection, kept alive."""

    def __init__(self, load: Load) -> None:
        self._load = load

    async def __aenter__(self) -> Asker:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._load.host, self._load.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()

    async def document(self, name: str) -> float:
        """Ask and read the whole answer; milliseconds."""
        began = time.perf_counter()
        self._writer.write(self._load.request(name))
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(size)
        took = (time.perf_counter() - began) * 1000
        if not head.startswith(b"HTTP/1.1 200") or b'"stop"' not in body:
            raise RuntimeError(f"not an answer: {head[:200]!r} {body[:300]!r}")
        return took

    async def stream(self, name: str) -> float:
        """Ask for a stream and read it to its end; milliseconds to its first token."""
        began = time.perf_counter()
        self._writer.write(self._load.request(name))
        data, took = b"", 0.0
        while not data.endswith(b"0\r\n\r\n"):
            more = await self._reader.read(65_536)
            if not more:
                raise RuntimeError(f"the stream broke off: {data[-300:]!r}")
            data += more
            if not took and b"data:" in data:
                took = (time.perf_counter() - began) * 1000
        if not data.startswith(b"HTTP/1.1 200") or b"[DONE]" not in data:
            raise RuntimeError(f"not an answer: {data[:300]!r}")
        return took


class Load:
    """What one plan asks for.

    Args:
        plan: ``name`` (a prefix of the marks), ``size_bytes`` of a body, ``in_flight``, ``stream``, and either ``calls`` (how
            many) or ``seconds`` (after the warm-up).
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        address = urlsplit(os.environ["OPENAI_BASE_URL"])
        self.host, self.port = address.hostname, address.port
        body = json.dumps(_body(plan["size_bytes"], is_stream=plan.get("stream", False))).encode()
        self._before, self._after = body.split(MARK.encode() + b"00000000")
        size = len(body) + len(plan["name"]) + 1
        self._head = (
            f"POST {address.path}/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\n"
            f"authorization: Bearer {os.environ['OPENAI_API_KEY']}\r\ncontent-type: application/json\r\n"
            f"accept: application/json\r\nuser-agent: bench\r\ncontent-length: {size}\r\n\r\n"
        ).encode()
        self._issued = 0

    def request(self, name: str) -> bytes:
        """The bytes of one call; ``name`` has eight digits after the plan's prefix."""
        return b"".join((self._head, self._before, MARK.encode(), name.encode(), self._after))

    def _name(self) -> str:
        self._issued += 1
        return f"{self.plan['name']}/{self._issued:08}"

    async def calls(self, count: int, in_flight: int) -> dict[str, Any]:
        """So many calls, each of them once."""
        names = iter([self._name() for _ in range(count)])

        async def work() -> list[float]:
            async with Asker(self) as asker:
                return [await asker.document(name) for name in names]

        began = time.perf_counter()
        times = [took for part in await asyncio.gather(*(work() for _ in range(in_flight))) for took in part]
        return _told(times, time.perf_counter() - began)

    async def window(self, seconds: float, in_flight: int) -> dict[str, Any]:
        """Calls for a time, after a warm-up of a quarter of it; only those that begin and end in the window count."""
        opens = time.perf_counter() + seconds / 4
        closes = opens + seconds
        times: list[float] = []

        async def work() -> None:
            async with Asker(self) as asker:
                ask = asker.stream if self.plan.get("stream") else asker.document
                while (now := time.perf_counter()) < closes:
                    took = await ask(self._name())
                    if now >= opens and time.perf_counter() <= closes:
                        times.append(took)

        await asyncio.gather(*(work() for _ in range(in_flight)))
        return {**_told(times, seconds), "issued": self._issued}


def _body(size_bytes: int, *, is_stream: bool) -> dict[str, Any]:
    """A conversation as agents send it, of about so many bytes; the mark is in its last message."""
    text = (_TEXT * (size_bytes // len(_TEXT) + 1))[: max(1, (size_bytes - 900) // MESSAGES)]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i in range(MESSAGES - 2)]
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "find_hotels", "description": "Hotels of a city.", "parameters": city}
    return {
        "model": "gpt-4o-mini",
        "temperature": 0.2,
        "max_completion_tokens": 500,
        **({"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}),
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "system", "content": "You are a careful assistant. " + text},
            *turns,
            {"role": "user", "content": f"{text} {MARK}00000000"},
        ],
    }


def _told(times: list[float], seconds: float) -> dict[str, Any]:
    ordered = sorted(times)
    return {
        "calls": len(times),
        "calls_per_s": len(times) / seconds,
        "median_ms": median(times),
        "p99_ms": ordered[int(len(ordered) * 0.99)],
    }


async def main() -> None:
    """Do what the input says."""
    load = Load(json.loads(sys.stdin.readline()))
    plan = load.plan
    match plan["kind"]:
        case "window":
            told = await load.window(plan["seconds"], plan["in_flight"])
        case "replay":
            told = await _replay(load, plan)
        case _:
            told = await _frontier(load, plan)
    print(json.dumps(told), flush=True)


async def _replay(load: Load, plan: dict[str, Any]) -> dict[str, Any]:
    """The same calls in each attempt; all but the last attempt fail at the end, and leave their figures in a file."""
    number = int(os.environ["PERDURE_ATTEMPT"])
    figures = Path(plan["file"])
    so_far = json.loads(figures.read_text()) if number > 1 else []
    so_far.append(await load.calls(plan["calls"], plan["in_flights"][number - 1]))
    if number == len(plan["in_flights"]):
        return {"attempts": so_far}
    figures.write_text(json.dumps(so_far))
    sys.exit(FAILED)


async def _frontier(load: Load, plan: dict[str, Any]) -> dict[str, Any]:
    """So many calls one after the other, then (in the first attempt) nothing, until it is killed; later one call more."""
    told = await load.calls(plan["calls"], 1) if plan["calls"] else {}
    if os.environ.get("PERDURE_ATTEMPT") == "1":
        Path(plan["file"]).write_text("every answer is here")
        await asyncio.Event().wait()
    async with Asker(load) as asker:
        await asker.document(f"{plan['name']}/99999999")
    return told


if __name__ == "__main__":
    asyncio.run(main())
