"""Conduct rules on real runs: from a file, through restarts, with actions side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core.errors import RefusedError
from perdure.core.verdicts import ALLOW, Verdict, hold
from perdure.gateway.gates.case import Case
from perdure.governance.conduct_errors import ConductInvalidError
from perdure.governance.conduct_rules import Rules as ConductRules
from perdure.governance.grants import sign
from perdure.governance.keys import private_key, public_record
from perdure.runtime.rulebook import Rules

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies" / "conduct.toml"
sent: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


@tool(effect="read")
async def look(to: str) -> str:
    """Look."""
    return to


@tool
async def pay(to: str, cents: int) -> str:
    """Pay."""
    await asyncio.sleep(0.01)
    sent.append((to, cents))
    return f"paid {cents}"


@agent("clerk", tools=[look, pay])
async def clerk(run: Run, steps: list[list[Any]], wait: bool = False) -> list[str]:
    found: list[str] = []
    for name, arguments in steps:
        if name == "wait":
            await run.receive("go")
            continue
        try:
            found.append(str(await run.act(name, **arguments)))
        except RefusedError as error:
            found.append(error.code)
    return found


@agent("crowd", tools=[look, pay])
async def crowd(run: Run) -> int:
    found = await run.gather(*(_one(run, number) for number in range(8)))
    return sum(found)


async def _one(run: Run, number: int) -> int:
    try:
        await run.act(pay, to=str(number), cents=1)
    except RefusedError:
        return 0
    return 1


AGENTS = [clerk, crowd]
REQUIRE = """[[rule]]
id = "look"
kind = "require"
action = "pay"
needs = "look"
once = true
per = "to"
then = "deny"
reason = "look before you pay"
"""
COUNT = """[[rule]]
id = "few"
kind = "count"
action = "pay"
max = 3
then = "deny"
reason = "three are enough"
"""
RESTRICT = COUNT.replace("max = 3", "max = 1").replace('"deny"', '"restrict"')


def rules(path: Path, text: str) -> Rules:
    (path / "conduct.toml").write_text(text)
    return Rules(conduct=path / "conduct.toml")


async def test_a_sequence_is_judged_on_the_runs_own_actions(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=rules(tmp_path, REQUIRE)) as runtime:
        steps = [["pay", {"to": "a", "cents": 1}], ["look", {"to": "a"}], ["pay", {"to": "b", "cents": 1}],
                 ["pay", {"to": "a", "cents": 1}], ["pay", {"to": "a", "cents": 1}]]  # fmt: skip
        found = await (await runtime.start("clerk", {"steps": steps})).result()
        assert found == ["action-denied", "a", "action-denied", "paid 1", "action-denied"]
        assert sent == [("a", 1)]
        assert await (await runtime.start("clerk", {"steps": steps[:1]})).result() == ["action-denied"], (
            "another run"
        )


async def test_what_was_done_before_a_restart_counts(tmp_path: Path) -> None:
    chosen = rules(tmp_path, REQUIRE + COUNT)
    steps = [["look", {"to": "a"}], ["pay", {"to": "a", "cents": 1}], ["wait", {}], ["pay", {"to": "a", "cents": 1}], ["look", {"to": "a"}], ["wait", {}],
             ["pay", {"to": "a", "cents": 2}]]  # fmt: skip
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=chosen) as runtime:
        handle = await runtime.start("clerk", {"steps": steps})
        async with asyncio.timeout(5):
            while len(sent) < 1:
                await asyncio.sleep(0.01)
    for _ in range(2):
        async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=chosen) as runtime:
            await runtime.send(handle.id, "go")
            await asyncio.sleep(0.2)
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=chosen) as runtime:
        assert await runtime.run(handle.id).result(5) == ["a", "paid 1", "action-denied", "a", "paid 2"]


async def test_actions_side_by_side_cannot_overtake_each_other(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=rules(tmp_path, COUNT)) as runtime:
        assert await (await runtime.start("crowd")).result() == 3
        assert len(sent) == 3


class SlowHold:
    """Holds every payment, and takes its time to say so again when one is released."""

    async def judge(self, case: Case) -> Verdict:
        if case.is_release:
            await asyncio.sleep(0.05)
        return hold("all", "every payment is looked at") if case.name == "pay" else ALLOW


async def test_held_actions_that_are_released_at_once_cannot_overtake_each_other(tmp_path: Path) -> None:
    key = private_key(bytes(range(32)))
    chosen = Rules(conduct=rules(tmp_path, COUNT).conduct, gates=[SlowHold()])
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=chosen) as runtime:
        await runtime.keys.register([public_record(key, "anna", ["approver"], 1)], by="test")
        handle = await runtime.start("crowd")
        async with asyncio.timeout(5):
            while len(pending := runtime.approvals.pending()) < 8:
                await asyncio.sleep(0.01)
        for item in pending:
            statement = runtime.approvals.statement(item.record.key, "approve")
            await runtime.approvals.submit(item.record.key, sign(statement, key))
        assert await handle.result(10) == 3
        assert len(sent) == 3


async def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    for text in (COUNT.replace('"pay"', '"pya"'), "x = 1", None):
        chosen = Rules(conduct=tmp_path / "none") if text is None else rules(tmp_path, text)
        with pytest.raises(ConductInvalidError):
            async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=chosen):
                pass


async def test_a_broken_rule_contains_the_run_by_itself(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "d", agents=AGENTS, rules=rules(tmp_path, RESTRICT)) as runtime:
        steps = [["pay", {"to": "a", "cents": 1}], ["pay", {"to": "a", "cents": 1}], ["look", {"to": "a"}]]
        handle = await runtime.start("clerk", {"steps": steps})
        assert await handle.result() == ["paid 1", "action-denied", "a"]
        [contained] = runtime.containment.in_force()
        assert (contained.scope, contained.level, contained.by) == (
            f"run:{handle.id}",
            "restrict",
            "perdure.conduct",
        )
        assert "three are enough" in contained.reason
        kinds = [leaf.record.kind for leaf in runtime.store.read(lambda tx: tx.audit_records())]
        assert kinds.count("containment") == 1
        assert await (await runtime.start("clerk", {"steps": steps[:1]})).result() == ["paid 1"], (
            "another run is left alone"
        )


def test_the_example() -> None:
    names = [
        "refund",
        "look_up",
        "approve",
        "read_customer",
        "send_mail",
        "redact",
        "reserve",
        "buy",
        "give_back",
    ]
    assert len(ConductRules.load(EXAMPLE.read_text(), names).rules) == 7
