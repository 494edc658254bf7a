"""Agents that break their limits are quarantined: their runs are held until somebody releases them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent
from perdure.core.actions import ActionState
from perdure.core.errors import DefinitionError, SandboxUnavailableError
from perdure.core.records import Status
from perdure.gateway.breaches import note_breach
from perdure.kernel.quarantine import QuarantineRule, tally
from perdure.runtime.resourcing import ResourceRules
from perdure.sandboxes.namespace import NamespaceSandboxes

RULES = ResourceRules(quarantine=QuarantineRule(breaches=2, within_ms=60_000))
HOLD_S = 0.6  # longer than the dispatcher takes to look again


@agent("echo")
async def echo(run: Run, text: str = "hello") -> str:
    """Say it again."""
    return text


@agent("patient")
async def patient(run: Run) -> str:
    """Wait for a word."""
    return str((await run.receive("go")).body)


@agent("runaway", tools=["sandbox.python"])
async def runaway(run: Run) -> Any:
    """Run for ever."""
    found = await run.act("python", code="while True: pass", seconds=0.2)
    return found["ending"]


def test_only_breaches_within_the_time_count() -> None:
    rule = QuarantineRule(breaches=3, within_ms=1_000)
    assert tally(rule, (), 0) == ((0,), False)
    assert tally(rule, (0, 500), 999) == ((0, 500, 999), True)
    assert tally(rule, (0, 500), 1_000) == ((500, 1_000), False)
    assert tally(QuarantineRule(breaches=0), (1, 2, 3), 4)[1] is False
    with pytest.raises(DefinitionError, match="0 to 1000"):
        QuarantineRule(breaches=1_001)


async def test_runs_are_held_until_the_agent_is_released(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[echo]) as runtime:
        before = await runtime.start("echo")
        assert await before.result() == "hello"
        await runtime.containment.quarantine("echo", by="anna", reason="odd")
        handle = await runtime.start("echo")
        await asyncio.sleep(HOLD_S)
        assert handle.record().status is Status.QUEUED
        assert [item.scope for item in runtime.containment.quarantined()] == ["quarantine:echo"]
        assert await runtime.containment.release("echo", by="anna", reason="looked at it")
        assert await handle.result(10) == "hello"
        assert not await runtime.containment.release("echo", by="anna")
        leaves = runtime.store.read(lambda tx: tx.audit_records())
        said = [leaf.record for leaf in leaves if leaf.record.kind == "containment"]
        assert [(each.state, each.agent, each.by, each.refs["note"]) for each in said] == [
            ("quarantined", "echo", "anna", "odd"),
            ("released", "echo", "anna", "looked at it"),
        ]


async def test_others_are_not_held_and_a_quarantine_may_end_by_itself(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[echo, patient]) as runtime:
        await runtime.containment.quarantine("patient", by="anna", reason="odd", seconds=HOLD_S)
        assert await (await runtime.start("echo")).result() == "hello"
        held = await runtime.start("patient")
        await asyncio.sleep(HOLD_S / 3)
        assert held.record().status is Status.QUEUED
        await held.send("go", "on")
        assert await held.result(10) == "on"


async def test_a_run_that_waits_is_held_when_it_wakes(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[patient]) as runtime:
        handle = await runtime.start("patient")
        async with asyncio.timeout(10):
            while handle.record().status is not Status.WAITING:
                await asyncio.sleep(0.01)
        await runtime.containment.quarantine("patient", by="anna", reason="odd")
        await handle.send("go", "on")
        await asyncio.sleep(HOLD_S)
        assert handle.record().status is Status.QUEUED
        await runtime.containment.release("patient", by="anna")
        assert await handle.result(10) == "on"


async def test_breaking_limits_too_often_leads_there_and_survives_a_restart(tmp_path: Path) -> None:
    sandboxes = NamespaceSandboxes(spare=0)
    try:
        await sandboxes.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    await sandboxes.close()
    async with Runtime.open(tmp_path, agents=[runaway], resources=RULES) as runtime:
        assert await (await runtime.start("runaway")).result(20) == "wall-time"
        assert not runtime.containment.quarantined()
    async with Runtime.open(tmp_path, agents=[runaway], resources=RULES) as runtime:
        second = await runtime.start("runaway")
        assert await second.result(20) == "wall-time"
        (found,) = runtime.containment.quarantined()
        assert (found.scope, found.by) == ("quarantine:runaway", "perdure")
        assert found.reason == "2 limits met within 60 s, the last: wall-time"
        third = await runtime.start("runaway")
    async with Runtime.open(tmp_path, agents=[runaway], resources=RULES) as runtime:
        handle = runtime.run(third.id)
        await asyncio.sleep(HOLD_S)
        assert handle.record().status is Status.QUEUED
        await runtime.containment.release("runaway", by="anna")
        assert await handle.result(20) == "wall-time"  # what led there is forgotten: one more breach is one
        assert not runtime.containment.quarantined()
        assert all(row.state is ActionState.SUCCEEDED for row in runtime.actions.all_of(third.id))


async def test_a_rule_of_none_never_quarantines(tmp_path: Path) -> None:
    rules = ResourceRules(quarantine=QuarantineRule(breaches=0))
    async with Runtime.open(tmp_path, agents=[echo], resources=rules) as runtime:
        for _ in range(30):
            await runtime.store.transact(lambda tx: note_breach(tx, "echo", 1, "memory"))
        assert not runtime.containment.quarantined()
