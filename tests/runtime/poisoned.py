"""A worker with a run that kills its process: run as a program by the tests."""

from __future__ import annotations

import asyncio
import os
import sys

from perdure import Run, Runtime, Settings, agent, step


@step
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@agent("poison")
async def poison(run: Run) -> None:
    await run.step(nap, 0.01)
    os._exit(9)


@agent("innocent")
async def innocent(run: Run) -> str:
    for _ in range(4):
        await run.step(nap, 0.15)
    return "fine"


async def main(data: str, start: bool) -> None:
    settings = Settings(recoveries_max=3, poll_ms=20)
    async with Runtime.open(data, agents=[poison, innocent], settings=settings) as runtime:
        if start:
            await asyncio.gather(runtime.start("poison"), *(runtime.start("innocent") for _ in range(5)))
        while any(row.status != "blocked" for row in runtime.runs(status="unfinished")):
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "start"))
