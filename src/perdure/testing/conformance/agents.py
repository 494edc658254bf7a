"""Agents and steps that the engine suite runs. Steps write lines into a file, so that a killed process leaves a trace."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from perdure.agents.agent import Agent, agent
from perdure.agents.run import Run
from perdure.agents.step import step
from perdure.core.errors import AgentFailedError, PerdureError, StepFailedError

BACKOFF_S = 0.02


# -- steps
def note(log: str, line: str) -> str:
    """Write a line; a plain function, so it runs in a thread."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return line


def count_attempts(log: str) -> int:
    """Write a line; how many there are now."""
    note(log, "attempt")
    return len(Path(log).read_text(encoding="utf-8").splitlines())


async def slow_note(log: str, line: str, seconds: float) -> str:
    """Write a line, then take a while."""
    note(log, line)
    await asyncio.sleep(seconds)
    return line


@step(retries=3, backoff=BACKOFF_S)
async def flaky(log: str, fails: int) -> int:
    """Fail the first times; the number of attempts."""
    attempts = count_attempts(log)
    if attempts <= fails:
        raise RuntimeError(f"attempt {attempts} fails")
    return attempts


@step(retries=5, backoff=BACKOFF_S, give_up_on=(ValueError,))
async def hopeless(log: str) -> None:
    """Fail in a way that is not tried again."""
    note(log, "attempt")
    raise ValueError("no use")


@step(retries=1, timeout=0.2, backoff=BACKOFF_S)
async def endless(log: str) -> None:
    """Take longer than the step may."""
    note(log, "attempt")
    await asyncio.sleep(60)


@step(name="double")
def double(number: int) -> int:
    """Twice the number."""
    return number * 2


@step
async def misfit() -> int:
    """Return what does not fit the hint."""
    return "text"  # type: ignore[return-value]


STEPS: tuple[Any, ...] = (note, slow_note, flaky, hopeless, endless, double, misfit)


# -- agents
@agent("steps")
async def steps(run: Run, log: str) -> list[Any]:
    """One after the other, then many at once."""
    one = await run.step(note, log, "one")
    two = await run.step(note, log=log, line="two")
    return [one, two, await run.gather(*(run.step(double, number) for number in range(10)))]


@agent("retries")
async def retries(run: Run, log: str, fails: int) -> list[Any]:
    """A step that fails ``fails`` times; the attempts, or how it ended."""
    try:
        return ["done", await run.step(flaky, log, fails)]
    except StepFailedError as error:
        return ["failed", error.message, error.facts["attempts"], error.facts["type"]]


@agent("trouble")
async def trouble(run: Run, log: str, which: str) -> list[Any]:
    """How a step of a kind fails."""
    try:
        match which:
            case "hopeless":
                await run.step(hopeless, log)
            case "endless":
                await run.step(endless, log)
            case _:
                await run.step(misfit)
    except PerdureError as error:
        return [error.code, error.facts.get("attempts")]
    return []


@agent("sleeps")
async def sleeps(run: Run, seconds: float) -> float:
    """How long the sleep took by the run's own clock."""
    before = run.now()
    await run.sleep(seconds)
    return (run.now() - before).total_seconds()


@agent("timers")
async def timers(run: Run) -> list[str]:
    """Plain asyncio timers and a race."""
    found = []
    try:
        async with asyncio.timeout(0.1):
            await run.receive("never")
    except TimeoutError:
        found.append("timeout")
    await asyncio.sleep(0.05)
    winner = await run.race(run.receive("never", timeout=30), run.receive("soon", timeout=0.05))
    return [*found, str(winner)]


@agent("mail")
async def mail(run: Run, count: int) -> list[Any]:
    """The bodies of ``count`` messages, then those of another topic, then none."""
    found: list[Any] = []
    for _ in range(count):
        message = await run.receive("in", timeout=20)
        found.append(message and message.body)
    other = await run.receive("other", timeout=20)
    nothing = await run.receive("in", timeout=0.05)
    return [found, other and other.body, other and other.sender, nothing]


@agent("readers")
async def readers(run: Run) -> list[Any]:
    """Two receives of a topic at once: in the order of the calls."""
    found = await run.gather(run.receive("in", timeout=20), run.receive("in", timeout=20))
    return [item and item.body for item in found]


@agent("sender")
async def sender(run: Run, to: str) -> list[bool]:
    """Send to a run, and to none."""
    return [await run.send(to, "other", {"n": 1}), await run.send("no-such-run", "other")]


@agent("child")
async def child(run: Run, number: int) -> int:
    """Twice the number; a negative one is an error; zero waits for a message."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    if number == 0:
        message = await run.receive("number")
        number = message.body if message else 0
    return await run.step(double, number)


@agent("parent")
async def parent(run: Run) -> list[Any]:
    """Children that return, fail, and take a message."""
    first, bad, fed = await run.spawn("child", 4), await run.spawn("child", -1), await run.spawn("child", 0)
    await fed.send("number", 21)
    try:
        failure = str(await bad.result())
    except AgentFailedError as error:
        failure = f"{error.facts['type']}: {error.message}"
    return [first.id == f"{run.id}.1", await first.result(int), failure, await fed.result()]


@agent("waiter")
async def waiter(run: Run, log: str) -> None:
    """Wait for ever, with a child that does too; when told to stop, record it."""
    await run.spawn("child", 0)
    try:
        await run.step(note, log, "waiting")
        await run.receive("never")
    except asyncio.CancelledError:
        await run.step(note, log, "stopping")
        raise


@agent("stubborn")
async def stubborn(run: Run, log: str) -> str:
    """Catch the wish to stop and end with a result."""
    try:
        await run.step(note, log, "waiting")
        await run.receive("never")
    except asyncio.CancelledError:
        return "not now"
    return ""


@agent("late")
async def late(run: Run, seconds: float) -> None:
    """Sleep."""
    await run.sleep(seconds)


@agent("chance")
async def chance(run: Run, log: str, count: int) -> list[str]:
    """Chance and time, each written down by a slow step."""
    found = []
    for number in range(count):
        line = f"{number} {run.random():.6f} {run.uuid()}"
        found.append(await run.step(slow_note, log, line, 0.15))
    return found


@agent("state")
async def state(run: Run) -> list[Any]:
    """Keys that are set, replaced, missing and deleted."""
    await run.state.set("a", {"n": 1})
    await run.state.set("a", {"n": 2})
    await run.state.set("b", 1)
    await run.state.delete("b")
    return [await run.state.get("a"), await run.state.get("b", "gone"), run.patched("new")]


@agent("asks")
async def asks(run: Run, timeout: float) -> list[Any]:
    """A question."""
    return [await run.ask("really?", timeout=timeout)]


@agent("breaks")
async def breaks(run: Run, how: str) -> int:  # noqa: ARG001 - every agent takes the run
    """End in a way that must be seen."""
    if how == "raise":
        raise LookupError("lost")
    if how == "thread":
        await asyncio.to_thread(time.time)
    if how == "open":
        Path("/no/such/file").open(encoding="utf-8")  # noqa: ASYNC230, SIM115 - it must fail
    return "no number"  # type: ignore[return-value]


AGENTS: tuple[Agent, ...] = (
    steps, retries, trouble, sleeps, timers, mail, readers, sender, child, parent, waiter, stubborn, late, chance,
    state, asks, breaks,
)  # fmt: skip
