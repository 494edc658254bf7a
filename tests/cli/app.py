"""The app that the command line is tested on."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from perdure import Agent, Run, agent, step


@step
def note(path: str, word: str) -> int:
    """Appends a word to a file: the side effect that must happen once."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(word + "\n")
    return len(word)


@step
async def double(number: int) -> int:
    """A pure step."""
    return number * 2


@step
async def slow(seconds: float) -> float:
    """A step that takes its time."""
    await asyncio.sleep(seconds)
    return seconds


@step(retries=1, backoff=0.01)
async def fails() -> None:
    """A step that never succeeds."""
    raise OSError("the service is down")


@agent("adder")
async def adder(run: Run, number: int) -> dict[str, int]:
    """Doubles twice."""
    once = await run.step(double, number)
    return {"number": await run.step(double, once)}


@agent("greeter")
async def greeter(run: Run, name: str) -> str:
    """Greets."""
    run.emit("token", "hello ")
    return f"hello {name}"


@agent("failing")
async def failing(run: Run) -> None:
    """Fails."""
    await run.step(fails)


@agent("waiting")
async def waiting(run: Run, path: str) -> Any:
    """Notes, waits for a message, notes."""
    await run.step(note, path, "before")
    message = await run.receive("go")
    await run.step(note, path, "after")
    return message.body if message else None


@agent("asking")
async def asking(run: Run, about: str) -> str:
    """Asks a human."""
    answer = await run.ask(f"Release {about}?")
    return f"{about}: {answer}"


@agent("stepping")
async def stepping(run: Run, path: str, count: int, seconds: float) -> int:
    """Many steps with pauses in them."""
    for number in range(count):
        await run.step(note, path, str(number))
        await run.step(slow, seconds)
    return count


@agent("parent")
async def parent(run: Run, path: str) -> Any:
    """Waits for a child."""
    child = await run.spawn("waiting", path)
    return await child.result()


@agent("solo", conflict="reject")
async def solo(run: Run) -> None:
    """Keeps its session busy."""
    await run.receive("end")


VERSION = os.environ.get("APP_VERSION", "1")


async def _changing(run: Run, number: int) -> int:
    if VERSION == "2":
        await run.sleep(0.01)
    first = await run.step(double, number)
    await run.receive("go")
    return first + int(VERSION)


changing = Agent("changing", handler=_changing, version=VERSION)
LOADED_AT = time.time()
