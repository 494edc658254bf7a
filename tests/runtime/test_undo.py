"""Undo: the plan first, compensations in reverse as governed actions, conflicts, the outbox."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core.actions import ActionState
from perdure.core.errors import DefinitionError, UsageError
from perdure.core.tools import Done

world: dict[str, Any] = {}
log: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    world.clear()
    log.clear()


@tool(effect="reversible")
def put(key: str, value: int) -> str:
    """Set a value."""
    world[key] = value
    log.append(f"put {key}")
    return "set"


@put.image_with
def _seen(key: str, value: int) -> Any:
    del value
    return {"value": world.get(key)}


@put.undo_with
def _put_back(done: Done) -> str:
    world[done.arguments["key"]] = done.before["value"]
    log.append(f"back {done.arguments['key']}")
    return "put back"


@tool(effect="compensable", undo_within=3600)
def book(what: str) -> dict[str, str]:
    """Book something."""
    log.append(f"book {what}")
    return {"id": f"B-{what}"}


@book.undo_with
async def _cancel(done: Done) -> str:
    log.append(f"cancel {done.result['id']} for {done.arguments['what']}")
    return "cancelled"


@tool
def mail(to: str) -> str:
    """Send a mail."""
    log.append(f"mail {to}")
    return "sent"


@tool(delay=30)
def wire(to: str) -> str:
    """Send money, half a minute later."""
    log.append(f"wire {to}")
    return "sent"


@tool(delay=0.1)
def soon(to: str) -> str:
    """Send something, a moment later."""
    log.append(f"soon {to}")
    return "sent"


@tool(effect="read")
def look() -> int:
    """Look."""
    return 1


TOOLS = [put, book, mail, wire, soon, look]


@agent("clerk", tools=TOOLS)
async def clerk(run: Run, calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    tools = {item.spec.name: item for item in TOOLS}
    return [await run.act(tools[name], **arguments) for name, arguments in calls]


@agent("boss")
async def boss(run: Run) -> Any:
    child = await run.spawn("clerk", {"calls": [["book", {"what": "child"}]]})
    return await child.result()


def how(plan: Any) -> list[tuple[str, str]]:
    return [(step.name, step.how) for step in plan.steps]


async def test_a_run_is_undone_in_reverse_and_each_compensation_is_an_action(tmp_path: Path) -> None:
    world["a"] = 1
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        calls = [["put", {"key": "a", "value": 2}], ["book", {"what": "x"}], ["look", {}], ["mail", {"to": "m"}],
                 ["put", {"key": "a", "value": 3}]]  # fmt: skip
        origin = await runtime.start("clerk", {"calls": calls})
        await origin.result()
        log.clear()
        plan = await runtime.undoing.plan(origin.id)
        assert how(plan) == [
            ("put", "undo"),
            ("mail", "impossible"),
            ("look", "nothing"),
            ("book", "undo"),
            ("put", "undo"),
        ]
        assert "no way to undo" in plan.impossible[0].why
        assert plan.todo[1].until_ms is not None
        assert log == [], "nothing was touched"
        handle = await runtime.undoing.undo(plan, by="anna", reason="wrong customer")
        assert (await handle.result())["result"] == "ok"
        assert log == ["back a", "cancel B-x for x", "back a"]
        assert world["a"] == 1
        rows = runtime.actions.all_of(handle.id)
        assert [(row.name, row.state.value, row.undoes) for row in rows] == [
            ("undo.put", "succeeded", f"{origin.id}/5"),
            ("undo.book", "succeeded", f"{origin.id}/2"),
            ("undo.put", "succeeded", f"{origin.id}/1"),
        ]
        again = await runtime.undoing.plan(origin.id)
        assert [step.how for step in again.steps] == ["done", "impossible", "nothing", "done", "done"]
        with pytest.raises(UsageError, match="can be undone"):
            await runtime.undoing.undo(again, by="anna")


async def test_what_somebody_changed_since_is_not_overwritten(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        origin = await runtime.start(
            "clerk", {"calls": [["put", {"key": "a", "value": 2}], ["book", {"what": "x"}]]}
        )
        await origin.result()
        world["a"] = 77
        handle = await runtime.undoing.undo(await runtime.undoing.plan(origin.id), by="anna")
        found = await handle.result()
        assert found["result"] == "partial"
        assert [(item["state"], item.get("code")) for item in found["actions"]] == [
            ("undone", None),
            ("failed", "undo-conflict"),
        ]
        assert world["a"] == 77


async def test_from_an_entry_on_and_children_too(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[clerk, boss]) as runtime:
        origin = await runtime.start("clerk", {"calls": [["book", {"what": "x"}], ["book", {"what": "y"}]]})
        await origin.result()
        first = runtime.actions.all_of(origin.id)[0]
        plan = await runtime.undoing.plan(origin.id, after=first.end_seq or 0)
        assert [step.action for step in plan.steps] == [f"{origin.id}/2"]
        above = await runtime.start("boss")
        await above.result()
        assert how(await runtime.undoing.plan(above.id)) == [("book", "undo")]


async def test_the_outbox_can_be_stopped_for_nothing_and_sends_when_its_time_comes(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        sent = await runtime.start("clerk", {"calls": [["soon", {"to": "a"}]]})
        assert await sent.result() == ["sent"]
        kept = await runtime.start("clerk", {"calls": [["wire", {"to": "b"}]]})
        async with asyncio.timeout(5):
            while not runtime.actions.rows(state=ActionState.HELD):
                await asyncio.sleep(0.01)
        plan = await runtime.undoing.plan(kept.id)
        assert how(plan) == [("wire", "stop")]
        handle = await runtime.undoing.undo(plan, by="anna", reason="typing error")
        assert (await handle.result())["result"] == "ok"
        with pytest.raises(Exception, match="typing error"):
            await kept.result()
        assert log == ["soon a"]


async def test_what_waits_in_the_outbox_survives_a_restart(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        handle = await runtime.start("clerk", {"calls": [["soon", {"to": "a"}]]})
    await asyncio.sleep(0.2)
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        assert await runtime.run(handle.id).result() == ["sent"]
    assert log == ["soon a"]


async def test_a_doubtful_action_and_a_tool_that_cannot_look(tmp_path: Path) -> None:
    @tool(effect="reversible", name="blind")
    def blind(key: str) -> str:
        """Change something."""
        log.append(key)
        return key

    @blind.image_with
    def _look(key: str) -> Any:
        raise OSError("no such disk")

    @agent("blind", tools=[blind])
    async def careless(run: Run) -> Any:
        return await run.act(blind, key="k")

    async with Runtime.open(tmp_path, agents=[careless]) as runtime:
        handle = await runtime.start("blind")
        with pytest.raises(Exception, match="could not look at what it would change: no such disk"):
            await handle.result()
        assert log == []


def test_a_tool_that_declares_nothing_cannot_have_an_undo() -> None:
    @tool
    def plain() -> None:
        """Do."""

    with pytest.raises(DefinitionError, match="one that can be undone is `reversible`"):
        plain.undo_with(lambda done: None)


@tool(effect="read")
async def read_note(name: str) -> dict[str, str]:
    """Read a note."""
    return (
        {"clean": "box-1", "poisoned": "box-666"} if name == "both" else {"text": f"{name} says box-{name}"}
    )


@agent("curious", tools=[put, read_note, book])
async def curious(run: Run) -> str:
    await run.act(put, key="before", value=1)
    await run.act(read_note, name="evil")
    await run.act(put, key="box-evil", value=2)
    await run.act(put, key="other", value=3)
    child = await run.spawn("helper", {"what": "hall"})
    await child.result()
    return "done"


@agent("helper", tools=[put, book])
async def helper(run: Run, what: str) -> str:
    await run.act(book, what=what)
    return what


async def test_what_derives_from_one_source_is_undone_and_nothing_before_it(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[curious, helper]) as runtime:
        handle = await runtime.start("curious")
        await handle.result()
        made = await runtime.undoing.plan(handle.id, cause=f"run:{handle.id}/2")
        assert [(step.name, step.derived, step.how) for step in made.steps] == [
            ("book", "context", "undo"),
            ("put", "context", "undo"),
            ("put", "arguments", "undo"),
        ]
        assert made.is_complete
        direct = await runtime.undoing.plan(handle.id, cause="tool:read_note", direct=True)
        assert [step.action for step in direct.steps] == [f"{handle.id}/3"]
        undone = await (await runtime.undoing.undo(made, by="anna")).result()
        assert undone["result"] == "ok"
        assert world == {"before": 1, "box-evil": None, "other": None}
        assert log[-3:] == ["cancel B-hall for hall", "back other", "back box-evil"]
        with pytest.raises(UsageError, match="the sources are .*`tool:read_note`"):
            await runtime.undoing.plan(handle.id, cause="tool:mail")


async def test_the_same_beside_the_process_that_drives_the_runs(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[curious, helper]) as runtime:
        handle = await runtime.start("curious")
        await handle.result()
        async with Runtime.open(tmp_path, agents=[curious, helper], beside=True) as beside:
            made = await beside.undoing.plan(handle.id, cause="tool:read_note")
            assert [step.name for step in made.steps] == ["book", "put", "put"]
