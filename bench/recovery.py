"""Measure 4, on Perdure: kill -9 with many unfinished runs, start again, until all are done.

Two processes: one makes the runs and is killed by itself with SIGKILL; the other, started by the
caller, tells on the machine-wide monotonic clock when the first step ran and when all were done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from bench.workload import check, probe

STEPS = 6
DONE_STEPS = 3  # of each run, when the process is killed
WAIT_S_MAX = 600


async def measure(name: str, directory: Path, *, phase: str, runs: int, began: float = 0.0) -> dict[str, Any]:
    """``make`` and be killed, or ``resume``; ``began`` is when the process was started (monotonic seconds)."""
    if name != "perdure":
        raise RuntimeError("recovery is measured on Perdure alone")
    if phase == "make":
        await _make(directory, runs)
    return await _resume(directory, runs, began)


async def _make(directory: Path, runs: int) -> None:
    from bench.subjects.perdure import Bench, gate

    gate.clear()
    # All at once, so that each is in the middle; the process that resumes them has the default settings.
    subject = Bench(concurrency=runs)
    await subject.setup(directory)
    for _ in range(runs):
        await subject.runtime.start("held", [STEPS, DONE_STEPS])
    end = time.monotonic() + WAIT_S_MAX
    while probe.count < runs * DONE_STEPS:
        if time.monotonic() > end:
            raise RuntimeError(f"only {probe.count} of {runs * DONE_STEPS} steps ran before the kill")
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # the last results are recorded
    os.kill(os.getpid(), signal.SIGKILL)


async def _resume(directory: Path, runs: int, began: float) -> dict[str, Any]:
    from bench.subjects.perdure import Bench

    probe.recording = True
    subject = Bench()
    await subject.setup(directory)
    opened = time.monotonic()
    end = opened + WAIT_S_MAX
    while subject.runtime.runs(status="unfinished", limit=1):
        if time.monotonic() > end:
            raise RuntimeError(f"after {WAIT_S_MAX} s not all of {runs} runs are done")
        await asyncio.sleep(0.02)
    done = time.monotonic()
    ended = subject.runtime.runs(agent="held", limit=runs + 1)
    check(await subject.runtime.run(ended[0].id).result(), STEPS)
    return {
        "runs": runs,
        "ended": len(ended),
        "completed": sum(record.status == "completed" for record in ended),
        "opened_s": opened - began,
        "first_step_s": probe.times[0] - began,
        "all_done_s": done - began,
        "steps_again": probe.count - runs * (STEPS - DONE_STEPS),
    }
