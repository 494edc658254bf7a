"""Databases of landed versions still open, and their runs go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perdure import ActionState, Budget, Runtime, Settings, Status
from perdure.governance.grants import sign
from perdure.stores.sqlite import integrity
from tests.golden.agents import AGENTS, GOVERNED, KEY

KEPT = sorted(Path(__file__).parent.glob("*.db"))


def test_there_are_kept_databases() -> None:
    assert KEPT


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
async def test_a_kept_run_goes_on(kept: Path, tmp_path: Path) -> None:
    shutil.copy(kept, tmp_path / "perdure.db")
    assert integrity(tmp_path / "perdure.db") == []
    async with Runtime.open(tmp_path, agents=AGENTS, settings=Settings(poll_ms=20)) as runtime:
        handle = await runtime.start("golden", ["other"], idempotency_key="golden")
        assert handle.status is Status.WAITING
        before = [type(entry).__name__ for entry in handle.journal()]
        await handle.send("late", "now")
        result = await handle.result(10)
        assert 0 <= result.pop("random") < 1
        assert result == {
            "marks": ["a!", "b!", "StepFailedError"],
            "child": "c!",
            "early": 70_000,
            "asked": 3,
            "patched": True,
            "late": "now",
        }
        assert [type(entry).__name__ for entry in handle.journal()][: len(before)] == before


@pytest.mark.parametrize("kept", [path for path in KEPT if path.stem >= "0.2"], ids=lambda path: path.stem)
async def test_a_kept_held_action_goes_on(kept: Path, tmp_path: Path) -> None:
    shutil.copy(kept, tmp_path / "perdure.db")
    async with Runtime.open(tmp_path, agents=AGENTS, settings=Settings(poll_ms=20)) as runtime:
        handle = await runtime.start("golden-actor", idempotency_key="golden-actor")
        waiting = [row.state for row in runtime.actions.waiting() if row.run == handle.id]
        assert waiting == [ActionState.HELD]
        await runtime.actions.set_budget(handle.id, Budget(calls=5))
        assert await handle.result(10) == ["seen a, arguments-invalid", {"done": "b"}, {"done": "c"}]
        spent = runtime.actions.accounts(handle.id)[0]
        assert (spent.spent.calls, spent.reserved.calls) == (3, 0)


@pytest.mark.parametrize("kept", [path for path in KEPT if path.stem >= "0.3"], ids=lambda path: path.stem)
async def test_a_kept_action_that_waits_for_a_signature_is_released(kept: Path, tmp_path: Path) -> None:
    shutil.copy(kept, tmp_path / "perdure.db")
    async with Runtime.open(tmp_path, agents=GOVERNED, settings=Settings(poll_ms=20)) as runtime:
        handle = await runtime.start("golden-governed", idempotency_key="golden-governed")
        [pending] = runtime.approvals.pending()
        assert "comes from `tool:golden_mail` (call 1)" in pending.shown
        statement = runtime.approvals.statement(pending.record.key, "approve")
        await runtime.approvals.submit(pending.record.key, sign(statement, KEY))
        assert await handle.result(10) == ["our account is golden-account-77", "paid golden-account-77"]
