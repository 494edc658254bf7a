"""Measure 3, on Perdure: the memory that parked runs keep, and how soon a message wakes one."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.workload import probe

WAKES = 300  # runs that are woken one after the other
STARTERS = 256  # starts in flight while the runs are made
WAIT_S_MAX = 600


async def measure(name: str, directory: Path, *, runs: int) -> dict[str, Any]:
    """Park ``runs`` runs, look at the resident memory, wake some one after the other."""
    from bench.subjects import load

    subject: Any = load(name)
    await subject.setup(directory)
    await asyncio.gather(*(subject.run(3) for _ in range(STARTERS)))  # caches and pools are not the runs'
    idle = _settled_bytes()
    begin = time.monotonic()
    ids = await _park(subject.runtime, runs)
    parked_s = time.monotonic() - begin
    resident = _settled_bytes()
    waits = [await _wake(subject.runtime, run) for run in random.Random(1).sample(ids, min(WAKES, len(ids)))]
    return {
        "runs": runs,
        "park_s": parked_s,
        "idle_bytes": idle,
        "resident_bytes": resident,
        "wakes": len(waits),
        "bytes_per_run": (resident - idle) / runs,
        "wake_ms": median(waits) * 1000,
        "wake_p99_ms": sorted(waits)[int(len(waits) * 0.99)] * 1000,
    }


async def _park(runtime: Any, runs: int) -> list[str]:
    left = iter(range(runs))
    ids: list[str] = []  # only some, over the whole range: the list must not count as the runs' memory
    stride = max(1, runs // (WAKES * 2))

    async def starter() -> None:
        for i in left:
            handle = await runtime.start("parked", {})
            if i % stride == 0:
                ids.append(handle.id)

    await asyncio.gather(*(starter() for _ in range(STARTERS)))
    end = time.monotonic() + WAIT_S_MAX
    while runtime.runs(agent="parked", status=["queued", "running"], limit=1):
        if time.monotonic() > end:
            raise RuntimeError(f"after {WAIT_S_MAX} s not all of {runs} runs are parked")
        await asyncio.sleep(0.2)
    return ids


async def _wake(runtime: Any, run: str) -> float:
    handle = runtime.run(run)
    probe.times.clear()
    probe.recording = True
    begin = time.monotonic()
    await handle.send("wake", {"by": "bench"})
    await handle.result(timeout=30)
    probe.recording = False
    return probe.times[0] - begin


def _settled_bytes() -> int:
    """Resident bytes of this process, read after what is garbage has gone."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")
