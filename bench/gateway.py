"""Measure 6: what the gateway costs, over a bare proxy of the same stack that journals nothing, and what it gives for it.

Load, proxy or gateway, and provider are three processes; only one pair of load and proxy works at a time. In each round
everything is measured on both, in turn; then the gateway answers a run's calls again from its journal, and goes on after a
kill in the middle of a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.gateway_host import LOAD

Result = dict[str, Any]

# Size of a body, calls in flight, whether the answer is a stream.
WINDOWS: dict[str, tuple[int, int, bool]] = {
    "one_3kb": (3_000, 1, False),
    "one_30kb": (30_000, 1, False),
    "many_3kb": (3_000, 64, False),
    "many_30kb": (30_000, 64, False),
    "stream_3kb": (3_000, 1, True),
}
REPLAYS = (16, 1, 16)  # calls in flight in each attempt of a run: the first is live
SIZE_BYTES = 3_000  # of the bodies of replayed calls
START_S_MAX = 60  # until a process serves
ANSWER_S_MAX = 300  # until a run has ended
LOOK_S = 0.01


async def measure(name: str, directory: Path, *, rounds: int, seconds: float, calls: int) -> Result:
    """All rounds.

    Args:
        name: ``perdure``; only it is measured.
        directory: for data.
        rounds: how many.
        seconds: how long each window is.
        calls: of a run that is replayed, and of one that is killed.
    """
    if name != "perdure":
        raise RuntimeError("the gateway is measured on Perdure alone")
    # Modules are compiled once, as on any installation, whatever the environment says; beside the data, not the sources.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")
    done: list[Result] = []
    async with _serving("bench.gateway_upstream") as port:
        upstream = f"http://127.0.0.1:{port}/v1"
        async with _started("bench.subjects.bare_proxy", upstream) as proxy:
            port = int(await _first_line(proxy, START_S_MAX))
            for number in range(rounds):
                folder = directory / str(number)
                folder.mkdir()
                bare = _Bare(f"http://127.0.0.1:{port}/v1", proxy.pid)
                done.append(await _round(number, folder, upstream, bare, seconds, calls))
    return {"rounds": done, "calls": calls}


async def _round(number: int, folder: Path, upstream: str, bare: _Bare, seconds: float, calls: int) -> Result:
    row: Result = {"bare": {}, "gateway": {}}
    async with _Host.open(folder / "data", upstream) as host:
        for window, (size_bytes, in_flight, is_stream) in WINDOWS.items():
            plan = {
                "kind": "window", "size_bytes": size_bytes, "in_flight": in_flight, "stream": is_stream, "seconds": seconds,
            }  # fmt: skip
            asked = (("bare", bare), ("gateway", host))
            for who, target in asked if number % 2 == 0 else asked[::-1]:
                row[who][window] = await _window(target, {**plan, "name": f"{who}-{window}-{number}"})
        row["replay"] = await _replay(host, folder, upstream, f"replay-{number}", calls)
    row["crash"] = await _crash(folder, upstream, f"crash-{number}", calls)
    return row


async def _window(target: _Bare | _Host, plan: Result) -> Result:
    """Figures of one window, with the processor time of the proxy or runtime for each call."""
    before_ms = _processor_ms(target.pid)
    told = await target.load(plan)
    return {**told, "cpu_ms": (_processor_ms(target.pid) - before_ms) / told["issued"]}


def _processor_ms(pid: int) -> float:
    """What a process has used so far, in user and kernel mode, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


async def _replay(host: _Host, folder: Path, upstream: str, name: str, calls: int) -> Result:
    """A run whose program makes the same calls in three attempts."""
    plan = {
        "kind": "replay", "name": name, "size_bytes": SIZE_BYTES, "calls": calls, "in_flights": REPLAYS,
        "file": str(folder / "figures.json"),
    }  # fmt: skip
    told = await host.load(plan)
    live, alone, side_by_side = told["attempts"]
    seen = await _seen(upstream, name)
    return {"live": live, "alone": alone, "side_by_side": side_by_side, "repeated": seen["repeated"]}


