"""Measures 1 and 2, on one subject in this process: latency alone, then throughput with many in flight."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from statistics import median
from typing import Any

from bench.subjects import Subject
from bench.workload import IN_FLIGHT, STEPS, check, probe

WARM_RUNS = 5
WARM_S_MAX = 30  # a subject that has not begun a step for each run in flight by then is measured as it is
RUNS_MAX = 400  # runs of the latency measure: enough for a steady median


async def measure(subject: Subject, *, latency_s: float, throughput_s: float) -> dict[str, Any]:
    """Both measures, in the order in which the second cannot disturb the first."""
    for _ in range(WARM_RUNS):
        check(await subject.run(STEPS), STEPS)
    return {
        "latency": await latency(subject, latency_s),
        "throughput": await throughput(subject, throughput_s),
    }


async def run_many(subject: Subject, runs: int, steps: int, in_flight: int) -> list[float]:
    """Execute ``runs`` runs, at most ``in_flight`` at once; the seconds that each took."""
    gate = asyncio.Semaphore(in_flight)
    durations: list[float] = []

    async def one() -> None:
        async with gate:
            begin = time.monotonic()
            check(await subject.run(steps), steps)
            durations.append(time.monotonic() - begin)

    await asyncio.gather(*(one() for _ in range(runs)))
    return durations


async def latency(subject: Subject, seconds: float) -> dict[str, Any]:
    """One run at a time: the interval from step to step, and a run divided by its steps; medians in ms."""
    intervals: list[float] = []
    durations: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(durations) < RUNS_MAX:
        probe.times.clear()
        probe.recording = True
        durations += await run_many(subject, 1, STEPS, 1)
        probe.recording = False
        intervals += [later - earlier for earlier, later in pairwise(probe.times)]
    return {
        "runs": len(durations),
        "step_ms": median(intervals) * 1000,
        "step_p99_ms": sorted(intervals)[int(len(intervals) * 0.99)] * 1000,
        "run_tenth_ms": median(durations) * 1000 / STEPS,
    }


async def throughput(subject: Subject, seconds: float) -> dict[str, Any]:
    """``IN_FLIGHT`` runs at once, each followed by a new one; steps begun per second of a fixed window.

    The window opens when a step for each run in flight has begun, so that the cost of the first starts is
    nobody's; a run's next step begins only when the last is recorded, so begun and recorded have one rate.
    """
    durations: list[float] = []

    async def lane() -> None:
        while True:
            begin = time.monotonic()
            check(await subject.run(STEPS), STEPS)
            durations.append(time.monotonic() - begin)

    before = probe.count
    lanes = [asyncio.create_task(lane()) for _ in range(IN_FLIGHT)]
    warm_end = time.monotonic() + WARM_S_MAX
    while probe.count - before < IN_FLIGHT and time.monotonic() < warm_end:
        _raise_first(lanes)
        await asyncio.sleep(0.02)
    begin, count = time.monotonic(), probe.count
    await asyncio.sleep(seconds)
    steps, elapsed = probe.count - count, time.monotonic() - begin
    _raise_first(lanes)
    for task in lanes:
        task.cancel()
    await asyncio.wait(lanes, timeout=5)
    return {
        "steps_per_s": steps / elapsed,
        "steps": steps,
        "elapsed_s": elapsed,
        "run_ms": median(durations) * 1000 if durations else None,
    }


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()
