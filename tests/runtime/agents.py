"""Agents of the tests: at module level, as steps must be."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Any

from perdure import Run, agent, step

CALLS: Counter[str] = Counter()
GATES: dict[str, asyncio.Event] = {}


@step
async def mark(label: str) -> str:
    """Counts its executions."""
    CALLS[label] += 1
    return f"{label}!"


@step
async def slow(label: str, seconds: float) -> str:
    CALLS[label] += 1
    await asyncio.sleep(seconds)
    return label


@step
async def gated(label: str) -> str:
    CALLS[label] += 1
    await GATES.setdefault(label, asyncio.Event()).wait()
    return label


@step
def threaded(number: int) -> int:
    return number * 2


@step(retries=3, backoff=0.01)
async def flaky(label: str, failures: int) -> int:
    CALLS[label] += 1
    if CALLS[label] <= failures:
        raise ConnectionError(f"attempt {CALLS[label]}")
    return CALLS[label]


@step(timeout=0.05)
async def hangs() -> None:
    await asyncio.sleep(30)


@step(retries=5, give_up_on=(KeyError,))
async def gives_up(label: str) -> None:
    CALLS[label] += 1
    raise KeyError(label)


@step
async def bad_result() -> int:
    return "seven"  # type: ignore[return-value]


@step
async def no_json() -> Any:
    return object()


@dataclass
class Order:
    item: str
    count: int
    due: date


@step
async def price(order: Order) -> dict[str, int]:
    order.count += 1  # a copy: the agent's own is not changed
    return {order.item: order.count}


@agent("echo")
async def echo(run: Run, text: str) -> str:
    return await run.step(mark, text)


@agent("orders")
async def orders(run: Run, order: Order) -> dict[str, int]:
    before = order.count
    found = await run.step(price, order)
    assert order.count == before
    return found


@agent("many")
async def many(run: Run, n: int) -> list[str]:
    return await run.gather(*(run.step(mark, f"{run.id}-{i}") for i in range(n)))


@agent("retrying")
async def retrying(run: Run, label: str, failures: int) -> int:
    return await run.step(flaky, label, failures)


@agent("napping")
async def napping(run: Run, seconds: float) -> list[str]:
    first = await run.step(mark, f"{run.id}-before")
    await run.sleep(seconds)
    return [first, await run.step(mark, f"{run.id}-after")]


@agent("listener")
async def listener(run: Run, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        message = await run.receive("note")
        assert message is not None
        found.append(message.body)
        await run.step(mark, f"{run.id}-{len(found)}")
    return found


@agent("impatient")
async def impatient(run: Run, seconds: float) -> str | None:
    message = await run.receive("note", timeout=seconds)
    return None if message is None else str(message.body)


@agent("parent")
async def parent(run: Run, texts: list[str]) -> list[str]:
    children = [await run.spawn("echo", text) for text in texts]
    return [await child.result() for child in children]


@agent("parent-of-failure")
async def parent_of_failure(run: Run) -> str:
    child = await run.spawn("failing", None)
    try:
        await child.result()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "no error"


@agent("failing")
async def failing(run: Run) -> None:
    raise ValueError("the sky fell")


@agent("asker")
async def asker(run: Run, timeout: float | None = None) -> Any:
    return await run.ask({"question": "how many?"}, timeout=timeout, type=int)


@agent("counter")
async def counter(run: Run, add: int) -> int:
    total = await run.state.get("total", 0) + add
    await run.step(mark, f"{run.id}")
    await run.state.set("total", total)
    return total


@agent("holder", conflict="enqueue")
async def holder(run: Run, label: str) -> str:
    return await run.step(gated, label)


@agent("cleaner")
async def cleaner(run: Run) -> str:
    try:
        await run.sleep(3600)
    except asyncio.CancelledError:
        await run.step(mark, f"{run.id}-cleanup")
        raise
    return "slept"


@agent("grandparent")
async def grandparent(run: Run) -> str:
    child = await run.spawn("cleaner", None)
    await child.result()
    return "done"


@agent("racer")
async def racer(run: Run) -> Any:
    first = await run.race(run.receive("a"), run.receive("b"))
    second = await run.receive("b", timeout=2)
    third = await run.receive("a", timeout=0)
    return [first.topic if first else None, second.body if second else None, third.body if third else None]


@agent("plain-asyncio")
async def plain_asyncio(run: Run) -> list[Any]:
    found: list[Any] = []

    async def two(label: str, seconds: float) -> None:
        await run.step(slow, f"{run.id}-{label}1", seconds)
        await asyncio.sleep(0)
        found.append(await run.step(slow, f"{run.id}-{label}2", 0))

    async with asyncio.TaskGroup() as group:
        group.create_task(two("a", 0.05))
        group.create_task(two("b", 0.0))
    try:
        async with asyncio.timeout(0.05):
            await run.step(slow, f"{run.id}-long", 10)
    except TimeoutError:
        found.append("timed out")
    await asyncio.sleep(0.02)
    found += await asyncio.gather(run.step(mark, f"{run.id}-x"), run.step(mark, f"{run.id}-y"))
    message = await run.receive("go")
    found.append(message.body if message else None)
    return [item.removeprefix(run.id) if isinstance(item, str) else item for item in found]


@agent("chance")
async def chance(run: Run) -> list[Any]:
    before = [run.random(), str(run.uuid()), run.now().isoformat()]
    await run.step(mark, run.id)
    await run.receive("go")
    return [*before, run.random(), str(run.uuid())]


@agent("subscriber", subscribes=["news"])
async def subscriber(run: Run, body: str) -> str:
    return f"read {body}"


@agent("publisher")
async def publisher(run: Run, body: str) -> list[str]:
    return await run.publish("news", body, key="desk")


@agent("sender")
async def sender(run: Run, to: str) -> list[bool]:
    return [await run.send(to, "note", number) for number in range(3)]


@agent("foreign-await")
async def foreign_await(run: Run) -> None:
    await asyncio.get_running_loop().create_future()


@agent("threads")
async def threads(run: Run) -> None:
    await asyncio.to_thread(print)


ALL = [value for value in list(globals().values()) if type(value).__name__ == "Agent"]
