"""What every ``Store`` must do, second part: leases, mail, questions, state, schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.core.errors import RunUnknownError
from perdure.core.records import Question, RunFilter, Schedule, Status
from perdure.core.values import NULL
from perdure.ports import Store, Transaction
from perdure.testing.conformance.checks import check, refused, same
from perdure.testing.conformance.rows import SENT, claim, insert, running, slept, text

T = Transaction


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
    await store.transact(lambda tx: tx.renew("live", 500))
    await store.transact(lambda tx: tx.renew("dead", 100))
    await store.transact(lambda tx: (running(tx, "one", worker="live"), running(tx, "two", worker="dead")))
    same(await store.transact(lambda tx: tx.release_expired(99)), 0, "nothing expires early")
    same(await store.transact(lambda tx: tx.release_expired(100)), 1, "a silent worker loses its run")
    same(await store.transact(lambda tx: claim(tx, "next")), ["two"], "another may claim it")
    await store.transact(lambda tx: tx.renew("next", 9_999))
    await store.transact(lambda tx: tx.renew("live", 9_999))
    same(await store.transact(lambda tx: tx.release_expired(1_000)), 0, "a renewed lease holds")
    await store.transact(lambda tx: tx.retire("live"))
    same(
        await store.transact(lambda tx: tx.release_expired(1_000)),
        1,
        "a retired worker's runs are free at once",
    )
    same(
        await store.transact(lambda tx: tx.release_expired(1_000, others_than="me")),
        1,
        "alone: all others are dead",
    )


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
    await store.transact(
        lambda tx: tx.put_schedule(
            Schedule(name="n", agent="a", cron="* * * * *", timezone="UTC", input=NULL, next_ms=260)
        )
    )
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
    same(
        mail and (mail.run, mail.topic, mail.sender, mail.sent_ms),
        ("one", "t", "s", 5),
        "with what is known of it",
    )
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
    for item in reversed(asked):
        await store.transact(lambda tx, q=item: tx.open_question(q))  # type: ignore[misc]
    same(store.read(lambda tx: tx.questions(None)), asked, "all, oldest first")
    await store.transact(lambda tx: tx.close_question("a", 1))
    same(store.read(lambda tx: tx.questions("a")), asked[2:], "of one run, without the closed one")


async def state_is_kept_by_agent_session_and_key(store: Store) -> None:
    """Set, replaced, deleted; nothing of one session is seen in another."""
    await store.transact(lambda tx: tx.set_state("a", "s", "k", text("1"), {}))
    await store.transact(lambda tx: tx.set_state("a", "s", "k", text("2"), {}))
    same(store.read(lambda tx: tx.state("a", "s", "k")), text("2"), "the last value counts")
    others = store.read(
        lambda tx: [tx.state("b", "s", "k"), tx.state("a", "t", "k"), tx.state("a", "s", "l")]
    )
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


CASES = (
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
