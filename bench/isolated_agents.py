"""The agents of ``bench.isolated``: in a module of their own, which worker processes import."""

from __future__ import annotations

from bench.workload import token
from perdure import Run, agent, step


@step
async def token_step(i: int) -> str:
    """The step of the other measures."""
    return token(i)


@agent("isolated-bench")
async def stepping(run: Run, steps: int) -> list[str]:
    """The run."""
    return [await run.step(token_step, i) for i in range(steps)]


@agent("isolated-spawned")
async def endless(run: Run) -> None:
    """A run that never ends, for kills."""
    number = 0
    while True:
        await run.step(token_step, number)
        number += 1
        if number % 50 == 0:
            await run.sleep(0.001)


AGENTS = [stepping, endless]
