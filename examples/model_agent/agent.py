"""A model agent with two tools. Runs offline: the model is a script; see the README for a real one."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import perdure
from perdure.testing.models import Call, ScriptedModel

STOCK = {"lamp": 3, "desk": 0}
SCRIPT = [
    Call("stock", {"item": "lamp"}),
    Call("reserve", {"item": "lamp", "count": 2}),
    "Two lamps are reserved for you; one is left.",
]


def stock(item: str) -> int:
    """How many of an item are there."""
    return STOCK.get(item, 0)


@perdure.step(retries=3)
async def reserve(item: str, count: int) -> str:
    """Reserve some of an item."""
    await asyncio.sleep(0.1)
    return f"{count} x {item}"


def clerk(model: Any) -> perdure.Agent:
    """The agent, on any model."""
    return perdure.Agent("clerk", model=model, instructions="You are a shop's clerk.", tools=[stock, reserve])


async def main(data: str, model: Any) -> None:
    """Ask it one thing, show tokens while they arrive, then the journal."""
    async with perdure.Runtime.open(data, agents=[clerk(model)]) as runtime:
        handle = await runtime.start("clerk", "I would like two lamps.")
        async for item in handle.live():
            print(item.data, end="", flush=True)
        print("\n\nresult: ", await handle.result())
        for entry in handle.journal():
            print(f"{entry.seq:3} {type(entry).__name__} {getattr(entry, 'name', '')}")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else ScriptedModel(SCRIPT, delay=0.2)
    asyncio.run(main("model-agent-data", chosen))
