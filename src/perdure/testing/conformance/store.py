"""What every ``Store`` must do. Cases are coroutine functions that take a fresh, empty store.

``DAMAGE_CASES`` take a second argument: ``damage(run, seq)`` changes a byte of a stored entry behind the store's back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from perdure.core.errors import CorruptError, FenceError, JournalCorruptError, UnavailableError
from perdure.core.records import RunFilter, Status
from perdure.core.values import Payload
from perdure.ports import Store, Transaction
from perdure.testing.conformance import store_approvals, store_audit, store_ledger, store_queue
from perdure.testing.conformance.checks import check, refused, same
from perdure.testing.conformance.rows import SENT, first, insert, row, running, slept

Damage = Callable[[str, int], Any]
T = Transaction


# -- transactions --------------------------------------------------------------------------------
async def works_are_applied_in_the_order_of_the_calls(store: Store) -> None:
    """Also if they are awaited later, or in another order."""
    seen: list[int] = []
    waits = [store.transact(lambda _, n=number: seen.append(n)) for number in range(50)]  # type: ignore[misc]
    for wait in reversed(waits):
        await wait
    same(seen, list(range(50)), "works are applied in the order of the calls")


async def a_work_that_raises_undoes_only_itself(store: Store) -> None:
    """Its neighbours, which may share its commit, are kept; its own error comes back."""

    def bad(tx: T) -> None:
        insert(tx, "bad")
        raise LookupError("the work's own")

    before = store.transact(lambda tx: insert(tx, "one"))
    broken = store.transact(bad)
    after = store.transact(lambda tx: insert(tx, "two"))
    await after
    await before
    with refused(LookupError, "what a work raises is raised where it is awaited"):
        await broken
    found = store.read(lambda tx: [tx.run(run) is not None for run in ("one", "bad", "two")])
    same(found, [True, False, True], "a work that raises undoes only itself")


async def what_is_acknowledged_is_read(store: Store) -> None:
    """``read`` sees every work whose ``transact`` was awaited, and gives what the work returns."""
    for number in range(20):
        await store.transact(lambda tx, n=number: insert(tx, f"r{n}"))  # type: ignore[misc]
        check(store.read(lambda tx, n=number: tx.run(f"r{n}")), "an acknowledged work is read")  # type: ignore[misc]
    same(await store.transact(lambda _: 42), 42, "`transact` gives what the work returns")


async def a_closed_store_refuses(store: Store) -> None:
    """Works that were accepted are finished; later ones are refused; closing twice is fine."""
    accepted = asyncio.ensure_future(store.transact(lambda tx: insert(tx, "one")))
    await store.close()
    same((await accepted).id, "one", "closing finishes what was accepted")
    with refused(UnavailableError, "a closed store refuses works"):
        await store.transact(lambda tx: insert(tx, "two"))
    await store.close()


# -- runs and journals ---------------------------------------------------------------------------
async def runs_are_inserted_once_per_id(store: Store) -> None:
    """A second insert gives the row that is there and writes nothing."""
    await store.transact(lambda tx: insert(tx, "one", priority=3))
    again = await store.transact(lambda tx: insert(tx, "one", priority=9))
    same((again.id, again.priority), ("one", 3), "the row that is there comes back")
    same(len(store.read(lambda tx: tx.journal("one"))), 1, "nothing is appended by it")


async def runs_are_inserted_once_per_key(store: Store) -> None:
    """Of one agent; the same key of another agent is another run."""
    await store.transact(lambda tx: insert(tx, "one", idempotency_key="k"))
    again = await store.transact(lambda tx: insert(tx, "two", idempotency_key="k"))
    same(again.id, "one", "the run with the key comes back")
    check(store.read(lambda tx: tx.run("two")) is None, "no second run is added")
    other = await store.transact(lambda tx: insert(tx, "three", agent="b", idempotency_key="k"))
    same(other.id, "three", "keys belong to an agent")


async def rows_come_back_whole(store: Store) -> None:
    """Every field that was inserted, and ``seq`` from the journal."""
    made = row("one", session="s", idempotency_key="k", parent="p", priority=-2, deadline_ms=99)
    await store.transact(lambda tx: tx.insert_run(made, (first(session="s"),), {}))
    same(store.read(lambda tx: tx.run("one")), made, "the row comes back as it was")
    same(store.read(lambda tx: tx.journal("one")), [first(session="s")], "so does the entry")
    check(store.read(lambda tx: tx.run("none")) is None, "an unknown run is `None`")


async def journals_grow_without_gap_or_fork(store: Store) -> None:
    """The next ``seq`` only; a refused append leaves no trace."""
    await store.transact(lambda tx: running(tx, "one"))
    await store.transact(lambda tx: tx.append("one", 1, (slept(2), slept(3)), {}))
    with refused(UnavailableError, "an append over a gap is refused"):
        await store.transact(lambda tx: tx.append("one", 1, (slept(5),), {}))
    with refused(UnavailableError, "a second entry at a position is refused"):
        await store.transact(lambda tx: tx.append("one", 1, (slept(3),), {}))
    with refused(UnavailableError, "an append that begins well and then leaves a gap is refused whole"):
        await store.transact(lambda tx: tx.append("one", 1, (slept(4), slept(6)), {}))
    same([x.seq for x in store.read(lambda tx: tx.journal("one"))], [1, 2, 3], "the journal is as before")
    same(
        [x.seq for x in store.read(lambda tx: tx.journal("one", 1, 1))], [2], "`after` and `limit` cut a page"
    )
    found = store.read(lambda tx: tx.run("one"))
    same(found and found.seq, 3, "the row tells the last position")


async def stale_fences_are_refused(store: Store) -> None:
    """Once another worker has the run, its former holder can neither append nor move it."""
    await store.transact(lambda tx: running(tx, "one", worker="old"))
    await store.transact(lambda tx: tx.release_expired(1_000))
    taken = await store.transact(lambda tx: tx.claim("new", 1_000, room={"a": 1}, limit=1, suspects=True))
    same([(run.id, run.fence) for run in taken], [("one", 2)], "a claim gives a new fence")
    with refused(FenceError, "an append with a stale fence is refused"):
        await store.transact(lambda tx: tx.append("one", 1, (slept(2),), {}))
    with refused(FenceError, "a move with a stale fence is refused"):
        await store.transact(lambda tx: tx.move("one", 1, Status.COMPLETED, now_ms=2))
    await store.transact(lambda tx: tx.append("one", 2, (slept(2),), {}))
    await store.transact(lambda tx: tx.move("one", 2, Status.COMPLETED, now_ms=2))
    with refused(FenceError, "nothing is appended to a run that nobody holds"):
        await store.transact(lambda tx: tx.append("one", 2, (slept(3),), {}))


async def moves_give_the_lease_back(store: Store) -> None:
    """The row tells status, code, wake and end; the worker is gone from it."""
    await store.transact(lambda tx: (running(tx, "one"), running(tx, "two")))
    await store.transact(lambda tx: tx.move("one", 1, Status.WAITING, now_ms=9, wake_ms=50))
    await store.transact(lambda tx: tx.move("two", 1, Status.FAILED, now_ms=9, code="agent-failed"))
    one, two = store.read(lambda tx: (tx.run("one"), tx.run("two")))
    same(one and (one.status, one.wake_ms, one.worker), (Status.WAITING, 50, None), "a parked row")
    same(two and (two.status, two.code, two.ended_ms), (Status.FAILED, "agent-failed", 9), "an ended row")


async def status_is_set_only_from_the_one_named(store: Store) -> None:
    """``set_status`` compares before it sets."""
    await store.transact(lambda tx: insert(tx, "one", Status.WAITING))
    changes = [(Status.PENDING, False), (Status.WAITING, True), (Status.WAITING, False)]
    for before, expected in changes:
        found = await store.transact(lambda tx, b=before: tx.set_status("one", b, Status.QUEUED, now_ms=2))  # type: ignore[misc]
        same(found, expected, f"set from {before}")


async def the_first_request_to_cancel_counts(store: Store) -> None:
    """A second reason does not replace it."""
    await store.transact(lambda tx: insert(tx, "one"))
    await store.transact(lambda tx: tx.request_cancel("one", "first", "run-cancelled"))
    await store.transact(lambda tx: tx.request_cancel("one", "second", "deadline-exceeded"))
    found = store.read(lambda tx: tx.run("one"))
    same(found and (found.cancel_reason, found.cancel_code), ("first", "run-cancelled"), "the first counts")


async def runs_are_listed_newest_first(store: Store) -> None:
    """By each filter, page by page; children and unfinished runs of a session oldest first."""
    rows = [
        row("r1", session="s"), row("r2", Status.WAITING, parent="r1"), row("r3", agent="b", session="s"),
        row("r4", Status.COMPLETED, session="s"), row("r5", session="s", parent="r1"),
    ]  # fmt: skip
    await store.transact(lambda tx: [tx.insert_run(item, (first(),), {}) for item in rows] and None)

    def ids(**want: Any) -> list[str]:
        return [run.id for run in store.read(lambda tx: tx.runs(RunFilter(**want)))]

    same(ids(), ["r5", "r4", "r3", "r2", "r1"], "newest first")
    same(ids(limit=2), ["r5", "r4"], "a page")
    same(ids(before="r4", limit=2), ["r3", "r2"], "the page after it")
    same(ids(agent="b"), ["r3"], "of an agent")
    same(ids(status=(Status.WAITING, Status.COMPLETED)), ["r4", "r2"], "of some states")
    same(ids(session="s", agent="a"), ["r5", "r4", "r1"], "of a session")
    same(ids(parent="r1"), ["r5", "r2"], "of a parent")
    found = store.read(
        lambda tx: ([r.id for r in tx.children("r1")], [r.id for r in tx.session_runs("a", "s")])
    )
    same(found, (["r2", "r5"], ["r1", "r5"]), "children, and the unfinished runs of a session")


async def ended_runs_are_listed_by_their_end(store: Store) -> None:
    """Of one agent, within a time, the last to end first, page by page."""
    ends = {"r1": 30, "r2": 10, "r3": 20, "r4": 20, "r5": 40}
    for name, end_ms in ends.items():
        await store.transact(lambda tx, r=name: running(tx, r, agent="b" if r == "r5" else "a"))  # type: ignore[misc]
        await store.transact(lambda tx, r=name, t=end_ms: tx.move(r, 1, Status.COMPLETED, now_ms=t))  # type: ignore[misc]
    await store.transact(lambda tx: running(tx, "r6"))

    def ids(*want: int, agent: str = "a") -> list[str]:
        return [run.id for run in store.read(lambda tx: tx.ended_runs(agent, *want))]

    same(ids(0, 99, 9), ["r1", "r4", "r3", "r2"], "the last to end first, and what goes on not at all")
    same(ids(0, 99, 2, 1), ["r4", "r3"], "a page")
    same(ids(10, 20, 9), ["r4", "r3"], "after a time, until another")
    same(ids(0, 99, 9, agent="b"), ["r5"], "of another agent")


async def blobs_come_back_whole(store: Store) -> None:
    """Kept once under their digest, with runs, entries, messages and state; an unknown one is an error."""
    body = bytes(range(256)) * 1_000
    name = hashlib.sha256(body).hexdigest()
    await store.transact(lambda tx: tx.insert_run(row("one"), (first(),), {name: body}))
    await store.transact(
        lambda tx: tx.deliver("one", "t", Payload(blob=name, size=len(body)), {name: body}, **SENT)
    )
    same(store.read(lambda tx: tx.blob(name)), body, "a blob comes back as it was")
    with refused(CorruptError, "a missing blob is damage"):
        store.read(lambda tx: tx.blob("0" * 64))


# -- damage --------------------------------------------------------------------------------------
async def a_damaged_entry_is_noticed(store: Store, damage: Damage) -> None:
    """Reading that journal raises; other journals and rows are read as before, and what is written later too."""
    await store.transact(lambda tx: (running(tx, "one"), running(tx, "two")))
    for run in ("one", "two"):
        await store.transact(lambda tx, r=run: tx.append(r, 1, (slept(2), slept(3)), {}))  # type: ignore[misc]
    damage("one", 2)
    errors: list[
        JournalCorruptError
    ] = []  # kept, with their frames: they must not hold an old view of the store
    for _ in range(2):
        try:
            store.read(lambda tx: tx.journal("one"))
        except JournalCorruptError as error:
            errors.append(error)
    same(len(errors), 2, "a damaged entry is noticed")
    same(len(store.read(lambda tx: tx.journal("two"))), 3, "other journals are intact")
    await store.transact(lambda tx: tx.append("two", 1, (slept(4),), {}))
    same(len(store.read(lambda tx: tx.journal("two"))), 4, "later writes are seen")
    check(store.read(lambda tx: tx.run("one")), "the row is still there")


DAMAGE_CASES = (a_damaged_entry_is_noticed,)
CASES = (
    works_are_applied_in_the_order_of_the_calls,
    a_work_that_raises_undoes_only_itself,
    what_is_acknowledged_is_read,
    a_closed_store_refuses,
    runs_are_inserted_once_per_id,
    runs_are_inserted_once_per_key,
    rows_come_back_whole,
    journals_grow_without_gap_or_fork,
    stale_fences_are_refused,
    moves_give_the_lease_back,
    status_is_set_only_from_the_one_named,
    the_first_request_to_cancel_counts,
    runs_are_listed_newest_first,
    ended_runs_are_listed_by_their_end,
    blobs_come_back_whole,
    *store_queue.CASES,
    *store_ledger.CASES,
    *store_audit.CASES,
    *store_approvals.CASES,
)
