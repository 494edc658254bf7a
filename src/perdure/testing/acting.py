"""The agents of simulated worlds that act: tools of every recovery class, models, budgets over a tree of runs."""

from __future__ import annotations

import asyncio

from perdure.agents.agent import Agent, agent
from perdure.agents.run import Run
from perdure.core.actions import Budget
from perdure.core.errors import PerdureError
from perdure.testing.tools import ANSWER_TOKENS_MAX, PRICED, TOOLS, UNPRICED
from perdure.testing.world import here

_NAMES = tuple(tool.spec.name for tool in TOOLS)


async def _use(run: Run, n: int) -> str:
    """One action by the run's chance; what came of it."""
    number = int(run.random() * 8)
    try:
        if number >= 6:
            model = PRICED if number == 6 else UNPRICED
            answer = await run.model(
                model, [{"role": "user", "content": f"{n:08}"}], max_tokens=ANSWER_TOKENS_MAX
            )
            return str(answer["choices"][0]["message"]["content"])
        name = "opaque" if number >= 4 else _NAMES[number]
        return str(await run.act(name, n=n))
    except PerdureError as error:
        return error.code


@agent("errand", tools=TOOLS)
async def errand(run: Run, n: int) -> list[str]:
    """One action after the other; a failed one does not end it."""
    done = [await _use(run, index) for index in range(n + 1)]
    if run.random() < 0.3:
        await run.sleep(run.random() * 3)
    done.append(await _use(run, n))
    return done


@agent("crowd", tools=TOOLS)
async def crowd(run: Run, n: int) -> list[str]:
    """Actions side by side, some of them given up by a race or a time-out, then a wait."""
    done = await run.gather(*(_use(run, index) for index in range(n)))
    done.append(await run.race(_use(run, n), _late(run, 0.2)))
    try:
        async with asyncio.timeout(0.1):
            done.append(await _use(run, n))
    except TimeoutError:
        done.append("too late")
    task = asyncio.ensure_future(run.act("opaque", n=n))
    await asyncio.sleep(0)
    here().sometimes["action given up by its agent"] += task.cancel()
    await run.sleep(run.random() * 4)
    return done


async def _late(run: Run, seconds: float) -> str:
    await run.sleep(seconds)
    return "too late"


@agent("careless", tools=TOOLS)
async def careless(run: Run, n: int) -> str:
    """Ends while an action that it began is on its way; asks for what there is not."""
    try:
        await run.act("opaque", n="many")
    except PerdureError as error:
        run.emit("failed", error.code)
    task = asyncio.ensure_future(_use(run, n))
    await run.sleep(0.01)
    task.cancel()
    return "gone"


@agent("thrifty", tools=TOOLS, budget=Budget(calls=2, tokens=200, exhausted="hold", unpriced="allow"))
async def thrifty(run: Run, n: int) -> list[str]:
    """Waits for a larger budget when it has used up its own."""
    return await run.gather(*(_use(run, index) for index in range(n + 2)))


@agent("household", tools=TOOLS, budget=Budget(calls=5, tokens=400, usd_micros=400))
async def household(run: Run, n: int) -> list[str]:
    """Children that share a budget of which none gets too much; what goes over it fails."""
    return await _family(run, n, ("errand", "crowd", "errand"))


@agent("company", tools=TOOLS, budget=Budget(calls=4, usd_micros=300, exhausted="hold", unpriced="allow"))
async def company(run: Run, n: int) -> list[str]:
    """Children that share a budget, one of them with a budget of its own; what goes over it waits."""
    return await _family(run, n, ("errand", "thrifty", "careless"))


async def _family(run: Run, n: int, kinds: tuple[str, ...]) -> list[str]:
    children = [await run.spawn(kind, n) for kind in kinds]
    done = [await _use(run, n)]
    for child in children:
        try:
            await child.result()
            done.append("done")
        except PerdureError as error:
            done.append(error.code)
    return done


ACTORS: tuple[Agent, ...] = (errand, crowd, careless, thrifty, household, company)
