"""What an author may rely on: each durable call, live and on replay."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import pytest

from perdure import AgentFailedError, DeadlineExceededError, RunCancelledError, Runtime, Status
from perdure.core import entries as e
from perdure.core.errors import ForkInvalidError, QuestionUnknownError, RunEndedError, SessionBusyError
from tests.conftest import Open
from tests.runtime.agents import CALLS, GATES, Order


async def until(runtime: Runtime, run: str, status: Status) -> None:
    async with asyncio.timeout(5):
        while runtime.run(run).status is not status:
            await asyncio.sleep(0.005)


def kinds(journal: list[e.AnyEntry]) -> list[str]:
    return [type(entry).__name__ for entry in journal]


async def test_a_step_is_recorded_and_returned(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("echo", "one")
        assert await handle.result(5) == "one!"
        assert kinds(handle.journal()) == ["RunStarted", "StepCompleted", "RunCompleted"]
        assert [entry.seq for entry in handle.journal()] == [1, 2, 3]


async def test_typed_input_reaches_agent_and_step_as_copies(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("orders", Order("tea", 2, date(2026, 11, 23)))
        assert await handle.result(5) == {"tea": 3}


async def test_retries_are_recorded_and_the_result_is_the_last(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("retrying", {"label": "retry-ok", "failures": 2})
        assert await handle.result(5) == 3
        retried = [entry for entry in handle.journal() if isinstance(entry, e.StepRetried)]
        assert [entry.attempt for entry in retried] == [1, 2]
        assert retried[0].error.type == "ConnectionError"


async def test_the_last_failure_reaches_the_agent(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("retrying", ["retry-bad", 99])
        with pytest.raises(Exception, match="attempt 4") as caught:
            await handle.result(5)
        assert getattr(caught.value, "code", "") == "step-failed"
        assert CALLS["retry-bad"] == 4


async def test_a_sleeping_run_survives_a_restart_and_repeats_nothing(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("napping", 0.4)
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime() as runtime:
        again = runtime.run(handle.id)
        assert await again.result(5) == [f"{handle.id}-before!", f"{handle.id}-after!"]
        assert CALLS[f"{handle.id}-before"] == 1
        slept = next(entry for entry in again.journal() if isinstance(entry, e.Slept))
        assert slept.at_ms - again.journal()[1].at_ms >= 400


async def test_messages_arrive_in_order_once_over_restarts(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("listener", 4)
        for number in (1, 2):
            await handle.send("note", number, key=f"m{number}")
            assert await handle.send("note", number, key=f"m{number}") == 0
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime(resident_runs_max=0) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("note", 3)
        await handle.send("note", {"last": True})
        assert await handle.result(5) == [1, 2, 3, {"last": True}]
        assert await handle.send("note", 1, key="m1") == 0  # a repeat of what was accepted is no error
    assert all(CALLS[f"{handle.id}-{number}"] == 1 for number in (1, 2, 3, 4))


async def test_a_wake_up_for_nothing_is_not_recorded(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("listener", 1)
        await until(runtime, handle.id, Status.WAITING)
        for number in range(3):
            await handle.send("other", number)
            await until(runtime, handle.id, Status.WAITING)
        assert kinds(handle.journal()) == ["RunStarted", "RunParked"]
        await handle.send("note", "at last")
        assert await handle.result(5) == ["at last"]


async def test_receive_times_out_with_none(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("impatient", 0.05)
        assert await handle.result(5) is None


async def test_children_and_their_failures(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("parent", ["x", "y"])
        assert await handle.result(5) == ["x!", "y!"]
        assert {row.parent for row in runtime.runs(agent="echo")} == {handle.id}
        failed = await runtime.start("parent-of-failure")
        assert "the sky fell" in await failed.result(5)


async def test_an_agents_exception_fails_the_run(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("failing")
        with pytest.raises(AgentFailedError, match="the sky fell"):
            await handle.result(5)
        assert handle.status is Status.FAILED


async def test_a_question_is_answered_once(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("asker")
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime() as runtime:
        handle = runtime.run(handle.id)
        (question,) = runtime.questions()
        assert question.question == {"question": "how many?"}
        await handle.answer(question.call, 42)
        assert await handle.result(5) == 42
        assert runtime.questions() == []
        with pytest.raises(QuestionUnknownError):
            await handle.answer(question.call, 43)


async def test_a_question_times_out(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("asker", 0.05)
        assert await handle.result(5) is None
        assert runtime.questions() == []


async def test_an_idempotency_key_gives_the_same_run_for_ever(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        first = await runtime.start("echo", "key", idempotency_key="k1")
        await first.result(5)
        starts = await asyncio.gather(*(runtime.start("echo", "key", idempotency_key="k2") for _ in range(5)))
        assert len({handle.id for handle in starts}) == 1
    async with open_runtime() as runtime:
        second = await runtime.start("echo", "other", idempotency_key="k1")
        assert second.id == first.id
        assert await second.result(5) == "key!"


async def test_a_session_goes_one_at_a_time_and_keeps_its_state(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handles = [await runtime.start("counter", n, session="s") for n in (1, 2, 3)]
        assert [await handle.result(5) for handle in handles] == [1, 3, 6]
        other = await runtime.start("counter", 5, session="t")
        assert await other.result(5) == 5


async def test_session_conflicts(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        first = await runtime.start("holder", "h1", session="s")
        with pytest.raises(SessionBusyError):
            await runtime.start("holder", "h2", session="s", conflict="reject")
        waiting = await runtime.start("holder", "h3", session="s")
        assert waiting.status is Status.PENDING
        GATES.setdefault("h4", asyncio.Event()).set()
        last = await runtime.start("holder", "h4", session="s", conflict="interrupt")
        assert await last.result(5) == "h4"
        for handle in (first, waiting):
            with pytest.raises(RunCancelledError):
                await handle.result(5)
        assert CALLS["h3"] == 0


async def test_cancel_reaches_children_and_lets_the_agent_clean_up(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("grandparent")
        await until(runtime, handle.id, Status.WAITING)
        (child,) = runtime.runs(agent="cleaner")
        await until(runtime, child.id, Status.WAITING)
        await runtime.cancel(handle.id, "enough")
        for run in (handle.id, child.id):
            with pytest.raises(RunCancelledError, match="enough"):
                await runtime.run(run).result(5)
        assert CALLS[f"{child.id}-cleanup"] == 1
        with pytest.raises(RunEndedError):
            await handle.send("note", 1)


async def test_a_deadline_fails_the_run(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        for agent in ("cleaner", "holder"):
            handle = await runtime.start(agent, "never" if agent == "holder" else None, deadline=0.1)
            with pytest.raises(DeadlineExceededError):
                await handle.result(5)
            assert handle.status is Status.FAILED


async def test_a_race_takes_no_message_that_it_does_not_give(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("racer")
        await until(runtime, handle.id, Status.WAITING)
        await asyncio.gather(handle.send("a", "A"), handle.send("b", "B"))
        winner, b, a = await handle.result(5)
        assert winner in ("a", "b")
        assert (b, a) == (("B", None) if winner == "a" else (None, "A"))


async def test_plain_asyncio_is_the_same_on_replay(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("plain-asyncio")
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime() as runtime:
        handle = runtime.run(handle.id)
        await handle.send("go", 7)
        assert await handle.result(5) == ["-b2", "-a2", "timed out", "-x!", "-y!", 7]
        counts = {name: count for name, count in CALLS.items() if name.startswith(handle.id)}
        assert len(counts) == 7
        assert set(counts.values()) == {1}


async def test_chance_and_time_are_the_same_on_replay(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("chance")
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime(resident_runs_max=0) as runtime:
        handle = runtime.run(handle.id)
        fork = await runtime.fork(handle.id, at=handle.journal()[-1].seq)
        await until(runtime, fork.id, Status.WAITING)
        await handle.send("go")
        await fork.send("go")
        one, two = await handle.result(5), await fork.result(5)
        assert one[:3] == two[:3]  # what was before the fork is shared
        assert one[3:] != two[3:]  # what came after it is not


async def test_publish_starts_the_subscribers(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        ids = await (await runtime.start("publisher", "extra")).result(5)
        assert [await runtime.run(item).result(5) for item in ids] == ["read extra"]
        assert runtime.run(ids[0]).record().session == "desk"


async def test_a_run_sends_to_another(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        target = await runtime.start("listener", 3)
        assert await (await runtime.start("sender", target.id)).result(5) == [True, True, True]
        assert await target.result(5) == [0, 1, 2]
        assert await (await runtime.start("sender", target.id)).result(5) == [False, False, False]


async def test_fork_with_a_changed_result(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        origin = await runtime.start("listener", 2)
        for number in (1, 2):
            await origin.send("note", number)
        assert await origin.result(5) == [1, 2]
        received = next(entry for entry in origin.journal() if isinstance(entry, e.MessageReceived))
        fork = await runtime.fork(origin.id, at=received.seq, changes={received.seq: "changed"})
        await fork.send("note", "second")
        assert await fork.result(5) == ["changed", "second"]
        assert await origin.result(5) == [1, 2]
        with pytest.raises(ForkInvalidError):
            await runtime.fork(origin.id, at=99)
        with pytest.raises(ForkInvalidError):
            await runtime.fork(origin.id, at=1, changes={5: 1})


async def test_entries_can_be_followed_from_a_cursor(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("many", 20)
        seen: list[Any] = []
        async for entry in handle.entries():
            seen.append(entry.seq)
            if len(seen) == 5:
                break
        async for entry in handle.entries(after=5):
            seen.append(entry.seq)
        assert seen == list(range(1, 23))


async def test_cron_starts_one_run_per_occurrence(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        await runtime.schedule("each", "* * * * *", "echo", "tick", timezone="Europe/Zurich")
        (row,) = runtime.schedules()
        assert row.next_ms % 60_000 == 0
        import msgspec

        due = msgspec.structs.replace(
            row, next_ms=row.next_ms - 600_000
        )  # as if nothing had run for ten minutes
        await runtime.store.transact(lambda tx: tx.put_schedule(due))
        await until_count(runtime, 1)
        assert runtime.schedules()[0].next_ms == row.next_ms
        await asyncio.sleep(0.15)
        assert len(runtime.runs(agent="echo")) == 1
        assert await runtime.unschedule("each")


async def until_count(runtime: Runtime, count: int) -> None:
    async with asyncio.timeout(5):
        while len(runtime.runs(agent="echo", status=Status.COMPLETED)) < count:
            await asyncio.sleep(0.01)


async def test_limits_of_an_agent_and_priorities(open_runtime: Open) -> None:
    from perdure import Run, agent

    order: list[str] = []

    @agent("limited", concurrency=1)
    async def limited(run: Run, label: str) -> None:
        order.append(label)
        from tests.runtime.agents import slow

        await run.step(slow, label, 0.02)

    async with open_runtime([limited]) as runtime:
        handles = [await runtime.start("limited", "first")]
        handles += [await runtime.start("limited", f"p{p}", priority=p) for p in (0, 5, 1)]
        for handle in handles:
            await handle.result(5)
    assert list(dict.fromkeys(order)) == ["first", "p5", "p1", "p0"]


async def test_large_payloads_are_kept_once_as_blobs(open_runtime: Open) -> None:
    from perdure.runtime.datadir import DATABASE
    from perdure.stores.sqlite import sizes

    async with open_runtime() as runtime:
        handle = await runtime.start("listener", 1)
        await handle.send("note", "x" * 200_000)
        assert await handle.result(5) == ["x" * 200_000]
        other = await runtime.start("listener", 1)
        await other.send("note", "x" * 200_000)
        await other.result(5)
        path = next(iter(runtime.store._writer.execute("PRAGMA database_list")))[2]  # type: ignore[attr-defined]
        assert path.endswith(DATABASE)
        from pathlib import Path

        assert sizes(Path(path))["blobs"] == 2  # the message and the result of the run, each once
