"""The states of an action: one table, and what is done in doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.actions import ActionState
from perdure.core.errors import BrokenInvariantError
from perdure.core.tools import RECOVERIES
from perdure.kernel.actions import FIRST, TRANSITIONS, diagram, event_for, in_doubt, transition

S = ActionState
EVENTS = tuple(event for event, _, _ in TRANSITIONS)
LEGAL = {
    (S.HELD, S.HELD),
    (S.HELD, S.INTENDED), (S.HELD, S.REFUSED),
    (S.INTENDED, S.SUCCEEDED), (S.INTENDED, S.FAILED), (S.INTENDED, S.LOST), (S.INTENDED, S.UNKNOWN),
    (S.UNKNOWN, S.SUCCEEDED), (S.UNKNOWN, S.FAILED), (S.UNKNOWN, S.INTENDED),
}  # fmt: skip


def test_the_table_is_what_was_designed() -> None:
    assert {(before, after) for _, befores, after in TRANSITIONS for before in befores} == LEGAL
    assert set(FIRST) == {S.INTENDED, S.HELD, S.REFUSED}


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("after", S)
def test_every_pair_of_states(before: ActionState, after: ActionState) -> None:
    if (before, after) in LEGAL:
        assert transition(before, event_for(before, after)) is after
    else:
        with pytest.raises(BrokenInvariantError):
            event_for(before, after)


@given(st.sampled_from(FIRST), st.lists(st.sampled_from(EVENTS), max_size=12))
def test_what_has_ended_stays_ended(state: ActionState, events: list[str]) -> None:
    for event in events:
        try:
            after = transition(state, event)
        except BrokenInvariantError:
            continue
        assert state.is_open
        state = after
    assert state.is_open or not any((state, after) in LEGAL for after in S)


@given(st.sampled_from(FIRST), st.lists(st.sampled_from(EVENTS), max_size=12))
def test_nothing_is_sent_twice_without_a_decision(state: ActionState, events: list[str]) -> None:
    """Between two times that an action is intended there is a doubt and a ``retry``."""
    intended = int(state is S.INTENDED)
    retries = 0
    for event in events:
        try:
            state = transition(state, event)
        except BrokenInvariantError:
            continue
        intended += state is S.INTENDED
        retries += event == "retry"
    assert intended <= 1 + retries


def test_facts_are_what_ended_for_certain() -> None:
    assert {state for state in S if state.is_fact} == {S.SUCCEEDED, S.FAILED}
    assert {state for state in S if state.is_open} == {S.HELD, S.INTENDED, S.UNKNOWN}


@pytest.mark.parametrize(
    ("what", "recovery", "then"),
    [
        ("tool", "pure", "repeat"),
        ("tool", "idempotent", "repeat"),
        ("tool", "queryable", "probe"),
        ("tool", "opaque", "doubt"),
        ("tool", "something-of-a-later-version", "doubt"),
        *(("model", recovery, "lose") for recovery in RECOVERIES),
    ],
)
def test_in_doubt(what: str, recovery: str, then: str) -> None:
    assert in_doubt(what, recovery) == then


def test_the_diagram_shows_every_transition() -> None:
    lines = diagram().splitlines()
    for before, after in LEGAL:
        assert any(line.strip().startswith(f"{before} --> {after}: ") for line in lines)
    for state in FIRST:
        assert f"    [*] --> {state}: propose" in lines
