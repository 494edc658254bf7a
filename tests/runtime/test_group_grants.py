"""Group grants: one signature for a few actions of one shape; bounded in number, time, run and shape, whatever is tried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core import entries as e
from perdure.core.errors import RefusedError, UsageError
from perdure.core.verdicts import ALLOW, Demand, Verdict, hold
from perdure.gateway.gates.case import Case
from perdure.governance import grant_errors as errors
from perdure.governance.grants import add_signature, sign
from perdure.governance.groups import Group
from perdure.governance.keys import private_key, public_record
from perdure.runtime.rulebook import Rules

ANNA, BOB = private_key(bytes(range(32))), private_key(bytes(range(1, 33)))
sent: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


@tool
async def pay(to: str, cents: int, note: str = "") -> str:
    """Pay."""
    sent.append((to, cents, note))
    return "paid"


@tool
async def other(to: str, cents: int, note: str = "") -> str:
    """Something else with the same arguments."""
    sent.append((to, cents, note))
    return "done"


@agent("clerk", tools=[pay, other])
async def clerk(run: Run, steps: list[list[Any]], at_once: bool = False) -> list[str]:
    """One after the other, or all at once."""
    if at_once:
        return list(await run.gather(*(_one(run, step) for step in steps)))
    return [await _one(run, step) for step in steps]


async def _one(run: Run, step: list[Any]) -> str:
    name, to, cents, note = step
    try:
        return str(await run.act(name, to=to, cents=cents, note=note))
    except RefusedError as error:
        return error.code


class Much:
    """Everything is held; from 100 on for another reason too."""

    def __init__(self, quorum: int = 1, code: str = "much") -> None:
        self.quorum = quorum
        self.code = code

    async def judge(self, case: Case) -> Verdict:
        if case.what != "tool":
            return ALLOW
        demand = Demand(roles=("finance",), quorum=self.quorum)
        code = self.code if case.arguments["cents"] < 100 else "very-much"
        return hold(code, f"{case.arguments['cents']} is much", demand, rule="limit")


@asynccontextmanager
async def opened(path: Path, gate: Much | None = None) -> AsyncIterator[Runtime]:
    async with Runtime.open(path, agents=[clerk], rules=Rules(gates=[gate or Much()])) as runtime:
        rows = [public_record(key, name, ["finance"], 1) for key, name in ((ANNA, "anna"), (BOB, "bob"))]
        await runtime.keys.register(rows, by="test")
        yield runtime


async def held(runtime: Runtime, *, but: str = "") -> Any:
    async with asyncio.timeout(10):
        while not (found := [item for item in runtime.approvals.pending() if item.record.key != but]):
            await asyncio.sleep(0.01)
    return found[0]


async def approve(runtime: Runtime, also: int, free: tuple[str, ...] = ()) -> Any:
    pending = await held(runtime)
    statement = runtime.approvals.statement(pending.record.key, "approve", also=also, free=free)
    await runtime.approvals.submit(pending.record.key, sign(statement, ANNA))
    return pending


SAME = ["pay", "acme", 5, "a"]


async def test_so_many_of_one_shape_and_then_somebody_is_asked_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME] * 4})
        first = await approve(runtime, 2)
        pending = await held(runtime, but=first.record.key)
        assert pending.record.call == 4
        assert len(sent) == 3
        intended = [item for item in handle.journal() if isinstance(item, e.ActionIntended)]
        assert len({item.grant for item in intended}) == 1
        assert intended[0].grant
        await handle.cancel()


@pytest.mark.parametrize(
    "step",
    [
        ["pay", "evil", 5, "a"],
        ["pay", "acme", 6, "a"],
        ["other", "acme", 5, "a"],
        ["pay", "acme", 200, "a"],
    ],
)
async def test_whatever_differs_is_asked_about(tmp_path: Path, step: list[Any]) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME, step]})
        first = await approve(runtime, 5, ("note",))
        assert (await held(runtime, but=first.record.key)).record.call == 2
        assert len(sent) == 1
        await handle.cancel()


async def test_an_argument_that_may_be_anything(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        steps = [["pay", "acme", 5, note] for note in "abc"]
        handle = await runtime.start("clerk", {"steps": steps})
        await approve(runtime, 5, ("note",))
        assert await handle.result() == ["paid"] * 3


async def test_another_run_is_asked_about(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME]})
        first = await approve(runtime, 5)
        await handle.result()
        again = await runtime.start("clerk", {"steps": [SAME]})
        assert (await held(runtime, but=first.record.key)).record.run == again.id
        await again.cancel()


async def test_many_at_once_get_no_more_than_were_signed_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME]})
        await approve(runtime, 3)
        await handle.result()
        tx_results = await asyncio.gather(
            *(
                runtime.store.transact(
                    lambda tx, call=call: tx.use_group(tx.run_grants(handle.id)[0].jti, handle.id, call, 3, 1)  # type: ignore[misc]
                )
                for call in range(10, 30)
            )
        )
        assert sum(tx_results) == 3


async def test_a_revoked_key_ends_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME, ["pay", "acme", 200, "stop"], SAME]})
        first = await approve(runtime, 5)
        second = await held(runtime, but=first.record.key)
        [key] = [row for row in runtime.keys.rows() if row.person == "anna"]
        await runtime.keys.revoke(key.kid, by="test")
        statement = runtime.approvals.statement(second.record.key, "approve")
        await runtime.approvals.submit(second.record.key, sign(statement, BOB))
        third = await held(runtime, but=second.record.key)
        assert third.record.call == 3
        await handle.cancel()


async def test_two_persons_are_shown_the_group_and_sign_it(tmp_path: Path) -> None:
    async with opened(tmp_path, Much(quorum=2)) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME] * 3})
        pending = await held(runtime)
        statement = runtime.approvals.statement(pending.record.key, "approve", also=2)
        token = sign(statement, ANNA)
        await runtime.approvals.submit(pending.record.key, token)
        assert (
            "and up to 2 more uses of this tool by this run"
            in runtime.approvals.show(pending.record.key).shown
        )
        await runtime.approvals.submit(pending.record.key, add_signature(token, BOB))
        assert await handle.result() == ["paid"] * 3


async def test_it_survives_a_restart_and_is_counted_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start(
            "clerk", {"steps": [SAME, SAME, ["pay", "acme", 200, "wait"], SAME, SAME]}
        )
        first = await approve(runtime, 2)
        second = await held(runtime, but=first.record.key)
    async with opened(tmp_path) as runtime:
        statement = runtime.approvals.statement(second.record.key, "approve")
        await runtime.approvals.submit(second.record.key, sign(statement, BOB))
        last = await held(runtime, but=second.record.key)
        assert last.record.call == 5
        await runtime.run(handle.id).cancel()


async def test_a_group_that_was_not_shown_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME]})
        pending = await held(runtime)
        plain = runtime.approvals.statement(pending.record.key, "approve")
        group = runtime.approvals.statement(pending.record.key, "approve", also=3).group
        assert group is not None
        forged = msgspec.structs.replace(plain, group=group)
        with pytest.raises(errors.GrantDisplayMismatchError):
            await runtime.approvals.submit(pending.record.key, sign(forged, ANNA))
        real = runtime.approvals.statement(pending.record.key, "approve", also=3)
        for changed in (
            msgspec.structs.replace(group, count=1_000),
            msgspec.structs.replace(group, count=40),
            msgspec.structs.replace(group, free=("to",)),
            msgspec.structs.replace(group, codes=(*group.codes, "very-much:limit")),
            Group(count=3, shape="0" * 64, codes=group.codes),
        ):
            with pytest.raises(errors.GrantRefusedError):
                token = sign(msgspec.structs.replace(real, group=changed, display=real.display), ANNA)
                found = await runtime.approvals.submit(pending.record.key, token)
                raise AssertionError(f"{changed} was taken: {found}")
        await handle.cancel()


@pytest.mark.parametrize(
    ("also", "free", "told"),
    [(50, (), "2 to 50"), (-3, (), "2 to 50"), (1, ("nobody",), "no argument `nobody`")],
)
async def test_groups_that_cannot_be(tmp_path: Path, also: int, free: tuple[str, ...], told: str) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME]})
        pending = await held(runtime)
        with pytest.raises(UsageError, match=told):
            runtime.approvals.statement(pending.record.key, "approve", also=also, free=free)
        with pytest.raises(UsageError, match="as it is"):
            runtime.approvals.statement(pending.record.key, "reject", also=1)
        await handle.cancel()


async def test_what_is_held_for_a_value_leaves_no_value_open(tmp_path: Path) -> None:
    async with opened(tmp_path, Much(code="flow-untrusted")) as runtime:
        handle = await runtime.start("clerk", {"steps": [SAME]})
        pending = await held(runtime)
        with pytest.raises(UsageError, match="held for one of its values"):
            runtime.approvals.statement(pending.record.key, "approve", also=1, free=("to",))
        await handle.cancel()
