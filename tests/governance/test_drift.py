"""Drift: the tests against known values, new names, too few samples, and an executed evaluation."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from bench import drift as bench
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import DefinitionError
from perdure.governance.drift import (
    NAMES_MAX,
    VALUES_MAX,
    Baseline,
    Limits,
    Report,
    Sample,
    compare,
    counted,
    divergence,
    divergence_limit,
    frozen,
    mann_whitney,
)

NUMBERS = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=30)


def samples(count: int, *, tool: str = "look", number: float = 1) -> list[Sample]:
    return [Sample(names={"tool": tool}, numbers={"bytes": number + place % 7}) for place in range(count)]


def baseline(count: int = 100) -> Baseline:
    return frozen("desk", "refund", [*samples(count - count // 4), *samples(count // 4, tool="pay")])


# -- Mann-Whitney ------------------------------------------------------------------------------
def test_the_rank_test_gives_the_published_values() -> None:
    # the example in SciPy's documentation of mannwhitneyu (ages at diagnosis of diabetes): U = 17, asymptotic p = 0.1113
    found = mann_whitney([19, 22, 16, 29, 24], [20, 11, 17, 12])
    assert found.u == 17
    assert found.p == pytest.approx(0.11134688653314041, abs=1e-12)
    assert found.effect == pytest.approx(0.7)


def test_ties_are_corrected_for() -> None:
    # by hand: ranks 1, 3, 3, 5.5, and 3, 5.5, 7.5, 7.5; U = 12.5 - 10; ties 3, 2, 2: 24 + 6 + 6 = 36
    found = mann_whitney([1, 2, 2, 3], [2, 3, 4, 4])
    assert found.u == 2.5
    z = (8 - 2.5 - 0.5) / (16 / 12 * (9 - 36 / 56)) ** 0.5
    assert z == pytest.approx(1.4979, abs=1e-4)
    assert found.p == pytest.approx(0.13416, abs=1e-4)


def test_equal_numbers_are_no_difference() -> None:
    for first, second in (([5, 5, 5], [5, 5]), ([1], [1])):
        found = mann_whitney(first, second)
        assert (found.u, found.p, found.effect) == (len(first) * len(second) / 2, 1.0, 0.0)


@given(NUMBERS, NUMBERS)
def test_the_rank_test_counts_pairs_and_takes_no_side(first: list[float], second: list[float]) -> None:
    found, other = mann_whitney(first, second), mann_whitney(second, first)
    assert found.u == sum((a > b) + (a == b) / 2 for a in first for b in second)
    assert found.u + other.u == len(first) * len(second)
    assert found.p == pytest.approx(other.p)
    assert found.effect == pytest.approx(-other.effect)
    assert 0 <= found.p <= 1


def test_the_rank_test_is_as_often_wrong_as_it_says() -> None:
    chance = Random(5)
    wrong = sum(
        mann_whitney([chance.random() for _ in range(20)], [chance.random() for _ in range(60)]).p <= 0.05
        for _ in range(1_000)
    )
    assert 30 <= wrong <= 70


# -- Jensen-Shannon ----------------------------------------------------------------------------
def test_the_divergence_gives_known_values() -> None:
    assert divergence({"a": 3, "b": 1}, {"a": 30, "b": 10}) == 0
    assert divergence({"a": 3}, {"b": 1}) == 1
    # shares 1/2, 1/2 and 1: 1/2 * (1/2 log2(2/3) + 1/2 log2(2)) + 1/2 * log2(4/3) = 0.311278 bits
    assert divergence({"a": 1, "b": 1}, {"a": 5}) == pytest.approx(0.3112781, abs=1e-7)


COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1)


@given(COUNTS, COUNTS)
def test_the_divergence_takes_no_side_and_stays_within_one_bit(first: Any, second: Any) -> None:
    assert divergence(first, second) == pytest.approx(divergence(second, first), abs=1e-12)
    assert 0 <= divergence(first, second) <= 1
    assert divergence(first, first) == pytest.approx(0, abs=1e-12)


def test_the_limit_of_the_divergence_is_exceeded_by_chance_as_seldom_as_it_says() -> None:
    chance = Random(7)
    for size in (20, 50, 200):
        limit = divergence_limit(size, 500, 4, 0.05)
        wrong = sum(
            divergence(counted(chance.choices("abcd", k=size)), counted(chance.choices("abcd", k=500)))
            >= limit
            for _ in range(500)
        )
        assert 8 <= wrong <= 45  # 25 are expected


def test_small_windows_may_diverge_further() -> None:
    limits = [divergence_limit(size, 500, 5, 0.01) for size in (10, 20, 50, 500)]
    assert limits == sorted(limits, reverse=True)


@pytest.mark.parametrize("sides", [((), (1,)), ((1,), ())])
def test_nothing_cannot_be_compared(sides: Any) -> None:
    with pytest.raises(DefinitionError):
        mann_whitney(*sides)
    with pytest.raises(DefinitionError):
        divergence(*({"a": 1} if side else {} for side in sides))


# -- comparing ---------------------------------------------------------------------------------
def answers(report: Report) -> dict[tuple[str, str], bool]:
    return {(feature.feature, feature.test): feature.is_drift for feature in report.features}


def test_what_is_as_before_is_no_drift() -> None:
    report = compare(baseline(), [*samples(15), *samples(5, tool="pay")])
    assert report.found == "none"
    assert answers(report) == {
        ("tool", "novelty"): False,
        ("tool", "divergence"): False,
        ("bytes", "rank"): False,
    }


def test_a_verb_never_seen_for_this_goal_is_drift_at_once() -> None:
    report = compare(baseline(), samples(1, tool="export"))
    assert (report.found, report.features[0].new) == ("drift", ("export",))
    assert compare(baseline(), samples(1, tool="pay")).found == "unknown"
    two = Limits(novel_min=2)
    assert compare(baseline(), samples(1, tool="export"), limits=two).found == "unknown"
    assert compare(baseline(), samples(2, tool="export"), limits=two).found == "drift"


def test_another_mix_and_other_sizes_are_drift() -> None:
    assert answers(compare(baseline(), samples(20, tool="pay")))["tool", "divergence"]
    larger = compare(baseline(), [*samples(15, number=5), *samples(5, tool="pay", number=5)])
    assert answers(larger)["bytes", "rank"]
    assert (larger.found, larger.features[-1].value > 0) == ("drift", True)


def test_a_sure_but_small_difference_is_none() -> None:
    window = [*samples(3_000, number=1.2), *samples(1_000, tool="pay", number=1.2)]
    report = compare(baseline(1_000), window)
    assert report.found == "none"
    strict = Limits(effect_min=0.0)
    assert compare(baseline(1_000), window, limits=strict).found == "drift"


def test_a_sure_but_small_divergence_is_none() -> None:
    window = [*samples(3_600), *samples(900, tool="pay")]  # a fifth instead of a quarter
    found = {limits: answers(compare(baseline(2_000), window, limits=limits))["tool", "divergence"] for limits in
        (Limits(), Limits(divergence_min=0.0))}  # fmt: skip
    assert found == {Limits(): False, Limits(divergence_min=0.0): True}


def test_the_limit_of_the_divergence_is_a_quantile_of_chi_square() -> None:
    # 11.345 is the 99th percentile with 3 degrees of freedom; 8 ln 2 = 5.5452
    assert divergence_limit(20, 500, 4, 0.01) == pytest.approx(11.345 * 520 / 10_000 / 5.5452, rel=0.01)


def test_what_cannot_be_said_is_unknown_and_says_why() -> None:
    other = [Sample(names={"tool": "look"}) for _ in range(20)]
    for base, window, why in (
        (None, samples(20), "no baseline"),
        (baseline(), samples(9), "the window has 9 samples, needs 10"),
        (baseline(), [], "the window has 0 samples"),
        (
            msgspec.structs.replace(baseline(), samples=9),
            samples(20),
            "the baseline has 9 samples, needs 100",
        ),
        (baseline(), other, "other features"),
    ):
        report = compare(base, window)
        assert report.found == "unknown"
        assert why in report.why


def test_a_baseline_needs_enough_samples_of_one_kind() -> None:
    with pytest.raises(DefinitionError, match="99 samples"):
        frozen("desk", "refund", samples(99))
    with pytest.raises(DefinitionError, match="different features"):
        frozen("desk", "refund", [*samples(100), Sample()])
    with pytest.raises(DefinitionError, match="different names"):
        frozen("desk", "refund", [Sample(names={"tool": str(place)}) for place in range(NAMES_MAX + 1)])


def test_a_baseline_survives_a_store_and_stays_small() -> None:
    made = frozen("desk", "refund", [Sample(numbers={"bytes": place}) for place in range(5_000)])
    kept = made.numbers["bytes"]
    assert (len(kept), kept[0], kept[-1]) == (VALUES_MAX, 0, 4_999)
    assert max(after - before for before, after in zip(kept, kept[1:], strict=False)) <= 6
    for one in (made, baseline()):
        assert msgspec.json.decode(msgspec.json.encode(one), type=Baseline) == one


# -- the evaluation ----------------------------------------------------------------------------
def test_the_evaluation_finds_what_the_guide_says() -> None:
    found = bench.measure(windows=20, seed=2)["percent"]
    assert found == bench.measure(windows=20, seed=2)["percent"]
    for size in ("10", "20", "50"):
        assert found[size]["false_alarms"]["all"] <= 5
        assert found[size]["new-verb"]["all"] == 100
    assert found["20"]["other-goal"]["all"] >= 95 > found["20"]["other-goal"]["divergence_alone"]
    assert all(found["50"][kind]["all"] >= 85 for kind in bench.KINDS)
