"""What every ``Store`` must do, third part: the ledger of actions, and the accounts of runs."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

import msgspec

from perdure.core.actions import Account, ActionFilter, ActionRecord, ActionState, Budget, Served, Spend
from perdure.core.errors import BrokenInvariantError
from perdure.ports import Store, Transaction
from perdure.testing.conformance.checks import check, refused, same
from perdure.testing.conformance.rows import insert

T = Transaction
S = ActionState


def _action(run: str, call: int, state: ActionState = S.INTENDED, **fields: Any) -> ActionRecord:
    known: dict[str, Any] = {
        "agent": "a", "what": "tool", "name": "t", "recovery": "opaque", "effect": "irreversible",
        "intended_ms": call, "intent_seq": call + 1, **fields,
    }  # fmt: skip
    return ActionRecord(run=run, call=call, state=state, **known)


_FULL: dict[str, Any] = {
    "what": "model", "name": "m", "recovery": "pure", "effect": "read", "endpoint": "messages", "exact": "e", "masked": "m",
    "causal": "c", "ordinal": "o", "attempt": 3, "end_seq": 9, "ended_ms": 99, "reserved": Spend(tokens=1, calls=2),
    "spent": Spend(usd_micros=3, unpriced=4), "input_tokens": 5, "output_tokens": 6, "upstream": "u", "code": "k",
}  # fmt: skip


async def _do(store: Store, *works: Callable[[T], object]) -> None:
    """All in one transaction."""

    def together(tx: T) -> None:
        for work in works:
            work(tx)

    await store.transact(together)


async def actions_come_back_as_they_were(store: Store) -> None:
    """Every field of a row, by key; the agent's name is that of its run."""
    full = _action("r", 7, S.SUCCEEDED, **_FULL)
    await _do(
        store,
        lambda tx: insert(tx, "r"),
        lambda tx: tx.put_action(full),
        lambda tx: tx.put_action(_action("r", 2)),
    )
    same(store.read(lambda tx: tx.action("r", 7)), full, "every field")
    same(store.read(lambda tx: tx.action("r", 2)), _action("r", 2), "and what was left out")
    others = store.read(lambda tx: [tx.action("r", 3), tx.action("s", 7)])
    same(others, [None, None], "nothing else is there")
    same(store.read(lambda tx: tx.run_actions("r")), [_action("r", 2), full], "in call order")


async def actions_change_from_the_state_that_was_seen(store: Store) -> None:
    """Whoever saw another state than the stored one is refused, and nothing changes."""
    await _do(store, lambda tx: insert(tx, "r"), lambda tx: tx.put_action(_action("r", 1)))
    ended = _action("r", 1, S.SUCCEEDED, end_seq=5, ended_ms=50, spent=Spend(calls=1), upstream="u", code="c")
    await store.transact(lambda tx: tx.change_action(S.INTENDED, ended))
    same(store.read(lambda tx: tx.action("r", 1)), ended, "what an end says is kept")
    for wrong in (msgspec.structs.replace(ended, state=S.FAILED), _action("r", 2, S.FAILED)):
        with refused(BrokenInvariantError, "a row in another state, or none, is not changed"):
            await store.transact(lambda tx, row=wrong: tx.change_action(S.INTENDED, row))  # type: ignore[misc]
    same(store.read(lambda tx: tx.action("r", 1)), ended, "nothing changed")


async def actions_are_listed_newest_first(store: Store) -> None:
    """By run, by state, by name, at most ``limit``."""

    def fill(tx: T) -> None:
        insert(tx, "r")
        insert(tx, "s")
        for call, state in enumerate((S.HELD, S.INTENDED, S.UNKNOWN, S.SUCCEEDED), start=1):
            tx.put_action(_action("r", call, state, name="even" if call % 2 == 0 else "odd"))
        tx.put_action(_action("s", 1, S.UNKNOWN, intended_ms=50))

    await store.transact(fill)

    def listed(**want: Any) -> list[str]:
        return [row.key for row in store.read(lambda tx: tx.actions(ActionFilter(**want)))]

    same(listed(), ["s/1", "r/4", "r/3", "r/2", "r/1"], "all, newest first")
    same(listed(run="r", limit=2), ["r/4", "r/3"], "of one run, at most two")
    same(listed(state=(S.HELD, S.UNKNOWN)), ["s/1", "r/3", "r/1"], "in these states")
    same(listed(state=()), [], "in none of no states")
    same(listed(name="even"), ["r/4", "r/2"], "of one tool")


