"""Approvals end to end: held, shown, signed, released once; every way round is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure import Budget, Run, Runtime, agent, tool
from perdure.core import entries as e
from perdure.core.actions import ActionState
from perdure.core.approvals import GrantRecord
from perdure.core.errors import (
    ActionDeniedError,
    ActionUnknownError,
    ApprovalExpiredError,
    ApprovalRejectedError,
    BudgetExhaustedError,
    UsageError,
)
from perdure.core.principals import Principal
from perdure.core.records import Status
from perdure.core.verdicts import ALLOW, Demand, Verdict, deny, hold
from perdure.engines.embedded import works
from perdure.gateway import ledger
from perdure.gateway.gates.case import Case
from perdure.governance import grant_errors as errors
from perdure.governance.grants import add_signature, read_statement, sign
from perdure.governance.keys import private_key, public_record
from perdure.runtime.rulebook import Rules

KEYS = {name: private_key(hashlib.sha256(name.encode()).digest()) for name in ("anna", "bob", "eve")}
sent: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


@tool
async def pay(to: str, cents: int) -> str:
    """Pay somebody."""
    sent.append((to, cents))
    return f"paid {cents} to {to}"


@agent("clerk", tools=[pay])
async def clerk(run: Run, cents: int) -> Any:
    return await run.act(pay, to="acme", cents=cents)


@agent("twice", tools=[pay])
async def twice(run: Run) -> Any:
    return [await run.act(pay, to="acme", cents=2_000) for _ in range(2)]


@agent("boss", tools=["agents.clerk"])
async def boss(run: Run, as_tool: bool = False) -> Any:
    if as_tool:
        return await run.act("clerk", cents=2_000)
    child = await run.spawn("clerk", 2_000)
    return await child.result()


AGENTS = [clerk, twice, boss]


class Limit:
    """Payments of 1000 and more are held; of 5000 and more denied."""

    def __init__(self, **demand: Any) -> None:
        self.demands = [Demand(**{"roles": ("finance",), **demand})]
        self.is_strict = False

    async def judge(self, case: Case) -> Verdict:
        cents = case.arguments.get("cents", 0) if case.name == "pay" else 0
        if cents >= 5_000 or (self.is_strict and cents):
            return deny("too-much", f"{cents} is too much", rule="limit")
        return hold("much", f"{cents} is much", self.demands[0], rule="limit") if cents >= 1_000 else ALLOW


@asynccontextmanager
async def opened(path: Path, gate: Limit | None = None) -> AsyncIterator[Runtime]:
    async with Runtime.open(path, agents=AGENTS, rules=Rules(gates=[gate or Limit()])) as runtime:
        rows = [
            public_record(KEYS["anna"], "anna", ["finance"], 1),
            public_record(KEYS["bob"], "bob", ["finance", "head"], 1),
        ]
        await runtime.keys.register(rows, by="test")
        yield runtime


async def held(runtime: Runtime, count: int = 1) -> Any:
    async with asyncio.timeout(10):
        while len(found := runtime.approvals.pending()) < count:
            await asyncio.sleep(0.01)
    return found[0]


def token(runtime: Runtime, pending: Any, *names: str, decision: Any = "approve", **options: Any) -> str:
    statement = runtime.approvals.statement(pending.record.key, decision, **options)
    made = sign(statement, KEYS[names[0]])
    for name in names[1:]:
        made = add_signature(made, KEYS[name])
    return made


async def test_a_held_action_is_released_by_a_grant_and_the_record_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        assert await (await runtime.start("clerk", 10)).result() == "paid 10 to acme"
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        assert "cents = 2000" in pending.shown
        assert "2000 is much (much)" in pending.shown
        assert (pending.demands[0].roles, pending.due_ms is not None) == (("finance",), True)
        assert sent == [("acme", 10)]
        made = token(runtime, pending, "anna", reason="ok")
        found = await runtime.approvals.submit(pending.record.key, made)
        assert (found.state, found.persons) == ("released", ("anna",))
        assert await handle.result() == "paid 2000 to acme"
        [intended] = [item for item in handle.journal() if isinstance(item, e.ActionIntended)]
        [grant] = runtime.store.read(lambda tx: tx.grants(handle.id, 1))
        assert (intended.grant, grant.used_ms is not None) == (grant.jti, True)
        assert intended.reasons[0].rule == "limit"
        assert runtime.approvals.pending() == []


async def test_nothing_releases_it_but_a_grant(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        for decision in ("live", "retry", "happened", "grant"):
            with pytest.raises(UsageError):
                await runtime.actions.settle(pending.record.key, decision, by="eve")  # type: ignore[arg-type]
        with pytest.raises(errors.GrantKeyUnknownError):
            await runtime.approvals.submit(pending.record.key, token(runtime, pending, "eve"))
        with pytest.raises(errors.GrantMalformedError):
            await runtime.approvals.submit(pending.record.key, "the model says: approved")
        # Even a message straight into the run's mailbox: without a signed grant it goes on waiting.
        ruling = ledger.Ruling(decision="grant", by="eve", about="held")
        body, _ = works.pack(works.msgspec.json.encode(ruling), 10_000)
        run, call = pending.record.run, pending.record.call
        await runtime.store.transact(
            lambda tx: works.send(
                tx, run, f"perdure.action/{call}", body, {}, sender="eve", now_ms=runtime.now_ms()
            )
        )
        runtime.look_after([run])
        await asyncio.sleep(0.2)
        [pending] = runtime.approvals.pending()
        assert "grant-missing" in runtime.actions.show(pending.record.key).history[-1].reason.message  # type: ignore[attr-defined]
        assert sent == []


async def test_a_rejection_reaches_the_agent(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = token(runtime, pending, "anna", decision="reject", reason="wrong supplier")
        assert (await runtime.approvals.submit(pending.record.key, made)).state == "rejected"
        with pytest.raises(Exception, match="wrong supplier"):
            await handle.result()
        assert runtime.actions.rows()[0].state is ActionState.REFUSED
        assert runtime.actions.show(pending.record.key).error.code == ApprovalRejectedError.code  # type: ignore[union-attr]
        with pytest.raises(ActionUnknownError):
            await runtime.approvals.submit(pending.record.key, made)
        assert sent == []


async def test_changed_arguments_are_judged_and_used(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        changed = {"to": "acme", "cents": 1_500}
        made = token(runtime, pending, "anna", decision="approve_edited", arguments=changed)
        await runtime.approvals.submit(pending.record.key, made)
        assert await handle.result() == "paid 1500 to acme"
        assert runtime.actions.show(pending.record.key).request == changed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"to": "acme", "cents": 9_000}, ActionDeniedError),
        ({"to": "acme", "cents": "x"}, ActionDeniedError),
    ],
)
async def test_changed_arguments_that_are_not_allowed(tmp_path: Path, arguments: Any, error: Any) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = token(runtime, pending, "anna", decision="approve_edited", arguments=arguments)
        await runtime.approvals.submit(pending.record.key, made)
        with pytest.raises(Exception, match="too much|expected|cents"):
            await handle.result()
        assert runtime.actions.show(pending.record.key).error.code == error.code  # type: ignore[union-attr]
        assert sent == []


async def test_one_of_a_quorum_cannot_put_other_arguments_under_the_signatures_of_all(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(quorum=2)) as runtime:
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        run, call = pending.record.run, pending.record.call
        arguments = {"to": "bob", "cents": 4_000}
        alone = token(runtime, pending, "bob", decision="approve_edited", arguments=arguments)
        assert (await runtime.approvals.submit(pending.record.key, alone)).state == "waiting"
        jti = read_statement(alone).jti  # handed in once more, in the moment after the other one was complete
        late = GrantRecord(jti=jti, run=run, call=call, token=alone, at_ms=runtime.now_ms() + 60_000)
        await runtime.store.transact(lambda tx: tx.put_grant(late))
        both = token(runtime, pending, "anna", "bob")
        assert (await runtime.approvals.submit(pending.record.key, both)).state == "released"
        async with asyncio.timeout(10):
            while len(runtime.actions.show(pending.record.key).history) < 3 and not sent:
                await asyncio.sleep(0.01)
        assert sent == []
        assert "grant-" in runtime.actions.show(pending.record.key).history[-1].reason.message  # type: ignore[attr-defined]


async def test_a_quorum_of_persons(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(quorum=2)) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        first = token(runtime, pending, "anna")
        found = await runtime.approvals.submit(pending.record.key, first)
        assert (found.state, found.persons) == ("waiting", ("anna",))
        assert "2 persons" in found.missing
        again = await runtime.approvals.submit(pending.record.key, add_signature(first, KEYS["anna"]))
        assert again.state == "waiting", "two signatures of one person are one vote"
        unfinished = runtime.approvals.unfinished(pending.record.key)
        assert unfinished is not None
        found = await runtime.approvals.submit(
            pending.record.key, add_signature(unfinished.token, KEYS["bob"])
        )
        assert (found.state, found.persons) == ("released", ("anna", "bob"))
        assert await handle.result() == "paid 2000 to acme"


@agent("wordy", tools=[pay])
async def wordy(run: Run) -> Any:
    return await run.act(pay, to="a" * 100_000, cents=2_000)


async def test_arguments_that_are_kept_as_a_blob_are_approved_like_others(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[wordy], rules=Rules(gates=[Limit()])) as runtime:
        await runtime.keys.register([public_record(KEYS["anna"], "anna", ["finance"], 1)], by="test")
        handle = await runtime.start("wordy")
        pending = await held(runtime)
        assert (
            await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        ).state == "released"
        assert await handle.result(5) == f"paid 2000 to {'a' * 100_000}"


async def test_who_asks_does_not_approve(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.start("clerk", 2_000, principals=[Principal(kind="user", name="anna")])
        pending = await held(runtime)
        with pytest.raises(errors.GrantRequesterError):
            await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        found = await runtime.approvals.submit(pending.record.key, token(runtime, pending, "bob"))
        assert found.state == "released"


async def test_an_identical_second_action_needs_its_own_grant(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.start("twice")
        first = await held(runtime)
        made = token(runtime, first, "anna")
        await runtime.approvals.submit(first.record.key, made)
        async with asyncio.timeout(5):
            while not (found := runtime.approvals.pending()) or found[0].record.call != 2:
                await asyncio.sleep(0.01)
        with pytest.raises(errors.GrantActionMismatchError):
            await runtime.approvals.submit(found[0].record.key, made)
        assert len(sent) == 1


@pytest.mark.parametrize("as_tool", [False, True])
async def test_a_sub_agent_is_asked_for_too_and_its_grant_is_its_own(tmp_path: Path, as_tool: bool) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start(
            "boss", {"as_tool": as_tool}, principals=[Principal(kind="user", name="ute")]
        )
        pending = await held(runtime)
        assert pending.claim.principals == ("agent:clerk", "agent:boss", "user:ute")
        await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        assert await handle.result() == "paid 2000 to acme"


async def test_it_waits_through_restarts_and_is_released_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        before = await held(runtime)
    for _ in range(3):
        async with opened(tmp_path) as runtime:
            await asyncio.sleep(0.05)
            after = await held(runtime)
            assert (after.claim, after.due_ms, after.shown) == (before.claim, before.due_ms, before.shown)
    async with Runtime.open(tmp_path, agents=AGENTS, beside=True) as outside:
        made = token(outside, after, "anna")
        await outside.approvals.submit(after.record.key, made)
        with pytest.raises(ActionUnknownError, match="decision already"):
            await outside.approvals.submit(after.record.key, made)
    async with opened(tmp_path) as runtime:
        assert await runtime.run(handle.id).result() == "paid 2000 to acme"
        assert len(sent) == 1
        with pytest.raises(ActionUnknownError):
            await runtime.approvals.submit(after.record.key, made)


async def test_a_key_that_is_revoked_between_approval_and_use(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
    async with Runtime.open(tmp_path, agents=AGENTS, beside=True) as outside:
        await outside.approvals.submit(pending.record.key, token(outside, pending, "anna"))
        await outside.keys.revoke(KEYS["anna"].thumbprint()[:10], by="admin")
    async with Runtime.open(tmp_path, agents=AGENTS, rules=Rules(gates=[Limit()])) as runtime:
        await asyncio.sleep(0.2)
        again = await held(runtime)
        assert "grant-key-revoked" in runtime.actions.show(again.record.key).history[-1].reason.message  # type: ignore[attr-defined]
        assert sent == []
        with pytest.raises(UsageError, match="was revoked"):
            await runtime.keys.register([public_record(KEYS["anna"], "anna", ["finance"], 1)], by="x")
        await runtime.approvals.submit(again.record.key, token(runtime, again, "bob"))
        await runtime.run(again.record.run).result()
        assert len(sent) == 1


async def test_a_rule_that_changed_meanwhile_is_the_one_that_counts(tmp_path: Path) -> None:
    gate = Limit()
    async with opened(tmp_path, gate) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        gate.is_strict = True
        await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        with pytest.raises(Exception, match="2000 is too much"):
            await handle.result()
        [grant] = runtime.store.read(lambda tx: tx.grants(handle.id, 1))
        assert grant.used_ms is None, "what was denied uses no grant up"
        told = runtime.audit.records(pending.record.key)[-1].record
        assert (told.kind, told.verdict, told.codes) == ("judged", "deny", ("too-much:limit",))
        assert sent == []


@agent("poor", tools=[pay], budget=Budget(calls=1))
async def poor(run: Run) -> Any:
    await run.gather(run.act(pay, to="acme", cents=2_000), run.act(pay, to="acme", cents=10))


async def test_what_is_released_over_its_budget_is_refused_as_the_budget_says(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[poor], rules=Rules(gates=[Limit()])) as runtime:
        await runtime.keys.register([public_record(KEYS["anna"], "anna", ["finance"], 1)], by="test")
        handle = await runtime.start("poor")
        pending = await held(runtime)
        async with asyncio.timeout(5):
            while not sent:
                await asyncio.sleep(0.01)
        await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        with pytest.raises(Exception, match="budget"):
            await handle.result(5)
        view = runtime.actions.show(pending.record.key)
        assert (view.record.state, view.error.code) == (ActionState.REFUSED, BudgetExhaustedError.code)  # type: ignore[union-attr]
        [grant] = runtime.store.read(lambda tx: tx.grants(handle.id, pending.record.call))
        assert grant.used_ms is None
        assert sent == [("acme", 10)]


async def test_expiry_denies_and_a_late_decision_does_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(deadline_ms=200)) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = token(runtime, pending, "anna")
        with pytest.raises(Exception, match="nobody approved it in time"):
            await handle.result()
        assert runtime.actions.show(pending.record.key).error.code == ApprovalExpiredError.code  # type: ignore[union-attr]
        with pytest.raises(ActionUnknownError):
            await runtime.approvals.submit(pending.record.key, made)
        assert sent == []


async def test_a_deadline_that_passes_asks_the_next_role(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(roles=("nobody",), deadline_ms=150, escalation=("head",))) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        with pytest.raises(errors.GrantRoleMissingError):
            await runtime.approvals.submit(pending.record.key, token(runtime, pending, "bob"))
        async with asyncio.timeout(5):
            while not (pending := await held(runtime)).asked:
                await asyncio.sleep(0.01)
        assert pending.demands[0].roles == ("nobody", "head")
        await runtime.approvals.submit(pending.record.key, token(runtime, pending, "bob"))
        assert await handle.result() == "paid 2000 to acme"


async def test_two_that_decide_at_once_are_one_decision(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = [token(runtime, pending, name) for name in ("anna", "bob")]
        found = await asyncio.gather(
            *(runtime.approvals.submit(pending.record.key, item) for item in made * 3), return_exceptions=True
        )
        assert sum(not isinstance(item, Exception) for item in found) == 1
        assert await handle.result() == "paid 2000 to acme"
        assert len(sent) == 1


async def test_a_grant_is_used_up_in_one_transaction_whoever_asks_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        grant = GrantRecord(jti="j", run=handle.id, call=1, token="t", at_ms=1)
        await runtime.store.transact(lambda tx: tx.put_grant(grant))
        found = await asyncio.gather(
            *(runtime.store.transact(lambda tx: tx.use_grant("j", 2)) for _ in range(20))
        )
        assert sum(found) == 1
        assert pending.record.state is ActionState.HELD


async def test_a_run_that_waits_for_a_person_is_parked(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", 2_000)
        await held(runtime)
        async with asyncio.timeout(5):
            while handle.record().status is not Status.WAITING:
                await asyncio.sleep(0.01)
        assert handle.record().wake_ms is not None, "its deadline is a durable timer"


async def test_a_gate_that_fails_denies(tmp_path: Path) -> None:
    class Broken:
        async def judge(self, case: Case) -> Verdict:
            raise OSError("no policy server")

    async with Runtime.open(tmp_path, agents=AGENTS, rules=Rules(gates=[Broken()])) as runtime:
        with pytest.raises(Exception, match="gate-failed"):
            await (await runtime.start("clerk", 10)).result()
        assert sent == []


@agent("unsure", tools=[pay])
async def unsure(run: Run, percent: int) -> Any:
    with run.confidence(percent):
        return await run.act(pay, to="acme", cents=5)


@agent("wrong")
async def wrong(run: Run) -> None:
    with run.confidence(101):
        pass


async def test_an_agent_that_is_not_sure_asks(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[unsure, wrong], rules=Rules(confidence_min=60)) as runtime:
        await runtime.keys.register([public_record(KEYS["anna"], "anna", ["approver"], 1)], by="test")
        assert await (await runtime.start("unsure", 60)).result() == "paid 5 to acme"
        handle = await runtime.start("unsure", 40)
        pending = await held(runtime)
        assert "confidence is 40 percent, below 60 (confidence-low)" in pending.shown
        await runtime.approvals.submit(pending.record.key, token(runtime, pending, "anna"))
        assert await handle.result() == "paid 5 to acme"
        with pytest.raises(Exception, match="percentage from 0 to 100"):
            await (await runtime.start("wrong")).result()


@agent("sly", tools=[pay])
async def sly(run: Run, to: str, topic: str) -> None:
    await run.send(to, topic, {"decision": "happened", "by": "me", "about": ""})


@pytest.mark.parametrize("topic", ["perdure.action/1", "perdure.answer/1", "perdure."])
async def test_an_agent_cannot_send_decisions(tmp_path: Path, topic: str) -> None:
    async with Runtime.open(tmp_path, agents=[*AGENTS, sly], rules=Rules(gates=[Limit()])) as runtime:
        handle = await runtime.start("clerk", 2_000)
        await held(runtime)
        with pytest.raises(Exception, match="cannot begin with `perdure.`"):
            await (await runtime.start("sly", {"to": handle.id, "topic": topic})).result()
        with pytest.raises(UsageError, match="cannot begin with"):
            await runtime.send(handle.id, topic, {})
        assert sent == []
