"""What every ``Store`` must do. Cases are coroutine functions that take a fresh, empty store.

``DAMAGE_CASES`` take a second argument: ``damage(run, seq)`` changes a byte of a stored entry behind the store's back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from perdure.core import entries as e
from perdure.core.errors import (
    CorruptError,
    FenceError,
    JournalCorruptError,
    RunUnknownError,
    UnavailableError,
)
from perdure.core.records import Question, RunFilter, RunRecord, Schedule, Status
from perdure.core.values import NULL, Payload
from perdure.ports import Store, Transaction
from perdure.testing.conformance.checks import check, refused, same

Damage = Callable[[str, int], Any]
T = Transaction
SENT: dict[str, Any] = {"sender": "s", "now_ms": 5, "key": None}


# -- things to store -----------------------------------------------------------------------------
def text(value: str) -> Payload:
    """A small payload."""
    return Payload(inline=msgspec.Raw(msgspec.json.encode(value)))


def row(run: str, status: Status = Status.QUEUED, **fields: Any) -> RunRecord:
    """The row of a run that was just accepted."""
    return RunRecord(**{"id": run, "agent": "a", "status": status, "created_ms": 1, "seq": 1, "ready_ms": 1, **fields})


def first(**fields: Any) -> e.RunStarted:
    """The first entry of a journal."""
    return e.RunStarted(seq=1, at_ms=1, agent="a", version="1", input=NULL, chance=7, **fields)


def slept(seq: int) -> e.Slept:
    """Any entry at a position."""
    return e.Slept(seq=seq, at_ms=seq, call=seq, name="", digest="d")


def insert(tx: T, run: str, status: Status = Status.QUEUED, **fields: Any) -> RunRecord:
    """Accept a run."""
    return tx.insert_run(row(run, status, **fields), (first(),), {})


def running(tx: T, run: str, fence: int = 1, worker: str = "w", **fields: Any) -> RunRecord:
    """Accept a run that a worker holds."""
    return insert(tx, run, Status.RUNNING, fence=fence, worker=worker, **fields)


def claim(tx: T, worker: str = "w", limit: int = 10, room: int = 10, **fields: Any) -> list[str]:
    """Claim runs of agent ``a``; their ids."""
    options: dict[str, Any] = {"room": {"a": room}, "limit": limit, "suspects": True, **fields}
    return [run.id for run in tx.claim(worker, 100, **options)]


# -- transactions --------------------------------------------------------------------------------
async def works_are_applied_in_the_order_of_the_calls(store: Store) -> None:
    """Also if they are awaited later, or in another order."""
    seen: list[int] = []
    waits = [store.transact(lambda tx, n=number: seen.append(n)) for number in range(50)]  # type: ignore[misc]
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
    same(await store.transact(lambda tx: 42), 42, "`transact` gives what the work returns")


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
    same([x.seq for x in store.read(lambda tx: tx.journal("one", 1, 1))], [2], "`after` and `limit` cut a page")
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
    found = store.read(lambda tx: ([r.id for r in tx.children("r1")], [r.id for r in tx.session_runs("a", "s")]))
    same(found, (["r2", "r5"], ["r1", "r5"]), "children, and the unfinished runs of a session")


async def blobs_come_back_whole(store: Store) -> None:
    """Kept once under their digest, with runs, entries, messages and state; an unknown one is an error."""
    body = bytes(range(256)) * 1_000
    name = hashlib.sha256(body).hexdigest()
    await store.transact(lambda tx: tx.insert_run(row("one"), (first(),), {name: body}))
    await store.transact(lambda tx: tx.deliver("one", "t", Payload(blob=name, size=len(body)), {name: body}, **SENT))
    same(store.read(lambda tx: tx.blob(name)), body, "a blob comes back as it was")
    with refused(CorruptError, "a missing blob is damage"):
        store.read(lambda tx: tx.blob("0" * 64))


# -- leases --------------------------------------------------------------------------------------
async def claims_go_by_priority_then_age(store: Store) -> None:
    """Higher first, then the one that was queued earlier, then the one that was inserted earlier."""

    def fill(tx: T) -> None:
        for run, priority, ready_ms in (("c", 0, 5), ("d", 0, 5), ("b", 0, 2), ("a", 7, 9), ("e", -1, 1)):
            insert(tx, run, priority=priority, ready_ms=ready_ms)

    await store.transact(fill)
    same(await store.transact(lambda tx: claim(tx, limit=2)), ["a", "b"], "at most `limit`, best first")
    same(await store.transact(claim), ["c", "d", "e"], "then the rest")
    same(await store.transact(claim), [], "nothing is claimed twice")


async def claims_keep_to_the_room(store: Store) -> None:
    """Of each agent as many as asked for, others never; ``skip`` leaves runs alone; only queued ones."""

    def fill(tx: T) -> None:
        for number in range(3):
            insert(tx, f"a{number}")
            insert(tx, f"b{number}", agent="b")
        insert(tx, "other", agent="c", priority=9)
        insert(tx, "waiting", Status.WAITING)
        insert(tx, "pending", Status.PENDING)

    await store.transact(fill)
    found = await store.transact(lambda tx: claim(tx, room=0, skip=("a0",), limit=50))
    same(found, [], "no room, no claim")
    want: dict[str, Any] = {"room": {"a": 1, "b": 2}, "skip": ("a0",), "limit": 50, "suspects": True}
    taken = await store.transact(lambda tx: tx.claim("w", 10, **want))
    same(sorted(run.id for run in taken), ["a1", "b0", "b1"], "as many of each as there is room for")
    check(all(run.status is Status.RUNNING and run.worker == "w" for run in taken), "claims hold the lease")


async def leases_expire(store: Store) -> None:
    """A worker that is silent past its lease loses its runs; a renewed one, and the one named, do not."""
    await store.transact(lambda tx: (tx.renew("live", 500), tx.renew("dead", 100)))
    await store.transact(lambda tx: (running(tx, "one", worker="live"), running(tx, "two", worker="dead")))
    same(await store.transact(lambda tx: tx.release_expired(99)), 0, "nothing expires early")
    same(await store.transact(lambda tx: tx.release_expired(100)), 1, "a silent worker loses its run")
    same(await store.transact(lambda tx: claim(tx, "next")), ["two"], "another may claim it")
    await store.transact(lambda tx: tx.renew("next", 9_999))
    await store.transact(lambda tx: tx.renew("live", 9_999))
    same(await store.transact(lambda tx: tx.release_expired(1_000)), 0, "a renewed lease holds")
    await store.transact(lambda tx: tx.retire("live"))
    same(await store.transact(lambda tx: tx.release_expired(1_000)), 1, "a retired worker's runs are free at once")
    same(await store.transact(lambda tx: tx.release_expired(1_000, others_than="me")), 1, "alone: all others are dead")


async def suspects_are_claimed_one_at_a_time(store: Store) -> None:
    """Runs that were in flight at two crashes without progress wait for a claim that allows one of them."""
    await store.transact(lambda tx: [insert(tx, name) for name in ("one", "two", "good")] and None)
    for crash in (1, 2):
        await store.transact(lambda tx, n=crash: tx.claim(f"w{n}", n, room={"a": 9}, limit=2, suspects=True))  # type: ignore[misc]
        await store.transact(lambda tx: tx.release_expired(0))
    found = store.read(lambda tx: [(r.id, r.recoveries) for r in reversed(tx.runs(RunFilter()))])
    same(found, [("one", 2), ("two", 2), ("good", 0)], "crashes without progress are counted")
    same(await store.transact(lambda tx: claim(tx, suspects=False)), ["good"], "suspects wait")
    same(await store.transact(claim), ["one"], "one of them at a time")
    await store.transact(lambda tx: tx.append("one", 3, (slept(2), slept(3)), {}))
    await store.transact(lambda tx: tx.release_expired(0))
    one = store.read(lambda tx: tx.run("one"))
    same(one and one.recoveries, 1, "progress clears a suspect of the crashes before")


async def seizing_takes_one_run(store: Store) -> None:
    """With a new fence, from the states named only; the row before comes back."""
    await store.transact(lambda tx: insert(tx, "one", Status.BLOCKED, fence=4))
    none = await store.transact(lambda tx: tx.seize("one", "op", (Status.WAITING,)))
    check(none is None, "a run in another state is left alone")
    taken = await store.transact(lambda tx: tx.seize("one", "op", (Status.BLOCKED,)))
    same(taken and (taken.status, taken.fence), (Status.BLOCKED, 5), "the state before, the new fence")
    await store.transact(lambda tx: tx.append("one", 5, (slept(2),), {}))
    check(await store.transact(lambda tx: tx.seize("none", "op", tuple(Status))) is None, "no such run")


async def waiting_runs_wake_when_due(store: Store) -> None:
    """The earliest first, at most ``limit``, and ``next_wake_ms`` tells when; schedules count too."""

    def fill(tx: T) -> None:
        for run, wake_ms in (("late", 300), ("soon", 100), ("mid", 200)):
            running(tx, run)
            tx.move(run, 1, Status.WAITING, now_ms=1, wake_ms=wake_ms)
        running(tx, "never")
        tx.move("never", 1, Status.WAITING, now_ms=1)

    await store.transact(fill)
    same(store.read(lambda tx: tx.next_wake_ms()), 100, "the next wake")
    same(await store.transact(lambda tx: tx.wake_due(99, 10)), 0, "nothing is early")
    same(await store.transact(lambda tx: tx.wake_due(250, 1)), 1, "at most `limit`")
    same(await store.transact(claim), ["soon"], "the earliest first")
    same(await store.transact(lambda tx: tx.wake_due(250, 10)), 1, "then the next that is due")
    same(store.read(lambda tx: tx.next_wake_ms()), 300, "what is left")
    await store.transact(lambda tx: tx.put_schedule(Schedule(name="n", agent="a", cron="* * * * *", timezone="UTC", input=NULL, next_ms=260)))
    same(store.read(lambda tx: tx.next_wake_ms()), 260, "a schedule counts")


# -- mail, questions, state, schedules -----------------------------------------------------------
async def mail_is_taken_once_in_order(store: Store) -> None:
    """Per run and topic, in the order of acceptance."""
    await store.transact(lambda tx: (insert(tx, "one"), insert(tx, "two")))
    for run, topic, body in (("one", "t", "1"), ("one", "u", "2"), ("one", "t", "3"), ("two", "t", "4")):
        await store.transact(lambda tx, r=run, t=topic, b=body: tx.deliver(r, t, text(b), {}, **SENT))  # type: ignore[misc]
    check(store.read(lambda tx: tx.has_mail("one", "t")), "there is mail")
    check(not store.read(lambda tx: tx.has_mail("two", "u")), "not of another topic")
    taken = [await store.transact(lambda tx: tx.take("one", "t")) for _ in range(3)]
    bodies = [None if mail is None else bytes(mail.body.inline) for mail in taken]
    same(bodies, [b'"1"', b'"3"', None], "oldest first, each once")
    mail = taken[0]
    same(mail and (mail.run, mail.topic, mail.sender, mail.sent_ms), ("one", "t", "s", 5), "with what is known of it")
    with refused(RunUnknownError, "an unknown run has no mailbox"):
        await store.transact(lambda tx: tx.deliver("none", "t", NULL, {}, **SENT))


async def mail_with_a_key_is_delivered_once(store: Store) -> None:
    """For ever, also after it was taken; keys belong to a run."""
    await store.transact(lambda tx: (insert(tx, "one"), insert(tx, "two")))

    def deliver(run: str) -> Callable[[T], int]:
        return lambda tx: tx.deliver(run, "t", NULL, {}, sender="", now_ms=1, key="k")

    check(await store.transact(deliver("one")) > 0, "the first is delivered")
    same(await store.transact(deliver("one")), 0, "the second is dropped")
    check(await store.transact(lambda tx: tx.take("one", "t")), "one is there")
    same(await store.transact(deliver("one")), 0, "also after the first was taken")
    check(await store.transact(deliver("two")) > 0, "keys belong to a run")


async def questions_are_listed_until_closed(store: Store) -> None:
    """Oldest first, of one run or of all."""
    asked = [
        Question(run="b", call=1, agent="a", question=text("?"), asked_ms=1, due_ms=9),
        Question(run="a", call=1, agent="a", question=text("?"), asked_ms=2),
        Question(run="a", call=2, agent="a", question=text("?"), asked_ms=2),
    ]
    await store.transact(lambda tx: [tx.open_question(item) for item in reversed(asked)] and None)
    same(store.read(lambda tx: tx.questions(None)), asked, "all, oldest first")
    await store.transact(lambda tx: tx.close_question("a", 1))
    same(store.read(lambda tx: tx.questions("a")), asked[2:], "of one run, without the closed one")


async def state_is_kept_by_agent_session_and_key(store: Store) -> None:
    """Set, replaced, deleted; nothing of one session is seen in another."""
    await store.transact(lambda tx: tx.set_state("a", "s", "k", text("1"), {}))
    await store.transact(lambda tx: tx.set_state("a", "s", "k", text("2"), {}))
    same(store.read(lambda tx: tx.state("a", "s", "k")), text("2"), "the last value counts")
    others = store.read(lambda tx: [tx.state("b", "s", "k"), tx.state("a", "t", "k"), tx.state("a", "s", "l")])
    same(others, [None, None, None], "nothing is seen elsewhere")
    await store.transact(lambda tx: tx.set_state("a", "s", "k", None, {}))
    check(store.read(lambda tx: tx.state("a", "s", "k")) is None, "a deleted key is gone")


async def schedules_are_kept_by_name(store: Store) -> None:
    """Put again to replace; due ones by time; dropped once."""

    def made(name: str, next_ms: int) -> Schedule:
        return Schedule(name=name, agent="a", cron="* * * * *", timezone="UTC", input=NULL, next_ms=next_ms)

    for item in (made("b", 5), made("a", 50), made("b", 60)):
        await store.transact(lambda tx, s=item: tx.put_schedule(s))  # type: ignore[misc]
    same(store.read(lambda tx: tx.schedules()), [made("a", 50), made("b", 60)], "by name, replaced")
    same(store.read(lambda tx: tx.schedules(55)), [made("a", 50)], "only due ones")
    dropped = [await store.transact(lambda tx: tx.drop_schedule("a")) for _ in range(2)]
    same(dropped, [True, False], "dropped once")


# -- damage --------------------------------------------------------------------------------------
async def a_damaged_entry_is_noticed(store: Store, damage: Damage) -> None:
    """Reading that journal raises; other journals are read as before."""
    await store.transact(lambda tx: (running(tx, "one"), running(tx, "two")))
    for run in ("one", "two"):
        await store.transact(lambda tx, r=run: tx.append(r, 1, (slept(2), slept(3)), {}))  # type: ignore[misc]
    damage("one", 2)
    with refused(JournalCorruptError, "a damaged entry is noticed"):
        store.read(lambda tx: tx.journal("one"))
    same(len(store.read(lambda tx: tx.journal("two"))), 3, "other journals are intact")
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
    blobs_come_back_whole,
    claims_go_by_priority_then_age,
    claims_keep_to_the_room,
    leases_expire,
    suspects_are_claimed_one_at_a_time,
    seizing_takes_one_run,
    waiting_runs_wake_when_due,
    mail_is_taken_once_in_order,
    mail_with_a_key_is_delivered_once,
    questions_are_listed_until_closed,
    state_is_kept_by_agent_session_and_key,
    schedules_are_kept_by_name,
)