async def served_answers_are_kept_in_order(store: Store) -> None:
    """Which row answered which attempt."""
    found = [Served(run="r", attempt=attempt, call=call, level="exact", at_ms=at) for attempt, call, at in
             ((1, 2, 10), (1, 1, 20), (2, 1, 5))]  # fmt: skip
    await _do(
        store,
        lambda tx: insert(tx, "r"),
        *(methodcaller("note_served", item) for item in reversed(found)),
    )
    await store.transact(lambda tx: tx.note_served(found[0]))
    same(store.read(lambda tx: tx.served("r")), found, "by attempt and time, each once")
    same(store.read(lambda tx: tx.served("s")), [], "of that run only")


async def bookings_go_up_the_tree(store: Store) -> None:
    """What a run reserves and spends counts for each run above it, and for no other."""

    def fill(tx: T) -> None:
        insert(tx, "top", created_ms=3)
        insert(tx, "left", parent="top")
        insert(tx, "right", parent="top")
        insert(tx, "leaf", parent="left")

    await store.transact(fill)
    same(store.read(lambda tx: tx.accounts("top")), [Account(run="top", since_ms=3)], "empty, but there")
    one, more = Spend(tokens=10, usd_micros=7, calls=1, unpriced=1), Spend(tokens=4, calls=1)
    await _do(
        store,
        lambda tx: tx.book("leaf", one, Spend()),
        lambda tx: tx.book("right", Spend(), more),
    )
    await store.transact(lambda tx: tx.book("leaf", Spend().minus(one), more))
    same(
        store.read(lambda tx: tx.accounts("leaf")),
        [
            Account(run="leaf", spent=more, since_ms=1),
            Account(run="left", spent=more, since_ms=1),
            Account(run="top", spent=more.plus(more), since_ms=3),
        ],
        "the nearest first, and the top has all",
    )
    same(store.read(lambda tx: tx.accounts("right")[0].spent), more, "brothers do not pay for each other")
    await store.transact(lambda tx: tx.book("leaf", Spend(), Spend()))
    same(store.read(lambda tx: tx.accounts("leaf")[0].spent), more, "nothing booked, nothing changed")


async def budgets_are_set_replaced_and_taken_away(store: Store) -> None:
    """Before or after the first booking, whatever was spent."""
    budget = Budget(
        tokens=5, usd_micros=6, calls=7, wall_ms=8, warn_percent=9, exhausted="hold", unpriced="allow"
    )
    await _do(
        store,
        lambda tx: insert(tx, "r"),
        lambda tx: insert(tx, "s", parent="r"),
        lambda tx: tx.set_budget("r", budget),
    )
    same(
        [item.budget for item in store.read(lambda tx: tx.accounts("s"))], [None, budget], "of that run only"
    )
    await store.transact(lambda tx: tx.book("s", Spend(calls=1), Spend()))
    await store.transact(lambda tx: tx.set_budget("r", Budget(calls=1)))
    account = store.read(lambda tx: tx.accounts("r"))[0]
    same(account, Account(run="r", budget=Budget(calls=1), reserved=Spend(calls=1), since_ms=1), "replaced")
    await store.transact(lambda tx: tx.set_budget("r", None))
    check(store.read(lambda tx: tx.accounts("r"))[0].budget is None, "taken away")


CASES: tuple[Callable[[Store], Any], ...] = (
    actions_come_back_as_they_were,
    actions_change_from_the_state_that_was_seen,
    actions_are_listed_newest_first,
    served_answers_are_kept_in_order,
    bookings_go_up_the_tree,
    budgets_are_set_replaced_and_taken_away,
)
