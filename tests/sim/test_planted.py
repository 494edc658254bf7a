"""Bugs that are planted on purpose are found, and their fault plans shrink."""

import pytest

from perdure.testing.planted import BUGS
from perdure.testing.simulate import live, shrink

SEEDS_MAX = 50


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(SEEDS_MAX):
        world, error = live(seed, bug=bug)
        if error is not None:
            plan, _ = shrink(seed, world.chance.fired, bug=bug)
            assert len(plan) <= len(world.chance.fired)
            assert live(seed, bug=bug, only=frozenset(plan))[1] is not None
            return
    pytest.fail(f"`{bug}` was not found in {SEEDS_MAX} seeds")


def test_a_planted_bug_is_gone_afterwards() -> None:
    assert live(0)[1] is None


def test_an_unknown_bug_cannot_be_planted() -> None:
    with pytest.raises(ValueError, match="no bug"):
        live(0, bug="gremlin")
