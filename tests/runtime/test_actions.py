"""Native agents act: tools through the gateway, budgets over the run tree, doubtful actions, decisions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import ActionNotDoneError, Budget, Run, Runtime, Status, agent, current_use, tool
from perdure.core import entries as e
from perdure.core.actions import ActionState
from perdure.core.errors import (
    ActionUnknownError,
    AgentFailedError,
    ArgumentsInvalidError,
    BudgetExhaustedError,
    ToolDoubtfulError,
    ToolFailedError,
    ToolUnknownError,
)

calls: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


@tool(effect="read")
async def look(q: str, times: int = 1) -> str:
    """Look something up.

    Args:
        q: what to look for.
        times: how often.
    """
    calls.append(("look", q))
    return f"{q} x{times}"


@tool
def book(item: str) -> dict[str, str]:
    """Book an item."""
    calls.append(("book", item))
    return {"item": item, "key": current_use().key}


@tool(recovery="idempotent")
async def brittle(n: int) -> int:
    """Fail."""
    raise ValueError(f"no {n}")


@agent("trip", tools=[look, book, brittle])
async def trip(run: Run, city: str) -> dict[str, object]:
    found = await run.act("look", q=city)
    both = await run.gather(run.act("look", q="a"), run.act("look", q="a"))
    return {"found": found, "both": both, "booked": await run.act(book, item=city)}


@agent("wrong", tools=[look, brittle])
async def wrong(run: Run, what: str) -> object:
    match what:
        case "unknown":
            return await run.act("nothing", q="x")
        case "arguments":
            return await run.act("look", q=5, more=True)
        case _:
            return await run.act("brittle", n=3)


@agent("spender", tools=[look])
async def spender(run: Run, n: int) -> int:
    for index in range(n):
        await run.act("look", q=str(index))
    return n


@agent("parent", tools=[look], budget=Budget(calls=5))
async def parent(run: Run) -> list[str]:
    children = [await run.spawn("spender", 4) for _ in range(3)]
    ends: list[str] = []
    for child in children:
        try:
            ends.append(str(await child.result()))
        except BudgetExhaustedError:
            ends.append("exhausted")
        except AgentFailedError:
            ends.append("failed")
    return ends


AGENTS = [trip, wrong, spender, parent]


async def test_tools_are_recorded_and_their_results_come_back(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("trip", "Rome")
        result = await handle.result(10)
        assert result["found"] == "Rome x1"
        assert result["both"] == ["a x1", "a x1"]
        assert result["booked"]["key"] == f"{handle.id}/4"
        rows = runtime.actions.rows(run=handle.id)
        assert [row.state for row in rows] == [ActionState.SUCCEEDED] * 4
        assert {row.name: (row.recovery, row.effect) for row in rows} == {
            "look": ("pure", "read"),
            "book": ("opaque", "irreversible"),
        }
        view = runtime.actions.show(f"{handle.id}/4")
        assert view.request == {"item": "Rome"}
        assert view.result["value"]["item"] == "Rome"
        assert runtime.actions.accounts(handle.id)[0].spent.calls == 4
    before = list(calls)
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:  # a finished run stays finished
        assert await runtime.run(handle.id).result(1) == result
    assert calls == before


@pytest.mark.parametrize(
    ("what", "kind"),
    [("unknown", ToolUnknownError), ("arguments", ArgumentsInvalidError), ("fails", ToolFailedError)],
)
async def test_bad_calls_fail_clearly(tmp_path: Path, what: str, kind: type[Exception]) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("wrong", what)
        with pytest.raises((AgentFailedError, kind)) as caught:
            await handle.result(10)
        ended = [entry for entry in handle.journal() if isinstance(entry, e.ActionEnded)]
        assert ended[0].error is not None
        assert ended[0].error.code == kind.code
        assert kind.__name__ in caught.value.facts["type"]
        assert calls == []


async def test_concurrent_children_never_overspend(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("parent")
        ends = await handle.result(10)
        assert len(calls) == 5
        assert "failed" in ends or "exhausted" in ends
        assert runtime.actions.accounts(handle.id)[0].spent.calls == 5
        assert runtime.actions.accounts(handle.id)[0].reserved.calls == 0


async def test_a_held_budget_waits_until_it_is_raised(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("spender", 3, budget=Budget(calls=1, exhausted="hold"))
        await _until(lambda: handle.status is Status.WAITING)
        assert [row.state for row in runtime.actions.waiting()] == [ActionState.HELD]
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:  # it survives a restart
        handle = runtime.run(handle.id)
        assert handle.status is Status.WAITING
        await runtime.actions.set_budget(handle.id, Budget(calls=3, exhausted="hold"))
        assert await handle.result(10) == 3
        assert len(calls) == 3
        assert runtime.actions.accounts(handle.id)[0].reserved.calls == 0


async def test_a_held_action_can_be_refused(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("spender", 3, budget=Budget(calls=1, exhausted="hold"))
        await _until(lambda: handle.status is Status.WAITING)
        waiting = runtime.actions.waiting()[0]
        with pytest.raises(ActionUnknownError, match="expected `live`"):
            await runtime.actions.settle(waiting.key, "happened", by="eve")
        await runtime.actions.settle(waiting.key, "fail", by="eve", reason="too dear")
        with pytest.raises(BudgetExhaustedError, match="too dear"):
            await handle.result(10)
        assert len(calls) == 1


@agent("researcher")
async def researcher(run: Run, topic: str, depth: int = 1) -> dict[str, object]:
    """Finds out about a topic."""
    await run.act(look, q=topic)
    return {"topic": topic, "depth": depth}


@agent("editor", tools=["agents.researcher"], budget=Budget(calls=4))
async def editor(run: Run) -> list[object]:
    return await run.gather(run.act("researcher", topic="a"), run.act("researcher", topic="b", depth=2))


async def test_an_agent_is_a_tool_of_another(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[researcher, editor]) as runtime:
        handle = await runtime.start("editor")
        assert await handle.result(10) == [{"topic": "a", "depth": 1}, {"topic": "b", "depth": 2}]
        assert [child.agent for child in runtime.runs(parent=handle.id)] == ["researcher", "researcher"]
        account = runtime.actions.accounts(handle.id)[0]
        assert account.spent.calls == 4  # two actions of its own, one of each child
        [first, _] = runtime.actions.all_of(handle.id)
        assert first.recovery == "idempotent"


CHILD = """
import asyncio, os, sys
from pathlib import Path
from perdure import Runtime, agent, tool, Run, ActionNotDoneError

