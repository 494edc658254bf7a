"""The worker process of the engine suite: ``python -m perdure.testing.conformance.worker``.

``embedded FOLDER`` drives a data directory, ``isolated FOLDER`` the same with its agents in worker processes, ``temporal ADDRESS QUEUE`` works for a cluster. It prints ``ready`` when it
works, and goes on until it is stopped or killed.
"""

from __future__ import annotations

import asyncio
import sys

from perdure.core.limits import Settings
from perdure.core.workers import Isolation
from perdure.runtime import Runtime
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.testing.conformance.agents import AGENTS, STEPS

SETTINGS = Settings(lease_ms=2_000, drain_ms=1_000, poll_ms=50)


async def embedded(folder: str, isolation: Isolation) -> None:
    """Drive a data directory."""
    async with Runtime.open(folder, agents=AGENTS, settings=SETTINGS, isolation=isolation):
        await _work()


async def temporal(address: str, queue: str) -> None:
    """Work for a Temporal cluster."""
    from perdure.engines.temporal import TemporalEngine  # needs an extra

    engine = await TemporalEngine.connect(
        address, queue=queue, clock=SystemClock(), entropy=SystemEntropy(), settings=SETTINGS
    )
    async with engine.worker(AGENTS, STEPS):
        await _work()


async def _work() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "temporal":
        asyncio.run(temporal(sys.argv[2], sys.argv[3]))
    else:
        asyncio.run(embedded(sys.argv[2], "process" if sys.argv[1] == "isolated" else "none"))
