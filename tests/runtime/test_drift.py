"""Drift on real runs: baselines from what was recorded, and containment that follows by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from perdure import Run, Runtime, Settings, agent, tool
from perdure.core.approvals import Containment
from perdure.core.errors import (
    ContainedError,
    CorruptError,
    DefinitionError,
    StoreUnavailableError,
    UsageError,
)
from perdure.core.values import digest
from perdure.governance.behaviour import RUNS_MIN
from perdure.runtime import drifting
from perdure.runtime.config import world_from
from perdure.runtime.drift_watch import DRIFT, SEEN, DriftWatch
from perdure.runtime.rulebook import DriftRule, Rules
from perdure.runtime.secrets import LocalSecrets

BASELINE = 60
QUIET = DriftRule(contain="restrict", every_s=3_600, window=10)  # looks only when it is told to
USUAL = (["look", "read", "pay"], [5, 4, 1])


@tool(effect="read")
async def look(what: str) -> str:
    """Look."""
    return what


@tool(effect="read")
async def read(what: str) -> str:
    """Read."""
    return what


@tool
async def pay(what: str) -> str:
    """Pay."""
    return what


@tool(effect="read")
async def export(what: str) -> str:
    """Export everything."""
    return what


async def _act(run: Run, verbs: list[str]) -> list[str]:
    found: list[str] = []
    for verb in verbs:
        if verb == "wait":
            await run.receive("go")
            continue
        try:
            found.append(str(await run.act(verb, what="x")))
        except ContainedError as error:
            found.append(error.message)
    return found


TOOLS = [look, read, pay, export]


@agent("desk", tools=TOOLS)
async def desk(run: Run, verbs: list[str]) -> list[str]:
    return await _act(run, verbs)


@agent("other", tools=TOOLS)
async def other(run: Run, verbs: list[str]) -> list[str]:
    return await _act(run, verbs)


@asynccontextmanager
async def opened(path: Path, rule: DriftRule | None = None) -> AsyncIterator[Runtime]:
    settings = Settings(durability="relaxed", drain_ms=500, poll_ms=50)
    async with Runtime.open(
        path, agents=[desk, other], settings=settings, rules=Rules(drift=rule)
    ) as runtime:
        yield runtime
        assert runtime.store.read(lambda tx: tx.audit_head())[0] > 0


def usual(chance: Random) -> list[str]:
    return chance.choices(*USUAL, k=chance.randint(2, 6))


def turned(chance: Random) -> list[str]:
    return chance.choices(["look", "pay"], [1, 4], k=chance.randint(2, 6))


async def played(
    runtime: Runtime, many: list[list[str]], *, name: str = "desk", goal: str | None = None
) -> list[Any]:
    handles = [await runtime.start(name, {"verbs": verbs}, goal=goal) for verbs in many]
    found = [await handle.result() for handle in handles]
    await later(runtime)
    return found


async def later(runtime: Runtime) -> None:
    """Until the clock says something else: what ended in the millisecond of a freeze belongs to it."""
    now_ms = runtime.now_ms()
    while runtime.now_ms() == now_ms:
        await asyncio.sleep(0.001)


async def frozen(runtime: Runtime, **options: Any) -> None:
    chance = Random(1)
    await played(runtime, [usual(chance) for _ in range(BASELINE)], **options)
    name = options.pop("name", "desk")
    await runtime.drift.freeze(name, by="anna", **options)
    await later(runtime)


# -- looking -----------------------------------------------------------------------------------
async def test_who_acts_as_before_does_not_drift(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        chance, found = Random(2), []
        for _ in range(8):
            await played(runtime, [usual(chance) for _ in range(10)])
            found.append((await runtime.drift.check("desk", window=10)).found)
        assert found == ["none"] * 8, "one in a hundred windows may be wrong"
        assert (await runtime.drift.check("desk", window=80)).found == "none"
        assert runtime.containment.in_force() == []


async def test_a_tool_that_was_never_used_for_this_goal_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        waiting = await runtime.start("desk", {"verbs": ["look", "export", "wait"]})
        while len(runtime.actions.rows(run=waiting.id)) < 2:
            await asyncio.sleep(0.01)
        report = await runtime.drift.check("desk")
        assert (report.found, report.features[0].new) == ("drift", ("tool:export",)), "also while it runs"
        await waiting.cancel("enough")
        assert (await runtime.drift.check("desk")).found == "drift", "also when it was cut off"
        assert runtime.containment.in_force() == [], "who asks changes nothing"
        assert (await runtime.drift.check("other")).why == "this agent has no baseline for this goal"


async def test_another_mix_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        chance = Random(3)
        await played(runtime, [turned(chance) for _ in range(10)])
        report = await runtime.drift.check("desk", window=10)
        assert [feature.test for feature in report.features if feature.is_drift] == ["divergence"]


async def test_much_more_of_the_same_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        chance = Random(4)
        await played(runtime, [[*usual(chance), *usual(chance), *usual(chance)] for _ in range(12)])
        report = await runtime.drift.check("desk", window=12)
        assert [feature.feature for feature in report.features if feature.is_drift] == ["actions"]


async def test_goals_are_told_apart(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime, goal="refund")
        chance = Random(5)
        await played(runtime, [["export"]] * BASELINE, goal="export")
        await runtime.drift.freeze("desk", "export", by="anna")
        await later(runtime)
        await played(runtime, [["export"]] * 12, goal="export")
        await played(runtime, [usual(chance) for _ in range(12)], goal="refund")
        assert (await runtime.drift.check("desk", "refund")).found == "none"
        assert (await runtime.drift.check("desk", "export")).found == "none"
        assert (await runtime.drift.check("desk")).found == "unknown"
        await played(runtime, [["export"]], goal="refund")
        assert (await runtime.drift.check("desk", "refund")).found == "drift"
        assert (await runtime.drift.check("desk", "export")).found == "none"
        assert [(one.agent, one.goal) for one in await runtime.drift.baselines()] == [
            ("desk", "export"), ("desk", "refund"),
        ]  # fmt: skip
        [newest] = runtime.runs(limit=1)
        copy = await runtime.fork(newest.id, at=1)
        await copy.result()
        assert copy.journal()[0].goal == "refund", "a fork has the goal of its origin"
        with pytest.raises(UsageError, match="a goal must be 1 to 200"):
            await runtime.start("desk", {"verbs": []}, goal="")


async def test_too_few_runs_are_said_and_nothing_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path, QUIET) as runtime:
        await played(runtime, [["look"]] * (RUNS_MIN - 1))
        with pytest.raises(DefinitionError, match=f"has {RUNS_MIN - 1} ended runs for the goal `desk`"):
            await runtime.drift.freeze("desk", by="anna")
        assert await runtime.drift.baselines() == []
        await played(runtime, [["look"]])
        await runtime.drift.freeze("desk", by="anna")
        await later(runtime)
        await played(runtime, [["look", "look"]] * 9)
        report = await runtime.drift.check("desk")
        assert (report.found, report.why) == (
            "unknown", "9 runs have ended since the baseline was frozen, 10 are needed",
        )  # fmt: skip
        assert await DriftWatch(runtime, QUIET).look() == []
        assert runtime.containment.in_force() == []


async def test_a_freeze_is_bounded_recorded_and_replaces_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        first = await runtime.drift.freeze("desk", by="ben", runs=50)
        assert (first.runs, first.by, (await runtime.drift.baselines())) == (50, "ben", [first])
        records = [leaf.record for leaf in runtime.store.read(lambda tx: tx.audit_records())]
        made = [record for record in records if record.kind == "configuration"]
        assert [(record.by, record.agent, record.name, record.refs["runs"]) for record in made] == [
            ("anna", "desk", "drift-baseline", "60"), ("ben", "desk", "drift-baseline", "50"),
        ]  # fmt: skip
        kept = runtime.store.read(lambda tx: tx.fact(drifting.fact_of(("desk", "desk"))))
        assert kept is not None
        assert made[-1].refs["sha256"] == digest(kept.encode())
        for runs in (49, 1_001):
            with pytest.raises(UsageError, match=f"50 to 1000 runs, found `{runs}`"):
                await runtime.drift.freeze("desk", by="ben", runs=runs)
        for window in (9, 201):
            with pytest.raises(UsageError, match=f"10 to 200 runs, found `{window}`"):
                await runtime.drift.check("desk", window=window)
        monkeypatch.setattr(drifting, "BASELINES_MAX", 1)
        await played(runtime, [["look"]] * RUNS_MIN, name="other")
        with pytest.raises(UsageError, match="there are 1 baselines already, and 1 is the limit"):
            await runtime.drift.freeze("other", by="ben")


# -- what follows by itself --------------------------------------------------------------------
async def test_an_agent_that_drifts_is_contained_and_stays_so_until_a_person_lifts_it(tmp_path: Path) -> None:
    async with opened(tmp_path, QUIET) as runtime:
        await frozen(runtime)
        watch = DriftWatch(runtime, QUIET)
        assert await watch.look() == []
        await played(runtime, [["look", "export"]])
        [made] = await watch.look()
        assert made.scope == "agent:desk"
        assert (made.level, made.by, made.until_ms) == ("restrict", DRIFT, None)
        assert made.reason == "goal `desk`: never used for this goal before: `tool:export`"
        [[_, refused]] = await played(runtime, [["look", "pay"]])
        assert (
            refused
            == f"`agent:desk` is contained (restrict) by `{DRIFT}`: {made.reason} (contained-restrict)"
        )
        assert await played(runtime, [["pay"]], name="other") == [["x"]]
        [record] = [
            leaf.record
            for leaf in runtime.store.read(lambda tx: tx.audit_records())
            if leaf.record.kind == "containment"
        ]
        assert (record.name, record.by, record.refs["note"]) == ("agent:desk", DRIFT, made.reason)
        await played(runtime, [["export", "pay"]] * 12)
        assert await watch.look() == []
    async with opened(tmp_path, QUIET) as runtime:
        watch = DriftWatch(runtime, QUIET)
        assert runtime.containment.in_force() == [made], "after a restart, too"
        assert await watch.look() == []
        await later(runtime)
        await runtime.containment.lift("agent:desk", by="anna", reason="it was asked to")
        assert await watch.look() == [], "what a person has seen does not count again"
        assert await DriftWatch(runtime, QUIET).look() == [], "nor after another restart"
        await played(runtime, [["export"]])
        assert [item.scope for item in await watch.look()] == ["agent:desk"]


async def test_a_shift_is_contained_once_enough_runs_have_ended(tmp_path: Path) -> None:
    rule = DriftRule(contain="watch", every_s=3_600, window=20)
    async with opened(tmp_path, rule) as runtime:
        await frozen(runtime)
        watch, chance = DriftWatch(runtime, rule), Random(6)
        for _ in range(3):
            await played(runtime, [usual(chance) for _ in range(20)])
            assert await watch.look() == []
        await played(runtime, [turned(chance) for _ in range(19)])
        assert await watch.look() == [], "19 of 20"
        await played(runtime, [turned(chance)])
        [made] = await watch.look()
        assert made.level == "watch"
        assert "the verbs diverge by 0." in made.reason
        assert await played(runtime, [["pay"]]) == [["x"]], "who is watched may go on"
        assert await watch.look() == []


@pytest.mark.parametrize(("was", "after"), [("watch", "restrict"), ("restrict", "restrict"), ("hold", "hold"), ("stop", "stop")])  # fmt: skip
async def test_a_containment_by_a_person_is_never_loosened(tmp_path: Path, was: Any, after: str) -> None:
    async with opened(tmp_path, QUIET) as runtime:
        await frozen(runtime)
        watch = DriftWatch(runtime, QUIET)
        await played(runtime, [["export"]])
        await runtime.containment.set("agent:desk", was, by="anna", reason="odd")
        made = await watch.look()
        [item] = runtime.containment.in_force()
        assert (item.level, item.by) == (after, DRIFT if was == "watch" else "anna")
        assert len(made) == (was == "watch")
        seen = runtime.store.read(lambda tx: tx.fact(SEEN))
        assert seen is not None, "and what was found is dealt with"


async def test_what_an_agent_did_while_it_was_contained_does_not_count(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        watch, chance = DriftWatch(runtime, QUIET), Random(7)
        await runtime.containment.set("*", "restrict", by="anna", reason="odd")
        await played(runtime, [[*usual(chance), "pay"] for _ in range(9)])
        assert await watch.look() == []
        await later(runtime)
        await runtime.containment.lift("*", by="anna")
        await played(runtime, [usual(chance) for _ in range(5)])
        assert await watch.look() == [], "nine runs were refused something, but by nobody's drift"
        await played(runtime, [usual(chance) for _ in range(5)])
        assert await watch.look() == []
        await played(runtime, [turned(chance) for _ in range(20)])
        assert len(await watch.look()) == 1


async def test_a_person_who_is_quicker_is_not_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        await played(runtime, [["export"]])
        ended = drifting.Drift.ended

        async def slow(drift: drifting.Drift, *key: str, **options: Any) -> Any:
            await runtime.containment.set("agent:desk", "hold", by="anna", reason="odd")
            return await ended(drift, *key, **options)

        monkeypatch.setattr(drifting.Drift, "ended", slow)
        assert await DriftWatch(runtime, QUIET).look() == []
        assert [(item.level, item.by) for item in runtime.containment.in_force()] == [("hold", "anna")]


async def test_a_containment_that_is_over_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        await runtime.containment.set("agent:desk", "stop", by="anna", reason="odd", seconds=0.001)
        while runtime.containment.in_force():
            await later(runtime)
        await played(runtime, [["export"]])
        assert [item.level for item in await DriftWatch(runtime, QUIET).look()] == ["restrict"]


async def test_an_action_that_is_seen_late_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        watch, now_ms = DriftWatch(runtime, QUIET), runtime.now_ms
        with monkeypatch.context() as early:
            early.setattr(runtime, "now_ms", lambda: now_ms() + 2_000)
            assert await watch.look() == []
        await played(runtime, [["export"]])  # before the last look, says its clock
        assert len(await watch.look()) == 1


async def test_what_was_cut_off_is_no_sample_and_what_was_before_the_freeze_is_not_new(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        for goal in (None, "other") * 6:
            cut = await runtime.start("desk", {"verbs": ["look", "wait"]}, goal=goal)
            while not runtime.actions.rows(run=cut.id):
                await asyncio.sleep(0.01)
            await cut.cancel("enough")
        assert (await runtime.drift.check("desk")).why.startswith("0 runs have ended")
        await played(runtime, [["pay"]] * RUNS_MIN, goal="other")
        await runtime.drift.freeze("desk", "other", by="anna")
        assert await DriftWatch(runtime, QUIET).look() == [], "`look` was used for it before it was frozen"


async def test_the_runtime_looks_by_itself(tmp_path: Path) -> None:
    rule = DriftRule(contain="restrict", every_s=0.05, window=10)
    async with opened(tmp_path, rule) as runtime:
        await frozen(runtime)
        await played(runtime, [["export"]])
        found: list[Containment] = []
        async with asyncio.timeout(10):
            while not (found := runtime.containment.in_force()):
                await asyncio.sleep(0.02)
        assert [item.by for item in found] == [DRIFT]
    async with Runtime.open(tmp_path, agents=[desk], beside=True, rules=Rules(drift=rule)) as beside:
        await beside.containment.lift("agent:desk", by="anna")
        assert beside.containment.in_force() == []


async def test_a_process_that_ends_soon_has_looked(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        await played(runtime, [["export"]])
    async with opened(tmp_path, QUIET) as runtime:
        async with asyncio.timeout(10):
            while not runtime.containment.in_force():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [StoreUnavailableError("the store is away"), ValueError("a bug")])
async def test_looking_goes_on_when_it_could_not_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    looked = asyncio.Event()

    async def fail(watch: DriftWatch) -> list[Containment]:
        del watch
        if "drift was not looked for" in caplog.text:
            looked.set()
        raise error

    monkeypatch.setattr(DriftWatch, "look", fail)
    async with Runtime.open(
        tmp_path, agents=[desk], rules=Rules(drift=DriftRule(contain="watch", every_s=0.05))
    ):
        await asyncio.wait_for(looked.wait(), 10)
    assert str(error.args[0]) in caplog.text


async def test_a_damaged_baseline_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await frozen(runtime)
        await runtime.store.transact(lambda tx: tx.set_fact(drifting.fact_of(("desk", "desk")), "{}"))
        with pytest.raises(CorruptError, match="the baseline of agent `desk` for the goal `desk` is damaged"):
            await runtime.drift.check("desk")


async def test_more_actions_than_are_looked_at_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drifting, "NEWEST_MAX", 3)
    monkeypatch.setattr("perdure.runtime.drift_watch.NEWEST_MAX", 3)
    async with opened(tmp_path, QUIET) as runtime:
        await frozen(runtime)
        watch = DriftWatch(runtime, QUIET)
        assert await watch.look() == []
        assert "were looked at" not in caplog.text, "the first look goes back to the freeze, as far as it can"
        await played(runtime, [["look"]] * 4)
        assert await watch.look() == []
    assert "over 3 actions since the last look for drift: only the newest were looked at" in caplog.text


def test_the_configuration_says_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text('[governance.drift]\ncontain = "watch"\nevery_s = 5\n')
    rules = world_from(path, {}, LocalSecrets.default(tmp_path)).rules
    assert rules.drift == DriftRule(contain="watch", every_s=5, window=20)


@pytest.mark.parametrize(
    "text",
    ["", 'contain = "stop"', 'contain = "watch"\nevery_s = 0', 'contain = "watch"\nwindow = 9', 'contain = "watch"\nlift = true'],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text(f"[governance.drift]\n{text}\n")
    with pytest.raises(DefinitionError, match=r"governance\.drift"):
        world_from(path, {}, LocalSecrets.default(tmp_path))