log = Path(sys.argv[2])

@tool
async def charge(amount: int) -> str:
    with log.open("a") as file:
        file.write(f"{amount}\\n")
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
    return "charged"

@agent("payer", version="1", tools=[charge])
async def payer(run: Run) -> str:
    try:
        return await run.act("charge", amount=5)
    except ActionNotDoneError as error:
        return f"not done: {error.message}"

async def main() -> None:
    async with Runtime.open(sys.argv[1], agents=[payer]) as runtime:
        handle = await runtime.start("payer", idempotency_key="one")
        print(await handle.result(float(sys.argv[3])))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("decision", "result", "charges"),
    [("happened", "ok-7", 1), ("did-not-happen", "not done", 1), ("retry", "charged", 2)],
)
async def test_a_crash_in_an_opaque_tool_leaves_one_doubtful_action(
    tmp_path: Path, decision: str, result: str, charges: int
) -> None:
    script, log, data = tmp_path / "payer.py", tmp_path / "log", tmp_path / "data"
    script.write_text(CHILD)

    def run(timeout: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(data), str(log), timeout]
        return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)

    assert run("5", DIE="1").returncode == -signal.SIGKILL
    again = run("1")
    assert "TimeoutError" in again.stderr  # it waits for a decision
    assert log.read_text() == "5\n"
    async with Runtime.open(data, beside=True) as runtime:
        doubtful = runtime.actions.waiting()
        assert [(row.name, row.state) for row in doubtful] == [("charge", ActionState.UNKNOWN)]
        await runtime.actions.settle(
            doubtful[0].key, decision, by="ann", result="ok-7" if decision == "happened" else None
        )
        with pytest.raises(ActionUnknownError, match="already"):
            await runtime.actions.settle(doubtful[0].key, decision, by="ann")
    done = run("20")
    assert done.stdout.startswith(result), done.stderr
    assert log.read_text() == "5\n" * charges
    async with Runtime.open(data, beside=True) as runtime:
        assert runtime.actions.waiting() == []


@tool
async def mute() -> dict[str, str]:
    """Never answers."""
    raise ToolDoubtfulError("the connection broke")


@agent("asker", tools=[mute])
async def asker(run: Run) -> Any:
    return await run.act(mute)


@pytest.mark.parametrize(
    ("stated", "returned"),
    [
        ({"receipt": "r-7"}, {"receipt": "r-7"}),
        ({"value": 7, "unit": "EUR"}, {"value": 7, "unit": "EUR"}),
        ({"value": 7}, 7),
        ({}, {}),
        ([1], [1]),
        (None, None),
    ],
)
async def test_what_a_person_says_a_tool_returned_is_what_the_agent_gets(
    tmp_path: Path, stated: Any, returned: Any
) -> None:
    async with Runtime.open(tmp_path, agents=[asker]) as runtime:
        handle = await runtime.start("asker")
        await _until(runtime.actions.waiting)
        await runtime.actions.settle(f"{handle.id}/1", "happened", by="ann", result=stated)
        assert await handle.result() == returned


async def _until(condition, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        await asyncio.sleep(0.01)


def test_not_done_is_exported() -> None:
    assert ActionNotDoneError.code == "action-not-done"
