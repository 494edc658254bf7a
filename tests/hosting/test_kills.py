"""kill -9 of the program and of its runtime at every call boundary: nothing is paid for twice, nothing is done twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import ActionState, Runtime, tool
from perdure.runtime.replays import replay
from tests.hosting.desk import CALLS, TRIP, Provider, program, providing, trip_turn

pytestmark = pytest.mark.timeout(80)
WAIT_S = 30
ROOT = Path(__file__).parents[2]

HOST = """
import asyncio, os, sys, threading, time
from pathlib import Path
from perdure import Runtime
from tests.hosting.desk import TRIP, Provider, program
from tests.hosting.test_kills import tools
folder, port, dying = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "dying"
provider = Provider(); provider.port = port
def kill():
    while not (folder / "kill-the-runtime").exists():
        time.sleep(0.002)
    (folder / "kill-the-runtime").unlink()
    os.kill(os.getpid(), 9)
threading.Thread(target=kill, daemon=True).start()
async def main():
    where = f"WHERE, WHOM = {str(folder)!r}, {'' if dying else 'runtime'!r}\\n"
    agent = program(folder, where + TRIP, tools=tools(folder, dying=dying))
    async with Runtime.open(folder / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "Rome", idempotency_key="one")
        print(await handle.result(30))
asyncio.run(main())
"""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing() as made:
        made.turn = trip_turn
        yield made


def tools(folder: Path, *, dying: bool = False) -> list[Any]:
    """The tools of the trip; with ``dying`` the runtime is killed inside the first booking."""

    def log(line: str) -> None:
        with (folder / "world.log").open("a") as file:
            file.write(line + "\n")

    @tool(effect="read")
    async def look(what: str) -> str:
        """Look something up."""
        log(f"look {what}")
        return f"{what}: fine"

    @tool
    async def book(what: str) -> str:
        """Book something; not to be done twice."""
        log(f"book {what}")
        if dying and what == "flight":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return f"{what} booked"

    return [look, book]


def done(folder: Path) -> Counter[str]:
    return Counter((folder / "world.log").read_text().splitlines())


ONCE = Counter(["look hotels", "look flights", "look weather", "book flight", "book hotel"])


async def test_the_program_is_killed_at_every_boundary(tmp_path: Path, provider: Provider) -> None:
    agent = program(tmp_path, f"WHERE, WHOM = {str(tmp_path)!r}, 'program'\n{TRIP}", tools=tools(tmp_path))
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "Rome")
        result = await handle.result(WAIT_S)
        assert result.startswith("Booked, reference ")
        assert len(list(tmp_path.glob("killed-*"))) == CALLS
        assert len(provider.asked) == 5 and done(tmp_path) == ONCE
        served = runtime.actions.served(handle.id)
        assert len(served) == sum(range(1, CALLS + 1)), "attempt n is answered n - 1 times from the journal"
        assert {item.level for item in served} <= {"exact", "masked", "causal", "ordinal"}
        (tmp_path / "data" / "look").write_text("")
        ended, answered = await replay(runtime, handle.id, lambda *_: None)
        assert (ended.how, answered) == ("result", CALLS)
        assert ended.result is not None and result.encode() in ended.result
    assert len(provider.asked) == 5 and done(tmp_path) == ONCE


def host(folder: Path, provider: Provider, mode: str) -> subprocess.CompletedProcess[str]:
    (folder / "host.py").write_text(HOST)
    return subprocess.run(
        [sys.executable, str(folder / "host.py"), str(folder), str(provider.port), mode],
        capture_output=True, text=True, timeout=40, check=False, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


async def test_the_runtime_is_killed_at_every_boundary(tmp_path: Path, provider: Provider) -> None:
    for _ in range(CALLS):
        ended = await asyncio.to_thread(host, tmp_path, provider, "boundary")
        assert ended.returncode == -9, ended.stderr
    ended = await asyncio.to_thread(host, tmp_path, provider, "boundary")
    assert ended.stdout.startswith("Booked, reference "), ended.stderr
    assert len(provider.asked) == 5 and done(tmp_path) == ONCE


@pytest.mark.parametrize("decision", ["happened", "did-not-happen", "retry"])
async def test_killed_inside_an_opaque_tool(tmp_path: Path, provider: Provider, decision: Any) -> None:
    ended = await asyncio.to_thread(host, tmp_path, provider, "dying")
    assert ended.returncode == -9, ended.stderr
    text = f"WHERE, WHOM = {str(tmp_path)!r}, ''\n{TRIP}"
    agent = program(tmp_path, text, tools=tools(tmp_path))
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        [record] = runtime.runs()
        handle = runtime.run(record.id)
        async for entry in handle.entries():
            if type(entry).__name__ == "RunParked":
                break
        [row] = runtime.actions.waiting()
        assert (row.name, row.state) == ("book", ActionState.UNKNOWN)
        assert done(tmp_path)["book flight"] == 1
        await runtime.actions.settle(
            row.key, decision, by="test", result="flight booked" if decision == "happened" else None
        )
        assert (await handle.result(WAIT_S)).startswith("Booked")
    assert done(tmp_path)["book flight"] == (2 if decision == "retry" else 1)
    assert done(tmp_path)["book hotel"] == 1 and len(provider.asked) == 5
