"""Actions over crashes, as simulated worlds found them to go wrong: each bug by name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure import Budget, Run, Runtime, Status, agent, tool
from perdure.core.actions import ActionRecord, ActionState, Spend
from perdure.core.errors import PerdureError, ToolDoubtfulError
from perdure.gateway import ledger
from perdure.stores.sqlite import SqliteStore
from perdure.testing.conformance.rows import running, slept

CHILD = """
import asyncio, os, sys
from pathlib import Path
from perdure import Budget, Run, Runtime, agent, tool

@tool
async def charge(amount: int) -> str:
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{amount}\\n")
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
    return "charged"

@agent("payer", version="1", tools=[charge], budget=Budget(calls=int(sys.argv[4]), exhausted="hold"))
async def payer(run: Run) -> str:
    return await run.act("charge", amount=5)

async def main() -> None:
    async with Runtime.open(sys.argv[1], agents=[payer]) as runtime:
        handle = await runtime.start("payer", idempotency_key="one")
        print(await handle.result(float(sys.argv[3])))

asyncio.run(main())
"""


class Payer:
    """A process that may die in its tool, and what it has charged."""

    def __init__(self, folder: Path, calls: int) -> None:
        self.script, self.log, self.data = folder / "payer.py", folder / "log", folder / "data"
        self.script.write_text(CHILD)
        self.calls = calls

    def live(self, timeout: str, **env: str) -> subprocess.CompletedProcess[str]:
        """One life."""
        command = [sys.executable, str(self.script), str(self.data), str(self.log), timeout, str(self.calls)]
        return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)

    def dies(self) -> None:
        """A life that ends in the tool."""
        assert self.live("10", DIE="1").returncode == -signal.SIGKILL

    @property
    def charged(self) -> int:
        """How often."""
        return self.log.read_text().count("5\n") if self.log.exists() else 0

    async def waiting(self) -> list[ActionRecord]:
        """What waits for a decision."""
        async with Runtime.open(self.data, beside=True) as runtime:
            return runtime.actions.waiting()


async def test_an_action_decided_to_be_sent_again_is_doubtful_again_after_another_crash(
    tmp_path: Path,
) -> None:
    payer = Payer(tmp_path, calls=5)
    payer.dies()
    assert "TimeoutError" in payer.live("0.5").stderr
    (row,) = await payer.waiting()
    async with Runtime.open(payer.data, beside=True) as runtime:
        await runtime.actions.settle(row.key, "retry", by="ann")
    payer.dies()
    assert payer.charged == 2
    assert "TimeoutError" in payer.live("0.5").stderr  # one decision allows one more dispatch, not two
    assert payer.charged == 2
    assert [item.state for item in await payer.waiting()] == [ActionState.UNKNOWN]


async def test_a_held_action_that_was_released_is_doubtful_after_a_crash(tmp_path: Path) -> None:
    payer = Payer(tmp_path, calls=0)
    assert "TimeoutError" in payer.live("0.5").stderr
    (row,) = await payer.waiting()
    async with Runtime.open(payer.data, beside=True) as runtime:
        await runtime.actions.set_budget(row.run, Budget(calls=1, exhausted="hold"))
    payer.dies()
    assert payer.charged == 1
    assert "TimeoutError" in payer.live("0.5").stderr
    assert payer.charged == 1
    assert [item.state for item in await payer.waiting()] == [ActionState.UNKNOWN]


@tool
async def mail(text: str) -> str:
    """Send a mail, and lose the answer."""
    raise ToolDoubtfulError(f"no answer for {text}")


@agent("impatient", tools=[mail], version="1")
async def impatient(run: Run) -> str:
    task = asyncio.ensure_future(run.act("mail", text="a"))
    try:
        async with asyncio.timeout(0.1):
            await asyncio.shield(task)
    except TimeoutError:
        task.cancel()
    await run.receive("go")
    return "done"


async def test_a_run_that_gave_up_a_doubtful_action_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[impatient]) as runtime:
        handle = await runtime.start("impatient")
        await _until(lambda: handle.status is Status.WAITING and len(handle.journal()) >= 5)
        assert [row.state for row in runtime.actions.waiting()] == [ActionState.UNKNOWN]
    async with Runtime.open(tmp_path, agents=[impatient]) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("go")
        assert await handle.result(5) == "done"
        await runtime.actions.settle(f"{handle.id}/1", "happened", by="ann")
        assert runtime.actions.accounts(handle.id)[0].reserved == Spend()


def _row(run: str, state: ActionState, **fields: object) -> ActionRecord:
    return ActionRecord(
        run=run, call=1, agent="a", what="tool", name="t", state=state, recovery="opaque", effect="irreversible",
        intended_ms=1, intent_seq=2, reserved=Spend(calls=1), **fields,
    )  # fmt: skip


async def test_a_decision_about_a_held_action_says_nothing_of_a_later_doubt(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perdure.db")
    at = {"seq": 2, "at_ms": 5}
    late = ledger.Ruling(decision="retry", by="ann", about="held")
    try:
        await store.transact(lambda tx: (running(tx, "r"), tx.put_action(_row("r", ActionState.UNKNOWN))))
        assert await store.transact(lambda tx: ledger.rule(tx, at, "r", 1, "d", late, 1 << 20)) is None
        found = store.read(lambda tx: tx.action("r", 1))
        assert found is not None
        assert found.state is ActionState.UNKNOWN
    finally:
        await store.close()


async def test_a_model_request_that_the_end_of_its_run_loses_gives_its_reservation_back(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "perdure.db")

    def fill(tx) -> None:
        running(tx, "r")
        tx.append("r", 1, (slept(2),), {})
        tx.put_action(
            ActionRecord(
                run="r", call=1, agent="a", what="model", name="m", state=ActionState.INTENDED, recovery="pure",
                effect="read", intended_ms=1, intent_seq=2, reserved=Spend(calls=1, tokens=50),
            )
        )  # fmt: skip
        tx.book("r", Spend(calls=1, tokens=50), Spend())

    try:
        await store.transact(fill)
        await store.transact(lambda tx: ledger.close_run(tx, "r", 9))
        account = store.read(lambda tx: tx.accounts("r"))[0]
        assert account.reserved == account.spent == Spend()
        row = store.read(lambda tx: tx.action("r", 1))
        assert row is not None
        assert (row.state, row.reserved) == (ActionState.LOST, Spend())
    finally:
        await store.close()


@agent("poisoned", tools=[mail], version="1")
async def poisoned(run: Run) -> None:
    await run.act("mail", text="a")


async def test_a_blocked_run_that_is_cancelled_leaves_nothing_held(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[poisoned]) as runtime:
        handle = await runtime.start("poisoned", budget=Budget(calls=0, exhausted="hold"))
        await _until(lambda: handle.status is Status.WAITING)

    @agent("poisoned", tools=[mail], version="1")
    async def changed(run: Run) -> None:
        await run.sleep(1)

    async with Runtime.open(tmp_path, agents=[changed]) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("wake up")
        await _until(lambda: handle.status is Status.BLOCKED)
        await handle.cancel()
        with pytest.raises(PerdureError):
            await handle.result(5)
        assert [row.state for row in runtime.actions.rows(run=handle.id)] == [ActionState.REFUSED]


async def _until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        await asyncio.sleep(0.01)
