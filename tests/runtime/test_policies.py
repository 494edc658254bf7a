"""Policies on real runs: from a folder, reloaded, in the record, backtested; while they cannot be used nothing runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from perdure import Budget, Run, Runtime, agent, tool
from perdure.core import entries as e
from perdure.core.errors import ActionDeniedError, DefinitionError
from perdure.core.principals import Principal
from perdure.governance.grants import sign
from perdure.governance.keys import private_key, public_record
from perdure.governance.policy import load
from perdure.runtime.config import world_from
from perdure.runtime.judging import Judging
from perdure.runtime.policies import specs_of
from perdure.runtime.rulebook import Rules
from perdure.runtime.secrets import LocalSecrets

ANNA = private_key(bytes(range(32)))
sent: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


@tool
async def pay(to: str, cents: int) -> str:
    """Pay."""
    sent.append((to, cents))
    return "paid"


@tool(effect="read")
async def look(what: str) -> str:
    """Look."""
    return what


@agent("clerk", tools=[pay, look], roles=["clerks"])
async def clerk(run: Run, cents: int) -> Any:
    return await run.act(pay, to="acme", cents=cents)


@agent("reader", tools=[look])
async def reader(run: Run) -> Any:
    return await run.act(look, what="x")


AGENTS = [clerk, reader]
SMALL = """
@id("read") permit (principal, action in Action::"read", resource);
@id("small") permit (principal, action == Action::"pay", resource) when { context.input.cents < 1000 };
@id("large") @hold("finance") permit (principal, action == Action::"pay", resource) when { context.input.cents >= 1000 };
"""


def folder(path: Path, text: str = SMALL) -> Path:
    made = path / "policies"
    made.mkdir(exist_ok=True)
    (made / "a.cedar").write_text(text)
    return made


async def result(runtime: Runtime, cents: int, **options: Any) -> Any:
    return await (await runtime.start("clerk", cents, **options)).result()


async def test_what_policies_allow_deny_and_hold(tmp_path: Path) -> None:
    rules = Rules(policies=folder(tmp_path))
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=rules) as runtime:
        await runtime.keys.register([public_record(ANNA, "anna", ["finance"], 1)], by="t")
        assert await result(runtime, 5) == "paid"
        [intended] = [
            item for item in runtime.run(runtime.runs()[0].id).journal() if isinstance(item, e.ActionIntended)
        ]
        assert [reason.rule for reason in intended.reasons] == ["small"]
        assert len(intended.policy) == 64
        handle = await runtime.start("clerk", 2_000)
        async with asyncio.timeout(5):
            while not runtime.approvals.pending():
                await asyncio.sleep(0.01)
        [pending] = runtime.approvals.pending()
        assert (pending.demands[0].roles, pending.claim.policy) == (("finance",), intended.policy)
        await runtime.approvals.submit(
            pending.record.key, sign(runtime.approvals.statement(pending.record.key, "approve"), ANNA)
        )
        assert await handle.result() == "paid"
        codes = [leaf.record.codes for leaf in runtime.audit.records(pending.record.key)]
        assert ("policy-hold:large",) in codes


async def test_a_change_counts_without_a_restart_and_is_in_the_log(tmp_path: Path) -> None:
    policies = folder(tmp_path)
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=Rules(policies=policies)) as runtime:
        assert await result(runtime, 5) == "paid"
        folder(tmp_path, '@id("read") permit (principal, action in Action::"read", resource);')
        async with asyncio.timeout(10):
            while True:
                try:
                    await result(runtime, 5)
                except ActionDeniedError as error:
                    assert "policy-none" in error.message
                    break
                await asyncio.sleep(0.1)
        records = [leaf.record for leaf in runtime.store.read(lambda tx: tx.audit_records())]
        assert len({record.policy for record in records if record.kind == "policy"}) == 2


@pytest.mark.parametrize(
    "text", ["permit (principal, action", 'permit (principal, action == Action::"nope", resource);', ""]
)
async def test_while_the_policies_cannot_be_used_nothing_runs(tmp_path: Path, text: str) -> None:
    policies = folder(tmp_path, text)
    if not text:
        os.unlink(policies / "a.cedar")
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=Rules(policies=policies)) as runtime:
        for _ in range(2):
            with pytest.raises(ActionDeniedError, match="policy-invalid"):
                await result(runtime, 5)
        with pytest.raises(ActionDeniedError, match="policy-invalid"):
            await (await runtime.start("reader")).result()
        assert sent == []
        folder(tmp_path)
        assert await result(runtime, 5) == "paid", "and as soon as they can, it goes on"


async def test_policies_that_break_while_running_stop_everything(tmp_path: Path) -> None:
    policies = folder(tmp_path)
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=Rules(policies=policies)) as runtime:
        assert await result(runtime, 5) == "paid"
        folder(tmp_path, "garbage")
        await asyncio.sleep(1.1)
        with pytest.raises(ActionDeniedError, match="policy-invalid"):
            await result(runtime, 5)


async def test_a_held_action_is_judged_by_the_policies_of_its_release(tmp_path: Path) -> None:
    policies = folder(tmp_path)
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=Rules(policies=policies)) as runtime:
        await runtime.keys.register([public_record(ANNA, "anna", ["finance"], 1)], by="t")
        handle = await runtime.start("clerk", 2_000)
        async with asyncio.timeout(5):
            while not runtime.approvals.pending():
                await asyncio.sleep(0.01)
        [pending] = runtime.approvals.pending()
        folder(
            tmp_path,
            SMALL
            + '@id("more") @hold("finance") permit (principal, action == Action::"pay", resource) when { context.input.cents > 5 };',
        )
        await asyncio.sleep(1.1)
        await runtime.approvals.submit(
            pending.record.key, sign(runtime.approvals.statement(pending.record.key, "approve"), ANNA)
        )
        async with asyncio.timeout(5):
            while runtime.approvals.pending()[0].claim.policy == pending.claim.policy:
                await asyncio.sleep(0.01)
        assert sent == [], "what was approved under other policies must be looked at again"
        [again] = runtime.approvals.pending()
        await runtime.approvals.submit(
            again.record.key, sign(runtime.approvals.statement(again.record.key, "approve"), ANNA)
        )
        assert await handle.result() == "paid"


async def test_a_user_who_may_not_and_a_child_that_is_asked_for_too(tmp_path: Path) -> None:
    text = """
    @id("agents") permit (principal is Agent, action, resource);
    @id("users") permit (principal == User::"anna", action, resource);
    """
    async with Runtime.open(
        tmp_path / "data", agents=AGENTS, rules=Rules(policies=folder(tmp_path, text))
    ) as runtime:
        assert await result(runtime, 5, principals=[Principal(kind="user", name="anna")]) == "paid"
        with pytest.raises(ActionDeniedError, match="user `otto`"):
            await result(runtime, 5, principals=[Principal(kind="user", name="otto")])


async def test_a_backtest_shows_what_would_change(tmp_path: Path) -> None:
    async with Runtime.open(
        tmp_path / "data", agents=AGENTS, rules=Rules(policies=folder(tmp_path))
    ) as runtime:
        for cents in (5, 500, 900):
            await result(runtime, cents)
        assert runtime.engine is not None
        assert runtime.engine.outside is not None
        specs = await specs_of(runtime.engine.outside.catalogues)
        stricter = load(
            {
                "b.cedar": SMALL.replace("cents < 1000", "cents < 600").replace(
                    "cents >= 1000", "cents >= 600"
                )
            },
            specs,
        )
        found = list(Judging(runtime).backtest(stricter))
        assert [(item.before, item.after.kind, item.is_changed) for item in found] == [
            ("allow", "hold", True), ("allow", "allow", False), ("allow", "allow", False),
        ]  # fmt: skip
        links = stricter.links(Judging(runtime).request(found[0].action))
        assert [(link.decision, link.policies) for link in links] == [("Allow", ("large",))]


def test_the_configuration_names_them(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text('[governance]\npolicies = "rules"\nconfidence_min = 60\n')
    rules = world_from(path, {}, LocalSecrets.default(tmp_path)).rules
    assert (rules.policies, rules.confidence_min) == (tmp_path / "rules", 60)
    for text in (
        "[governance]\npolicy = 'x'",
        "[governance]\npolicies = 5",
        "[governance]\nconfidence_min = 0",
        "[governance]\nconfidence_min = 'x'",
    ):
        path.write_text(text)
        with pytest.raises(DefinitionError):
            world_from(path, {}, LocalSecrets.default(tmp_path))


BUDGET = """
@id("read") permit (principal, action in Action::"read", resource);
@id("rich") permit (principal, action == Action::"pay", resource)
when { if context.governance has budget_left_usd_micros then context.governance.budget_left_usd_micros > 1000000 else true };
@id("poor") @hold("finance") permit (principal, action == Action::"pay", resource)
when { context.governance has budget_left_usd_micros && context.governance.budget_left_usd_micros <= 1000000 };
"""


async def test_policies_see_what_is_left_of_the_budget(tmp_path: Path) -> None:
    rules = Rules(policies=folder(tmp_path, BUDGET))
    async with Runtime.open(tmp_path / "data", agents=AGENTS, rules=rules) as runtime:
        assert await result(runtime, 5) == "paid"
        assert await result(runtime, 5, budget=Budget(usd_micros=2_000_000)) == "paid"
        handle = await runtime.start("clerk", 5, budget=Budget(usd_micros=500_000))
        async with asyncio.timeout(10):
            while not runtime.approvals.pending():
                await asyncio.sleep(0.01)
        await handle.cancel()
