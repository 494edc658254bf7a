"""A process that drives the agents of the Node.js worker: ``python -m tests.isolation.node_host DATA NODE``; it prints its workers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from perdure import Runtime, Settings, external, tool
from perdure.core.workers import WorkerRules

WORKER = Path(__file__).parent.parent.parent / "examples" / "node-worker" / "worker.mjs"


@tool(effect="read")
async def price(item: str) -> int:
    return len(item) * 100


def agents(node: str) -> list[Any]:
    command = (node, str(WORKER))
    return [
        external("node-order", command, version="1", tools=[price]),
        *(external(name, command, version="1") for name in ("node-retry", "node-fails", "node-waits")),
    ]


async def main(data: str, node: str) -> None:
    rules = WorkerRules(min=1, max=1)
    settings = Settings(lease_ms=2_000, poll_ms=50)
    async with Runtime.open(data, agents=agents(node), settings=settings, isolation=rules) as runtime:
        assert runtime.engine is not None
        told: list[int] = []
        while True:
            pids = [
                worker.pid for worker in runtime.engine.places.pools[0].workers if worker.state == "ready"
            ]  # type: ignore[union-attr]
            if pids and pids != told:
                print(*pids, flush=True)
                told = pids
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
