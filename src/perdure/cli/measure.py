"""``bench``: durable steps on this disk, beside the bare SQLite commits that bound them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from perdure.agents import Run, agent, step
from perdure.cli.output import Out
from perdure.core import entries as e
from perdure.runtime import Runtime

STEPS = 10  # of each run
IN_FLIGHT = 200  # runs at once in the measure of throughput
BODY = b"x" * 128  # what a bare commit writes: about as much as an entry
_begun: list[float] = []


@step
async def nothing(number: int) -> int:
    """A step that does no work: what remains is what durability costs."""
    _begun.append(time.perf_counter())
    return number


@agent("perdure-bench", version="1")
async def bench_agent(run: Run, steps: int) -> int:
    """Steps one after the other."""
    total = 0
    for number in range(steps):
        total += await run.step(nothing, number)
    return total


def bench(data: Path, out: Out, *, seconds: float) -> None:
    """Measure in a folder of its own inside ``data``, which is removed again."""
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="perdure-bench-", dir=data))
    try:
        bare = _bare(folder / "bare.db", seconds)
        durable = asyncio.run(_durable(folder / "data", seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, Any] = {"data": str(data), "seconds": seconds, "bare": bare, "perdure": durable}
    if out.json:
        out.emit(found)
        return
    one, many = durable["alone"], durable["together"]
    out.table(
        ("measure", "per second", "p50 ms", "p99 ms"),
        [
            _row("bare SQLite commits, one at a time", bare),
            _row("durable steps, one run alone", one),
            _row(f"durable steps, {IN_FLIGHT} runs at once", many),
        ],
    )
    out.text(
        f"each step is durable (fsync) before the next begins; {durable['durability']} durability, "
        f"{many['steps_per_commit']:.1f} steps share a commit under load"
    )


def _row(name: str, found: dict[str, float]) -> list[str]:
    p50, p99 = found.get("p50_ms"), found.get("p99_ms")
    return [
        name,
        f"{found['per_s']:,.0f}",
        "" if p50 is None else f"{p50:.2f}",
        "" if p99 is None else f"{p99:.2f}",
    ]


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50_ms": median(ordered) * 1000,
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
    }


def _bare(path: Path, seconds: float) -> dict[str, float]:
    """One row, one commit, one fsync, again and again."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, body BLOB)")
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO entries (body) VALUES (?)", (BODY,))
        connection.execute("COMMIT")
        times.append(time.perf_counter() - before)
    took = time.perf_counter() - begin
    connection.close()
    return {"per_s": len(times) / took, **_spread(times)}


async def _durable(folder: Path, seconds: float) -> dict[str, Any]:
    async with Runtime.open(folder, agents=[bench_agent]) as runtime:
        for _ in range(3):  # warm
            await _one(runtime)
        intervals: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            _begun.clear()
            await _one(runtime)
            intervals += [later - earlier for earlier, later in pairwise(_begun)]
        alone = {"per_s": 1 / (sum(intervals) / len(intervals)), **_spread(intervals)}
        together = await _together(runtime, seconds)
        return {"alone": alone, "together": together, "durability": runtime.settings.durability}


async def _one(runtime: Runtime) -> None:
    handle = await runtime.start("perdure-bench", STEPS)
    await handle.result()


async def _together(runtime: Runtime, seconds: float) -> dict[str, float]:
    _begun.clear()
    begin = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - begin < seconds:
            await _one(runtime)

    before = _commits(runtime)
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    took = time.perf_counter() - begin
    commits = _commits(runtime) - before
    recorded = runtime.store.read(_steps_of(runtime))
    steps = len(_begun)
    if recorded != STEPS:
        raise AssertionError(f"a run of the measurement recorded {recorded} of {STEPS} steps")
    return {"per_s": steps / took, "steps_per_commit": steps / max(1, commits)}


def _commits(runtime: Runtime) -> int:
    return int(getattr(runtime.store, "batches", 0))


def _steps_of(runtime: Runtime) -> Any:
    """How many steps the journal of the last run has: the measurement measured what it says."""
    last = runtime.runs(limit=1)[0].id
    return lambda tx: sum(isinstance(item, e.StepCompleted) for item in tx.journal(last))
