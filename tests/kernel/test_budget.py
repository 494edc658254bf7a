"""Budgets: nothing is granted that could go over a limit anywhere in the chain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.actions import Account, Budget, Spend
from perdure.kernel.budget import Room, judge

AMOUNT = st.integers(0, 50)
SPENDS = st.builds(
    Spend, tokens=AMOUNT, usd_micros=AMOUNT, calls=st.integers(0, 3), unpriced=st.integers(0, 1)
)
LIMIT = st.none() | st.integers(0, 120)
BUDGETS = st.builds(
    Budget, tokens=LIMIT, usd_micros=LIMIT, calls=LIMIT, unpriced=st.sampled_from(("refuse", "allow"))
)
PARTS = ("tokens", "usd_micros", "calls")


def account(run: str = "r", budget: Budget | None = None, **spends: Spend) -> Account:
    return Account(run=run, budget=budget, **spends)


@given(SPENDS, SPENDS)
def test_what_was_added_can_be_taken_away(one: Spend, other: Spend) -> None:
    assert one.plus(other).minus(other) == one
    assert one.plus(other) == other.plus(one)
    assert Spend().minus(one).plus(one) == Spend()


@given(BUDGETS, SPENDS, SPENDS, SPENDS)
def test_what_is_granted_fits(budget: Budget, spent: Spend, reserved: Spend, estimate: Spend) -> None:
    room = judge([account(budget=budget, spent=spent, reserved=reserved)], estimate, 0)
    after = spent.plus(reserved).plus(estimate)
    fits = all(
        getattr(budget, part) is None or getattr(after, part) <= getattr(budget, part) for part in PARTS
    )
    known = budget.usd_micros is None or not estimate.unpriced or budget.unpriced == "allow"
    assert (room.refusal is None) == (fits and known)
    if room.refusal is not None:
        assert room.refusal.code == ("budget-exhausted" if known else "model-unpriced")
        assert not room.warnings


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[int, Spend, Spend]]:
    """Actions of three children: whose, what it may use, what it did use (never more)."""
    found = []
    for _ in range(draw(st.integers(1, 25))):
        may = draw(SPENDS)
        did = Spend(
            tokens=draw(st.integers(0, may.tokens)),
            usd_micros=draw(st.integers(0, may.usd_micros)),
            calls=draw(st.integers(0, may.calls)),
        )
        found.append((draw(st.integers(0, 2)), may, did))
    return found


@given(BUDGETS, st.lists(BUDGETS, min_size=3, max_size=3), turns(), st.data())
def test_concurrent_children_never_overspend(
    budget: Budget, own: list[Budget], actions: list[tuple[int, Spend, Spend]], data: st.DataObject
) -> None:
    """Reserve and settle in any order: no account ever goes over its budget, and all is given back in the end."""
    accounts = {"parent": account("parent", budget), **{str(n): account(str(n), own[n]) for n in range(3)}}
    under_way: list[tuple[int, Spend, Spend]] = []

    def book(child: int, reserved: Spend, spent: Spend) -> None:
        for run in (str(child), "parent"):
            old = accounts[run]
            accounts[run] = account(
                run, old.budget, reserved=old.reserved.plus(reserved), spent=old.spent.plus(spent)
            )
            for part in PARTS:
                limit = getattr(old.budget, part)
                used = getattr(accounts[run].reserved.plus(accounts[run].spent), part)
                assert limit is None or used <= limit

    for child, may, did in actions:
        if judge([accounts[str(child)], accounts["parent"]], may, 0).refusal is None:
            book(child, may, Spend())
            under_way.append((child, may, did))
        if under_way and data.draw(st.booleans()):
            child, may, did = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            book(child, Spend().minus(may), did)
    for child, may, did in under_way:
        book(child, Spend().minus(may), did)
    assert all(item.reserved == Spend() for item in accounts.values())
    children = [accounts[str(n)].spent for n in range(3)]
    assert accounts["parent"].spent == children[0].plus(children[1]).plus(children[2])


@pytest.mark.parametrize(
    ("used", "warns"), [(0, False), (6, False), (7, True), (9, True)], ids=lambda value: str(value)
)
def test_the_soft_limit_warns(used: int, warns: bool) -> None:
    room = judge([account(budget=Budget(calls=10), spent=Spend(calls=used))], Spend(calls=1), 0)
    assert room.refusal is None
    assert room.warnings == ((f"run `r`: {used + 1} calls of 10 calls",) if warns else ())


def test_without_a_soft_limit_nobody_is_warned() -> None:
    assert judge([account(budget=Budget(calls=1, warn_percent=0))], Spend(calls=1), 0) == Room()


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        (Budget(usd_micros=10), "model-unpriced"),
        (Budget(usd_micros=10, unpriced="allow"), None),
        (Budget(tokens=10), None),  # no budget of money: a missing price does not matter
        (None, None),
    ],
)
def test_unpriced_models(budget: Budget | None, code: str | None) -> None:
    room = judge([account(budget=budget)], Spend(calls=1, unpriced=1), 0)
    assert (room.refusal.code if room.refusal else None) == code
    assert not room.holds  # a decision cannot make the price known


@pytest.mark.parametrize(
    ("budget", "now_ms", "refused", "holds"),
    [
        (Budget(wall_ms=100, exhausted="hold"), 1_100, False, False),
        (
            Budget(wall_ms=100, exhausted="hold"),
            1_101,
            True,
            False,
        ),  # time that has passed does not come back
        (Budget(wall_ms=100), 900, False, False),  # a clock that was set back
        (Budget(calls=0, exhausted="hold"), 1_000, True, True),
        (Budget(calls=0), 1_000, True, False),
    ],
)
def test_time_and_holding(budget: Budget, now_ms: int, refused: bool, holds: bool) -> None:
    room = judge([Account(run="r", budget=budget, since_ms=1_000)], Spend(calls=1), now_ms)
    assert (room.refusal is not None, room.holds) == (refused, holds)


def test_the_refusal_says_whose_budget_and_what_to_do() -> None:
    chain = [
        account("child"),
        account("parent", Budget(usd_micros=1_500_000), spent=Spend(usd_micros=1_400_000)),
    ]
    room = judge(chain, Spend(usd_micros=200_000, calls=1), 0)
    assert room.refusal is not None
    assert "run `parent` may use 1.500000 USD, of which 1.400000 USD are spent" in room.refusal.message
    assert "perdure budgets set parent" in room.refusal.message
