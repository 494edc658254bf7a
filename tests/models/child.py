"""A worker with a model agent, to be killed: ``child.py DATA LOG [RUN]``."""

from __future__ import annotations

import asyncio
import sys

from perdure import Agent, Runtime
from perdure.testing.models import Call, ScriptedModel


async def look_up(city: str) -> str:
    await asyncio.sleep(0.5)  # long enough to be killed in
    return f"{city}: 21 degrees"


async def main(data: str, log: str, run: str) -> None:
    replies = [*(Call("look_up", {"city": f"city {n}"}) for n in range(4)), "done"]
    agent = Agent("guide", model=ScriptedModel(replies, log=log), tools=[look_up])
    async with Runtime.open(data, agents=[agent]) as runtime:
        handle = runtime.run(run) if run else await runtime.start("guide", "weather?")
        print(handle.id, flush=True)
        print(await handle.result(30), flush=True)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""))
