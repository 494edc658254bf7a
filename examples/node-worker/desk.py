"""A runtime for the agents of ``worker.mjs``: ``python desk.py tea`` starts one and asks you."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from perdure import Runtime, external, tool

HERE = Path(__file__).parent


@tool(effect="read")
async def price(item: str) -> int:
    """What an item costs. It runs here, where keys and databases are; the worker has none."""
    return len(item) * 100


def agents(node: str) -> list[object]:
    """The agents of the worker, with what they may use."""
    command = (node, str(HERE / "worker.mjs"))
    return [
        external("node-order", command, version="1", tools=[price]),
        *(external(name, command, version="1") for name in ("node-retry", "node-fails", "node-waits")),
    ]


async def main(item: str) -> None:
    """Order something."""
    node = shutil.which("node")
    if node is None:
        raise SystemExit("this example needs node on the path")
    log = HERE / "data" / "log"
    async with Runtime.open(HERE / "data", agents=agents(node)) as runtime:
        handle = await runtime.start("node-order", {"log": str(log), "item": item})
        while not (asked := runtime.questions(handle.id)):
            await asyncio.sleep(0.1)
        await handle.answer(asked[0].call, input(f"{asked[0].question} "))
        await handle.send("ship", "by post")
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "tea"))
