"""The runtime of the trip: hosts ``agent.py``, with a scripted model and four tools. Started, killed and started again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from perdure import Price, Runtime, Upstream, current_use, process, tool
from perdure.runtime.examining import why_missing
from perdure.runtime.walls import SandboxRules

HERE = Path(__file__).parent
ANSWER_S = 120.0
_world = Path()


def _log(line: str) -> None:
    """What the tools really did, beside the journal: the proof compares both."""
    with (_world / "world.log").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@tool(effect="read")
async def find_hotels(city: str) -> list[str]:
    """Hotels of a city, with the price of a night."""
    _log(f"find_hotels {city}")
    return [f"Hotel {city} Centro, 142 EUR", f"Pensione {city}, 88 EUR"]


@tool(effect="read")
async def find_flights(city: str) -> list[str]:
    """Flights to a city."""
    _log(f"find_flights {city}")
    return [f"07:40 to {city}, 129 EUR", f"18:15 to {city}, 99 EUR"]


@tool(effect="read")
async def weather(city: str) -> str:
    """The weather of a city."""
    _log(f"weather {city}")
    return f"{city}: sunny, 21 degrees"


@tool
async def book(what: str, reference: str) -> str:
    """Book something. This cannot be taken back, and must not be done twice."""
    _log(f"book {what} {reference} {current_use().key}")
    await asyncio.sleep(0.1)
    return f"{what} booked"


async def main(folder: Path) -> None:
    """Run the trip in a folder to its end."""
    global _world
    _world = folder
    agent = process(
        "trip", [sys.executable, str(HERE / "agent.py")], tools=[find_hotels, find_flights, weather, book]
    )
    model = Upstream(
        name="scripted", wire="scripted", path=str(HERE / "script.json"), models=("trip-planner",),
        prices={"trip-planner": Price(input="2.50", output="10.00")},
    )  # fmt: skip
    missing = await why_missing(SandboxRules(), "namespace")
    if missing:  # said by whoever started us: a demonstration goes on where nobody would otherwise
        (folder / "no-wall").write_text(missing)
    rules = SandboxRules(programs="process" if missing else "namespace")
    async with Runtime.open(folder / "data", agents=[agent], upstreams=[model], sandboxes=rules) as runtime:
        handle = await runtime.start("trip", "Book me a trip to Rome.", idempotency_key="demo")
        print(await handle.result(ANSWER_S), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