async def _crash(folder: Path, upstream: str, name: str, calls: int) -> Result:
    """Kill the runtime when the program has all answers but the last, start another, wait for the last call upstream."""
    ready = folder / "ready"
    plan = {"kind": "frontier", "name": name, "size_bytes": SIZE_BYTES, "calls": calls, "file": str(ready)}
    async with _Host.open(folder / "killed", upstream) as host:
        await host.tell(plan)
        until = time.monotonic() + ANSWER_S_MAX
        while not ready.exists():
            if time.monotonic() > until:
                raise RuntimeError(f"the program did not get {calls} answers within {ANSWER_S_MAX} s")
            await asyncio.sleep(LOOK_S)
        await host.kill()
    own_start_s = median([await _own_start(upstream, f"start-{name}-{i}") for i in range(3)])
    began = time.monotonic()
    async with _Host.open(folder / "killed", upstream) as host:
        opened_s = time.monotonic() - began
        await host.load(plan)
    seen = await _seen(upstream, name)
    frontier_s = seen["newest_at"] - began
    return {
        "calls": calls,
        "seen": seen["calls"],
        "repeated": seen["repeated"],
        "opened_s": opened_s,
        "own_start_s": own_start_s,
        "frontier_s": frontier_s,
        "gateway_s": frontier_s - own_start_s,
    }


async def _own_start(upstream: str, name: str) -> float:
    """Seconds from the start of the program to its first call when nothing is between it and the provider."""
    began = time.monotonic()
    await _Bare(upstream).load({"kind": "frontier", "name": name, "size_bytes": SIZE_BYTES, "calls": 0})
    return float((await _seen(upstream, name))["newest_at"]) - began


async def _seen(upstream: str, name: str) -> Result:
    """What came to the provider of the calls whose names begin so."""
    port = int(upstream.rsplit(":", 1)[1].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /seen/{name}/ HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
    told: Result = json.loads(await reader.readexactly(size))
    writer.close()
    return told


# -- processes
class _Bare:
    """An address that the load asks directly."""

    def __init__(self, address: str, pid: int = 0) -> None:
        self.pid = pid  # of who serves there
        self._environment = {**os.environ, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none"}

    async def load(self, plan: Result) -> Result:
        """Run the load to its end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(LOAD)), env=self._environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaints = await process.communicate(json.dumps(plan).encode() + b"\n")
        if process.returncode:
            raise RuntimeError(f"the load ended with {process.returncode}: {complaints.decode()[-300:]}")
        told: Result = json.loads(output)
        return told


class _Host:
    """A runtime that runs the load as a hosted program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, upstream: str) -> AsyncIterator[_Host]:
        """Serve inside the block; ended in good order unless it was killed."""
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(_started("bench.gateway_host", str(folder), upstream))
            host = cls(process)
            await host._line(START_S_MAX)
            yield host
            if process.returncode is None and process.stdin is not None:
                process.stdin.close()
                async with asyncio.timeout(START_S_MAX):
                    await process.wait()

    async def tell(self, plan: Result) -> None:
        """Start a run of the load, or find the one that has this name."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(plan).encode() + b"\n")
            await self._process.stdin.drain()

    async def load(self, plan: Result) -> Result:
        """Run the load to its end."""
        await self.tell(plan)
        told: Result = json.loads(await self._line(ANSWER_S_MAX))
        return told

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()

    async def _line(self, within_s: float) -> bytes:
        return await _first_line(self._process, within_s)


@asynccontextmanager
async def _serving(module: str, *arguments: str) -> AsyncIterator[int]:
    """A server that prints its port, until the end of the block."""
    async with _started(module, *arguments) as process:
        yield int(await _first_line(process, START_S_MAX))


@asynccontextmanager
async def _started(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of this group, killed at the end of the block if it is still there."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _first_line(process: asyncio.subprocess.Process, within_s: float) -> bytes:
    if process.stdout is None:
        raise RuntimeError("the process has no output to read")
    async with asyncio.timeout(within_s):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended with {await process.wait()}; what it said is above")
    return line
