"""Runs held against a baseline: what a run did, how often it is falsely said to drift, and what is found."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from perdure.core.actions import ActionRecord, ActionState, Spend
from perdure.core.errors import DefinitionError
from perdure.governance.behaviour import (
    NEW_MAX,
    RUNS_MIN,
    SAID_MAX,
    WINDOW_MIN,
    Behaviour,
    GoalBaseline,
    behaviour_of,
    check,
    freeze,
    reasons,
    said,
)
from perdure.governance.drift import Feature, Report, Sample, spread_of

Kind = Callable[[Random], dict[str, int]]


def action(
    call: int, name: str, state: ActionState = ActionState.SUCCEEDED, **fields: object
) -> ActionRecord:
    values: dict[str, object] = {
        "run": "r", "call": call, "agent": "desk", "what": "tool", "name": name, "state": state, "recovery": "pure",
        "effect": "read", "intended_ms": 1, "intent_seq": 2,
    }  # fmt: skip
    return msgspec.convert(values | fields, ActionRecord)


def plain(chance: Random) -> dict[str, int]:
    """Each action stands for itself."""
    verbs: dict[str, int] = {}
    for verb in chance.choices(["tool:look", "tool:read", "tool:pay"], [5, 4, 1], k=chance.randint(2, 8)):
        verbs[verb] = verbs.get(verb, 0) + 1
    return verbs


def moody(chance: Random) -> dict[str, int]:
    """Every run does one thing again and again, so that its actions tell little more than one of them."""
    return {chance.choices(["tool:look", "tool:pay"], [7, 3])[0]: chance.randint(1, 20)}


def fixed(chance: Random) -> dict[str, int]:
    """Always the same."""
    del chance
    return {"tool:look": 2, "tool:pay": 1}


def runs(chance: Random, count: int, kind: Kind = plain, tokens: float = 1) -> list[Behaviour]:
    made = []
    for number in range(count):
        verbs = kind(chance)
        total = sum(verbs.values())
        sums = {
            "actions": total,
            "refusals": int(chance.random() < 0.05),
            "tokens": round(chance.lognormvariate(7, 0.5) * total * tokens),
            "usd_micros": 0,
        }
        made.append(Behaviour(run=str(number), verbs=verbs, numbers=sums))
    return made


def baseline(count: int = 100, kind: Kind = plain, seed: int = 1) -> GoalBaseline:
    return freeze("desk", "refund", runs(Random(seed), count, kind), by="anna", at_ms=5)


# -- what one run did --------------------------------------------------------------------------
def test_what_a_run_asked_for_counts_whatever_came_of_it() -> None:
    rows = [
        action(1, "gpt", what="model", spent=Spend(tokens=10, usd_micros=3)),
        action(2, "gpt", ActionState.LOST, what="model", spent=Spend(tokens=1, usd_micros=1)),
        action(3, "other", what="model", spent=Spend(tokens=20)),
        action(4, "pay", ActionState.REFUSED),
        action(5, "pay", ActionState.HELD),
        action(6, "model"),
    ]
    found = behaviour_of("r", rows)
    assert found.verbs == {"model": 2, "tool:pay": 2, "tool:model": 1}, "a lost request was made again"
    assert found.numbers == {"actions": 5, "refusals": 1, "tokens": 31, "usd_micros": 4}
    assert behaviour_of("r", []).verbs == {}


# -- how often it is wrong ---------------------------------------------------------------------
@pytest.mark.parametrize("kind", [plain, moody, fixed], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("size", "window"), [(50, 10), (200, 20), (50, 100)])
def test_false_alarms_are_no_more_than_was_said(kind: Kind, size: int, window: int) -> None:
    wrong, tries = 0, 0
    for seed in range(10):
        known = baseline(size, kind, seed)
        chance = Random(1_000 + seed)
        for _ in range(20):
            wrong += check(known, runs(chance, window, kind), alpha=0.01).found == "drift"
            tries += 1
    assert wrong <= 0.03 * tries  # 2 are expected of 200; 7 or more would come once in 200 times


def test_without_the_correction_for_groups_moody_runs_would_be_drift() -> None:
    known = baseline(100, moody)
    assert known.verbs.spread["verb"] > 5
    blind = msgspec.structs.replace(known, verbs=msgspec.structs.replace(known.verbs, spread={}))
    chance = Random(3)
    windows = [runs(chance, 20, moody) for _ in range(200)]
    assert sum(check(blind, window).found == "drift" for window in windows) >= 16
    assert sum(check(known, window).found == "drift" for window in windows) <= 4


def test_the_spread_is_one_for_actions_that_stand_for_themselves() -> None:
    chance = Random(1)
    alone = [Sample(names={"verb": chance.choice("ab")}) for _ in range(500)]
    assert spread_of("verb", alone) == 1
    each = [msgspec.structs.replace(one, group=str(place)) for place, one in enumerate(alone)]
    assert spread_of("verb", each) == 1
    pairs = [msgspec.structs.replace(one, group=str(place // 2)) for place, one in enumerate(alone)]
    assert spread_of("verb", pairs) == pytest.approx(1, abs=0.2), "groups that are not alike change nothing"
    # ten groups, each of five times the same name: by hand, 10/9 * 2 * 10 * 2.5**2 / 0.5 / 50 = 5.56
    same = [
        Sample(names={"verb": "ab"[place % 2]}, group=str(place)) for place in range(10) for _ in range(5)
    ]
    assert spread_of("verb", same) == pytest.approx(10 / 9 * 5)
    assert spread_of("verb", [Sample(names={"verb": "a"}, group=str(place // 2)) for place in range(9)]) == 1


def test_how_often_a_new_verb_comes_by_chance_is_estimated_from_those_seen_once() -> None:
    chance = Random(2)

    def rare(chance: Random) -> dict[str, int]:
        return {"tool:look": 1, f"tool:rare{chance.randrange(300)}": 2}

    known = baseline(200, rare, 7)
    windows = 500
    new = sum(check(known, runs(chance, 1, rare)).found == "drift" for _ in range(windows))
    assert known.new_verb_percent == pytest.approx(100 * new / windows, abs=10)
    assert baseline(100, fixed).new_verb_percent == 0


# -- what is found -----------------------------------------------------------------------------
def test_a_new_verb_is_found_in_one_run_and_where_nothing_has_ended() -> None:
    known = baseline()
    strange = Behaviour(run="x", verbs={"tool:export": 1}, numbers=runs(Random(1), 1)[0].numbers)
    report = check(known, [strange])
    assert (report.found, report.features[0].new) == ("drift", ("tool:export",))
    report = check(known, [], used={"tool:export": 3, "tool:look": 9})
    assert (report.found, report.features[0].value) == ("drift", 3)
    assert check(known, [strange], used={"tool:export": 1}).features[0].value == 1, (
        "the same one, not a second"
    )
    assert reasons(report) == "never used for this goal before: `tool:export`"


def test_other_shares_and_other_sums_are_found() -> None:
    known, chance = baseline(200), Random(9)
    turned = check(known, runs(chance, 20, lambda chance: {"tool:pay": 3, "tool:look": chance.randint(1, 3)}))
    assert [feature.test for feature in turned.features if feature.is_drift][0] == "divergence"
    longer = check(known, runs(chance, 20, tokens=4))
    found = {feature.feature: feature.is_drift for feature in longer.features if feature.test == "rank"}
    assert found == {"actions": False, "refusals": False, "tokens": True, "usd_micros": False}
    assert reasons(longer).startswith("`tokens` more than before (rank correlation +0.")


def test_too_little_is_unknown_and_says_what_is_missing() -> None:
    known, chance = baseline(), Random(4)
    few = check(known, runs(chance, WINDOW_MIN - 1))
    assert (few.found, few.why) == (
        "unknown", "9 runs have ended since the baseline was frozen, 10 are needed",
    )  # fmt: skip
    assert [feature.test for feature in few.features] == ["novelty"]
    assert check(None, runs(chance, 20)).why == "this agent has no baseline for this goal"
    with pytest.raises(DefinitionError) as caught:
        freeze("desk", "refund", runs(chance, RUNS_MIN - 1), by="anna", at_ms=1)
    assert caught.value.message == (
        "agent `desk` has 49 ended runs for the goal `refund`, a baseline needs at least 50"
    )


def test_an_agent_that_did_nothing_has_a_baseline_too() -> None:
    known = baseline(60, lambda chance: {})  # noqa: ARG005 - it does nothing
    assert (known.verbs.samples, dict(known.known)) == (0, {})
    idle = runs(Random(2), 20, lambda chance: {})  # noqa: ARG005 - as above
    assert check(known, idle).found == "none"
    assert check(known, idle, used={"tool:pay": 1}).found == "drift"
    assert check(known, runs(Random(2), 20, fixed)).found == "drift"
    assert check(baseline(60, fixed), idle).found == "drift", "nor does one that stops acting act as before"


def test_a_baseline_survives_a_store() -> None:
    known = baseline()
    assert msgspec.json.decode(msgspec.json.encode(known), type=GoalBaseline) == known


def test_reasons_stay_short() -> None:
    one = Feature(feature="x", test="rank", value=-0.5, limit=0.3, is_drift=True)
    many = reasons(Report(found="drift", features=(one,) * (SAID_MAX + 2)))
    assert many.endswith("; and 2 more")
    assert said(msgspec.structs.replace(one, is_drift=False)).startswith("`x` as before")
    assert said(Feature(feature="verb", test="novelty", value=0, limit=1, is_drift=False)) == "no new verb"
    report = check(baseline(), [], used={f"tool:{number}": 1 for number in range(NEW_MAX + 5)})
    assert (len(report.features[0].new), report.features[0].value) == (NEW_MAX, NEW_MAX + 5)
