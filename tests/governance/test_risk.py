"""The agency-risk index: the formula, the tiers at their boundaries, and what is not said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import DefinitionError
from perdure.governance.risk import (
    CRITERIA,
    DIMENSIONS,
    declared,
    facts_of_tools,
    risk_of,
    stricter,
    tier_of,
)

FACTS = [criterion.fact for criterion in CRITERIA]


def test_twelve_criteria_four_in_each_dimension() -> None:
    assert len(set(FACTS)) == 12
    assert [sum(criterion.dimension == name for criterion in CRITERIA) for name in DIMENSIONS] == [4, 4, 4]
    assert all(len(set(criterion.scale)) == 4 for criterion in CRITERIA)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_the_index_is_the_sum_divided_by_36(points: list[int]) -> None:
    found = risk_of(dict(zip(FACTS, points, strict=True)))
    assert found.points == sum(points)
    assert found.index == sum(points) / 36
    assert sum(found.of(name) for name in DIMENSIONS) == sum(points)
    wanted = "low" if found.index < 0.25 else "medium" if found.index < 0.5 else "high"
    assert found.tier == (wanted if found.index < 0.75 else "critical")


@pytest.mark.parametrize(
    ("points", "tier"),
    [(0, "low"), (8, "low"), (9, "medium"), (17, "medium"), (18, "high"), (26, "high"), (27, "critical"), (36, "critical")],
)  # fmt: skip
def test_a_boundary_belongs_to_the_higher_tier(points: int, tier: str) -> None:
    assert tier_of(points) == tier


def test_words_and_points_say_the_same_and_are_explained() -> None:
    words = {criterion.fact: criterion.scale[1] for criterion in CRITERIA}
    found = risk_of(words)
    assert (found.points, found.tier) == (12, "medium")
    assert [mark.points for mark in found.marks] == [1] * 12
    autonomy, *_, whole = found.explanation()
    assert autonomy.startswith(
        "autonomy 4 of 12: multi-step planning 1 (`planning` is `fixed`); goal-management"
    )
    assert whole == "agency risk 12 of 36 (0.33): medium"
    assert "set by hand, as for `fixed`" in risk_of({**words, "planning": 1}).marks[0].why


def test_what_a_charter_does_not_say_counts_as_the_most() -> None:
    assert (risk_of({}).points, risk_of({}).tier) == (36, "critical")
    assert risk_of({"planning": None}).marks[0].why == "`planning` is not said"
    assert risk_of({"planning": "none"}).points == 33


@pytest.mark.parametrize(("fact", "value"), [("plans", 1), ("planning", 4), ("planning", "x"), ("planning", True), ("planning", 1.0)])  # fmt: skip
def test_what_is_not_on_the_scale_is_refused(fact: str, value: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        risk_of({fact: value})
    assert caught.value.facts == {"fact": fact}


@pytest.mark.parametrize(
    ("effects", "options", "wanted"),
    [
        ({}, {}, ("none", "read")),
        ({"a": "read"}, {}, ("few", "read")),
        ({"a": "read", "b": "reversible"}, {}, ("few", "reversible")),
        ({"a": "reversible", "b": "compensable"}, {}, ("few", "irreversible")),
        ({"a": "irreversible"}, {"approved": True}, ("few", "approved")),
        ({"a": "unheard-of"}, {}, ("few", "irreversible")),
        ({str(number): "read" for number in range(6)}, {}, ("many", "read")),
        ({}, {"agents": 1}, ("agents", "read")),
    ],
)
def test_tools_say_two_of_the_facts(effects: dict[str, str], options: Any, wanted: tuple[str, str]) -> None:
    found = facts_of_tools(effects, **options)
    assert (found["tools"], found["effects"]) == wanted
    assert risk_of(found).points == 30 + sum(mark.points for mark in risk_of(found).marks if mark.criterion in
        ("resource-orchestration breadth", "decision authority"))  # fmt: skip


# -- a charter against its tools -----------------------------------------------------------------
def test_what_a_charter_leaves_out_its_tools_say_if_they_are_all_known() -> None:
    assert declared({"planning": "fixed"}, {"look": "read"}) == {
        "planning": "fixed",
        "tools": "few",
        "effects": "read",
    }
    assert declared({"planning": "fixed"}, {"look": "read"}, is_whole=False) == {"planning": "fixed"}


@pytest.mark.parametrize(
    ("agency", "effects", "options"),
    [
        ({"effects": "read"}, {"pay": "irreversible"}, {}),
        ({"effects": 0}, {"pay": "irreversible"}, {"is_whole": False}),
        ({"tools": "none"}, {"look": "read"}, {}),
        ({"tools": "few"}, {"look": "read"}, {"agents": 1}),
    ],
)
def test_a_charter_cannot_say_less_than_its_tools_show(agency: Any, effects: Any, options: Any) -> None:
    with pytest.raises(DefinitionError, match="its tools show"):
        declared(agency, effects, **options)


def test_a_charter_may_say_more_and_may_say_that_a_person_is_asked() -> None:
    assert declared({"tools": "agents", "effects": "irreversible"}, {"look": "read"})["tools"] == "agents"
    assert declared({"effects": "approved"}, {"pay": "irreversible"})["effects"] == "approved"


def test_the_stricter_tier_is_the_higher_one() -> None:
    assert [stricter("low", "high"), stricter("critical", "medium")] == ["high", "critical"]
