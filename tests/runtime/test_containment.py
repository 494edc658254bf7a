"""Containment and the kill switch: on real runs, in this process and beside it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core.actions import ActionState
from perdure.core.errors import ContainedError, RunUnknownError, UsageError
from perdure.core.records import Status

done: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()


@tool
async def pay(to: str) -> str:
    """Pay somebody."""
    done.append(to)
    return f"paid {to}"


@tool(effect="read")
async def look(what: str) -> str:
    """Look at something."""
    return what


@tool
async def slow(to: str) -> str:
    """Take long."""
    done.append(to)
    await asyncio.sleep(60)
    return to


@agent("clerk", tools=[pay, look, slow])
async def clerk(run: Run, names: list[str], wait: bool = True) -> list[Any]:
    found: list[Any] = []
    for name in names:
        if wait:
            await run.receive("go")
        try:
            found.append(await run.act(pay, to=name))
        except ContainedError as error:
            found.append(error.message)
        found.append(await run.act(look, what=name))
    return found


@agent("other", tools=[pay])
async def other(run: Run, name: str) -> Any:
    return await run.act(pay, to=name)


@agent("parent")
async def parent(run: Run) -> Any:
    child = await run.spawn("clerk", {"names": ["a"], "wait": True})
    return await child.result()


@agent("stuck", tools=[slow])
async def stuck(run: Run) -> Any:
    return await run.act(slow, to="x")


AGENTS = [clerk, other, parent, stuck]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("scope", ["*", "agent:clerk", "tool:pay", "run"])
async def test_a_level_counts_from_the_next_action_on(tmp_path: Path, scope: str) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("clerk", {"names": ["a", "b", "c"]})
        named = f"run:{handle.id}" if scope == "run" else scope
        await handle.send("go")
        await until(lambda: done == ["a"])
        await runtime.containment.set(named, "restrict", by="anna", reason="odd")
        assert [item.scope for item in runtime.containment.in_force()] == [named]
        await handle.send("go")
        await until(lambda: len(runtime.actions.rows(state=ActionState.REFUSED)) == 1)
        assert await runtime.containment.lift(named, by="anna")
        assert not await runtime.containment.lift(named, by="anna")
        await handle.send("go")
        found = await handle.result()
        assert done == ["a", "c"]
        assert found[2] == f"`{named}` is contained (restrict) by `anna`: odd (contained-restrict)"
        assert [found[1], found[3], found[5]] == ["a", "b", "c"], "reads go on"


async def test_others_are_left_alone_and_a_containment_ends_by_itself(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        await runtime.containment.set("agent:clerk", "stop", by="anna", reason="odd", seconds=0.2)
        assert await (await runtime.start("other", "x")).result() == "paid x"
        await asyncio.sleep(0.25)
        assert runtime.containment.in_force() == []
        handle = await runtime.start("clerk", {"names": ["a"], "wait": False})
        assert await handle.result() == ["paid a", "a"]


async def test_a_run_is_in_the_scope_of_the_run_above_it(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        handle = await runtime.start("parent")
        await until(lambda: runtime.runs(agent="clerk", status="unfinished"))
        child = runtime.runs(agent="clerk")[0].id
        await runtime.containment.set(f"run:{handle.id}", "restrict", by="anna", reason="odd")
        await runtime.send(child, "go")
        found = await handle.result()
        assert "contained-restrict" in found[0]
        assert done == []


async def test_hold_waits_and_is_only_released_with_a_grant(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        await runtime.containment.set("*", "hold", by="anna", reason="odd")
        handle = await runtime.start("other", "x")
        await until(lambda: runtime.actions.rows(state=ActionState.HELD))
        [row] = runtime.actions.rows()
        assert row.code == "approval-needed"
        with pytest.raises(UsageError, match="expected `fail`"):
            await runtime.actions.settle(row.key, "live", by="anna")
        await runtime.actions.settle(row.key, "fail", by="anna", reason="no")
        with pytest.raises(Exception, match="refused by `anna`: no"):
            await handle.result()
        assert done == []


async def test_the_kill_switch_ends_runs_and_says_what_it_did(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        parked = await runtime.start("clerk", {"names": ["a"]})
        acting = await runtime.start("stuck")
        await until(lambda: done == ["x"])
        await until(lambda: parked.record().status is Status.WAITING)
        report = await runtime.containment.kill("*", by="anna", reason="enough")
        assert set(report.runs) == {parked.id, acting.id}
        assert report.doubtful == (f"{acting.id}/1",), "its tool was under way: nobody knows"
        assert report.stopped_ms is not None
        assert report.not_stopped == ()
        assert 0 < report.refused_ms <= report.ended_ms <= report.stopped_ms < 5_000
        for handle in (parked, acting):
            assert handle.record().status is Status.CANCELLED
            assert handle.record().code == "killed"
        with pytest.raises(Exception, match="killed by anna: enough"):
            await acting.result()
        refused = await runtime.start("other", "y")
        with pytest.raises(Exception, match="contained-stop"):
            await refused.result()
        assert done == ["x"]


async def test_what_goes_on_in_a_thread_is_doubtful(tmp_path: Path) -> None:
    import threading

    release = threading.Event()

    @tool(name="thread")
    def blocking() -> str:
        """Block a thread."""
        done.append("in")
        release.wait(20)
        return "out"

    @agent("blocked", tools=[blocking])
    async def blocked(run: Run) -> Any:
        return await run.act(blocking)

    async with Runtime.open(tmp_path, agents=[blocked]) as runtime:
        handle = await runtime.start("blocked")
        await until(lambda: done == ["in"])
        report = await runtime.containment.kill("agent:blocked", by="anna", reason="r", grace=0.2)
        assert report.runs == (handle.id,)
        assert report.doubtful == (f"{handle.id}/1",)
        release.set()


async def test_the_kill_switch_works_beside_the_process_that_drives_the_runs(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        acting = await runtime.start("stuck")
        await until(lambda: done == ["x"])
        async with Runtime.open(tmp_path, agents=AGENTS, beside=True) as outside:
            report = await outside.containment.kill(f"run:{acting.id}", by="anna", reason="enough")
        assert report.runs == (acting.id,)
        assert runtime.engine is not None
        await until(lambda: acting.id not in runtime.engine.hosts)  # type: ignore[union-attr]
        with contextlib.suppress(Exception):
            await acting.result()
        assert acting.record().status is Status.CANCELLED


async def test_nonsense_is_refused(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        with pytest.raises(UsageError, match="no scope"):
            await runtime.containment.set("clerk", "stop", by="a", reason="r")
        with pytest.raises(UsageError, match="no level"):
            await runtime.containment.set("*", "off", by="a", reason="r")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no runs to kill"):
            await runtime.containment.kill("tool:pay", by="a", reason="r")
        with pytest.raises(RunUnknownError):
            await runtime.containment.kill("run:none", by="a", reason="r")
        assert runtime.containment.in_force() == [], "nothing was contained"


async def test_a_contained_agent_does_not_act_through_another_one(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        await runtime.containment.set("agent:parent", "restrict", by="anna", reason="odd")
        handle = await runtime.start("parent")
        await until(lambda: runtime.runs(agent="clerk", status="unfinished"))
        await runtime.send(runtime.runs(agent="clerk")[0].id, "go")
        assert "`agent:parent` is contained" in (await handle.result())[0]
        assert await (await runtime.start("other", "x")).result() == "paid x"


async def test_the_strictest_of_several_counts(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=AGENTS) as runtime:
        await runtime.containment.set("*", "hold", by="anna", reason="odd")
        await runtime.containment.set("agent:other", "restrict", by="anna", reason="odd")
        with pytest.raises(ContainedError, match="contained-restrict"):
            await (await runtime.start("other", "x")).result()
        assert runtime.approvals.pending() == []
