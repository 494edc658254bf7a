"""The agents of simulated worlds: small, and between them every durable call in every combination that matters.

Each step tells the world which *action* it is (its run and a number) and which earlier result its run has seen; the
oracle knows what was durable by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from perdure.agents.agent import Agent, agent
from perdure.agents.run import Run
from perdure.agents.step import step
from perdure.core.errors import PerdureError
from perdure.testing.world import here


@step(retries=60, backoff=0.05, backoff_max=0.5)
async def act(action: str, seen: str) -> str:
    """An effect that succeeds in the end."""
    return await here().perform(action, seen)


@step(retries=1, backoff=2.0, timeout=5.0)
async def brittle(action: str, seen: str) -> str:
    """An effect that may hang, and gives up soon; between its attempts the run may be parked."""
    return await here().perform(action, seen, may_hang=True)


@agent("chain")
async def chain(run: Run, n: int) -> list[str]:
    """One step after the other, with state and pauses."""
    done: list[str] = []
    for index in range(n):
        done.append(await run.step(act, f"{run.id}/{index}", done[-1] if done else ""))
        await run.state.set("last", index)
        if run.random() < 0.3:
            await run.sleep(run.random() * 3)
    assert await run.state.get("last") == n - 1
    return done


@agent("fan")
async def fan(run: Run, n: int) -> list[str]:
    """Steps side by side, races, time-outs, a patch."""
    first = await run.gather(*(run.step(act, f"{run.id}/{index}", "") for index in range(n)))
    winner = await run.race(_named(run.step(act, f"{run.id}/race", first[-1])), _late(run, 1.0))
    try:
        async with asyncio.timeout(0.5):
            winner = await run.step(act, f"{run.id}/timed", first[0])
    except TimeoutError:
        winner = "too late"
    if run.patched("more"):
        async with asyncio.TaskGroup() as group:
            left = group.create_task(_named(run.step(act, f"{run.id}/left", first[0])))
            group.create_task(asyncio.sleep(0.2))
        winner = left.result()
    return [*first, winner]


async def _named(call: Awaitable[str]) -> str:
    return await call


async def _late(run: Run, seconds: float) -> str:
    await run.sleep(seconds)
    return "too late"


@agent("brittle")
async def fragile(run: Run, n: int) -> str:
    """Steps that may fail for good: caught, then not."""
    try:
        seen = await run.step(brittle, f"{run.id}/0", "")
    except PerdureError as error:
        seen = ""
        run.emit("failed", error.code)
    return await run.step(brittle, f"{run.id}/{n}", seen)


@agent("collector")
async def collector(run: Run) -> list[str]:
    """Receives until it is told to stop, in every way that there is."""
    got: list[str] = []
    while True:
        chance = run.random()
        if chance < 0.3:
            message = await run.receive("mail", timeout=1.5)
        elif chance < 0.6:
            message = await run.race(run.receive("mail"), _nothing(run, 0.7))
        elif chance < 0.8:
            message = None
            try:
                async with asyncio.timeout(0.4):
                    message = await run.receive("mail")
            except TimeoutError:
                pass
        else:
            await run.step(act, f"{run.id}/{len(got)}-{run.uuid()}", "")
            message = await run.receive("mail")
        if message is None:
            continue
        if message.body == "stop":
            return got
        got.append(message.body)


async def _nothing(run: Run, seconds: float) -> None:
    await run.sleep(seconds)


@agent("parent")
async def parent(run: Run, n: int) -> list[str]:
    """Children, their results, and messages to one of them."""
    children = [await run.spawn("chain", 1 + index % 2) for index in range(n)]
    box = await run.spawn("collector")
    for index in range(n):
        await box.send("mail", f"{run.id}/{index}")
    results = await run.gather(*(child.result(list[str]) for child in children))
    await run.publish("news", 1, key="desk")
    await box.send("mail", "stop")
    mail = await box.result(list[str])
    seen = await run.step(act, f"{run.id}/end", results[0][-1])
    return [*mail, seen]


@agent("busy", subscribes=("news",))
async def busy(run: Run, n: int) -> int:
    """A session's runs, one after the other: each counts one further."""
    before = int(await run.state.get("count", 0))
    seen = ""
    for index in range(n):
        seen = await run.step(act, f"{run.id}/{index}", seen)
    await run.state.set("count", before + 1)
    return before + 1


@agent("exclusive", conflict="reject")
async def exclusive(run: Run, n: int) -> str:
    """A session that refuses a second run."""
    await run.sleep(n)
    return await run.step(act, f"{run.id}/0", "")


@agent("latest", conflict="interrupt")
async def latest(run: Run, n: int) -> str:
    """A session whose newest run interrupts the others; each puts its things away."""
    try:
        await run.sleep(n * 2)
        return await run.step(act, f"{run.id}/0", "")
    finally:
        await run.step(act, f"{run.id}/away", "")


@agent("hasty")
async def hasty(run: Run, n: int) -> list[str]:
    """Gives calls up in the moment in which it makes them, then waits for long."""
    for index in range(n + 1):
        task = asyncio.ensure_future(run.step(act, f"{run.id}/never-{index}", ""))
        if index == 0:
            await run.state.set("n", index)
        task.cancel()
    await run.sleep(70)
    return await run.gather(*(run.step(act, f"{run.id}/{index}", "") for index in range(n)))


@agent("asker")
async def asker(run: Run, n: int) -> list[str]:
    """Questions to a human, with and without an end."""
    first = await run.ask({"n": n}, timeout=float(n), type=str)
    second = await run.ask("surely?", type=str)
    third = await run.race(run.ask("third?", type=str), _late(run, 2.0))
    return [first or "nobody", second, third, await run.step(act, f"{run.id}/0", "")]


@agent("hurried")
async def hurried(run: Run, n: int) -> str:
    """Never ends before its deadline."""
    for index in range(100):
        await run.step(act, f"{run.id}/{index}", "")
        await run.sleep(n)
    return "never"


AGENTS: tuple[Agent, ...] = (
    chain, fan, fragile, collector, parent, busy, exclusive, latest, asker, hurried, hasty,
)  # fmt: skip
