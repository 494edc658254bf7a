"""Perdure itself: the embedded engine with its default settings (SQLite, synchronous=FULL)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.workload import probe, token
from perdure import Run, Runtime, Settings, agent, step

gate = asyncio.Event()  # closed while unfinished runs are made for the recovery measure
gate.set()


@step()
async def token_step(i: int) -> str:
    """The step."""
    return token(i)


@step()
async def gated_step(i: int, first_held: int) -> str:
    """The step, or, from ``first_held`` on while the gate is closed, a wait in which the process is killed."""
    if i >= first_held:
        await gate.wait()
    return token(i)


@step()
async def reply_step(message: str) -> str:
    """One turn of a session: a reply as long as the message."""
    probe.hit()
    return message


@agent("bench")
async def bench(run: Run, steps: int) -> list[str]:
    """The run."""
    return [await run.step(token_step, i) for i in range(steps)]


@agent("held")
async def held(run: Run, steps: int, first_held: int) -> list[str]:
    """The run that is killed in the middle."""
    return [await run.step(gated_step, i, first_held) for i in range(steps)]


@agent("parked")
async def parked(run: Run) -> str:
    """The run that waits for a message, then takes a step."""
    await run.receive("wake")
    return await run.step(token_step, 0)


@agent("session")
async def session(run: Run, turns: int) -> int:
    """The session: a message in, a reply out, ``turns`` times."""
    for _ in range(turns):
        message = await run.receive("turn")
        if message is not None:
            await run.step(reply_step, message.body)
    return turns


AGENTS = [bench, held, parked, session]


class Bench:
    """Starts runs and waits for their results, as an application would."""

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings(**settings)

    async def setup(self, directory: Path) -> None:
        """Open the runtime; unfinished runs in the directory go on."""
        self.directory = directory / "perdure"
        self._stack = AsyncExitStack()
        self.runtime: Runtime = await self._stack.enter_async_context(
            Runtime.open(self.directory, agents=AGENTS, settings=self._settings)
        )

    async def run(self, steps: int) -> list[str]:
        """One run."""
        handle = await self.runtime.start("bench", steps)
        return list(await handle.result())

    async def teardown(self) -> None:
        """Drain and close."""
        await self._stack.aclose()
