"""Isolated agents beside local ones: ``python -m bench.isolated``: durable steps per second, and the time after a killed worker.

Rounds of both in turn, in one process with a data directory each: the ratio is of the same minute of the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import processes
from bench.isolated_agents import AGENTS
from bench.workload import token
from perdure import Runtime
from perdure.core import entries as e
from perdure.core.workers import Isolation, WorkerRules

STEPS = 10
IN_FLIGHT = 256
ALONE_RUNS = 100  # one after the other, for the latency of a step alone
RULES = WorkerRules(isolation="process", min=2, max=2, concurrency=1_000)


async def speed(folder: Path, isolation: Isolation | WorkerRules, seconds: float) -> dict[str, float]:
    """Steps per second with many runs in flight, and milliseconds of one step alone."""
    async with Runtime.open(folder, agents=AGENTS, isolation=isolation) as runtime:

        async def one() -> None:
            found = await (await runtime.start("isolated-bench", STEPS)).result()
            assert found == [token(i) for i in range(STEPS)]

        for _ in range(5):
            await one()
        took = []
        for _ in range(ALONE_RUNS):
            began = time.perf_counter()
            await one()
            took.append((time.perf_counter() - began) * 1000 / STEPS)
        done, until = 0, time.perf_counter() + seconds
        began = time.perf_counter()

        async def many() -> None:
            nonlocal done
            while time.perf_counter() < until:
                await one()
                done += 1

        await asyncio.gather(*(many() for _ in range(IN_FLIGHT)))
        return {
            "steps_per_s": done * STEPS / (time.perf_counter() - began),
            "step_alone_ms": median(took),
        }


async def recovery(folder: Path, kills: int) -> dict[str, float]:
    """Milliseconds from kill -9 of the one worker to the next step that is durable; the start of a worker is in it."""
    took = []
    async with Runtime.open(
        folder, agents=AGENTS, isolation=WorkerRules(isolation="process", min=1, max=1)
    ) as runtime:
        handle = await runtime.start("isolated-spawned")
        places: Any = runtime.engine.places  # type: ignore[union-attr]
        for _ in range(kills):
            await asyncio.sleep(0.5)
            [worker] = places.pools[0].workers
            before = handle.journal()[-1].seq
            os.kill(worker.pid, signal.SIGKILL)
            began = time.perf_counter()
            while worker in places.pools[0].workers:  # what it had sent before it died is not the answer
                await asyncio.sleep(0.0005)
            before = handle.journal()[-1].seq
            async for entry in handle.entries(after=before):
                if isinstance(entry, e.StepCompleted):
                    break
            took.append((time.perf_counter() - began) * 1000)
        await runtime.cancel(handle.id)
    return {"p50_ms": median(took), "max_ms": max(took), "kills": kills}


async def measure(rounds: int, seconds: float, kills: int) -> dict[str, Any]:
    """Both, in turn."""
    rows = []
    for _ in range(rounds):
        row = {}
        for name, isolation in (("in_process", "none"), ("isolated", RULES)):
            with processes.folder() as path:
                row[name] = await speed(Path(path) / "data", isolation, seconds)  # type: ignore[arg-type]
        rows.append(row)
    with processes.folder() as path:
        after = await recovery(Path(path) / "data", kills)
    return {
        "rounds": rows,
        "steps_ratio": median(
            row["isolated"]["steps_per_s"] / row["in_process"]["steps_per_s"] for row in rows
        ),
        "step_alone_ratio": median(
            row["isolated"]["step_alone_ms"] / row["in_process"]["step_alone_ms"] for row in rows
        ),
        "after_kill": after,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.isolated", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--kills", type=int, default=10)
    chosen = parser.parse_args()
    found = asyncio.run(measure(chosen.rounds, chosen.seconds, chosen.kills))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
