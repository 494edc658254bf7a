"""What every engine must do. Cases are coroutine functions that take a harness whose worker is running.

The worker is a process of its own (see ``worker``), because two cases kill it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

from perdure.core.errors import (
    AgentFailedError,
    DeadlineExceededError,
    ResultInvalidError,
    RunCancelledError,
    RunEndedError,
)
from perdure.testing.conformance.checks import check, refused, same

RESULT_S_MAX = 30.0


class Harness(Protocol):
    """An engine to be tested, with the agents of ``conformance.agents``."""

    folder: Path

    async def start(
        self, agent: str, input: Any, *, key: str | None = None, deadline: float | None = None
    ) -> str:
        """Start a run; its id."""
        ...

    async def send(self, run: str, topic: str, body: Any, *, key: str | None = None) -> None:
        """Send a message from outside."""
        ...

    async def questions(self, run: str) -> list[int]:
        """The numbers of the calls in which the run asks now."""
        ...

    async def answer(self, run: str, call: int, body: Any) -> None:
        """Answer a question."""
        ...

    async def cancel(self, run: str, reason: str) -> None:
        """Ask a run to stop."""
        ...

    async def result(self, run: str, timeout: float) -> Any:
        """The result, or the error."""
        ...

    async def start_worker(self) -> None:
        """Start the worker process; returns when it works."""
        ...

    async def kill_worker(self) -> None:
        """Kill it without warning."""
        ...


async def _run(harness: Harness, agent: str, input: Any = None) -> Any:
    return await harness.result(await harness.start(agent, input), RESULT_S_MAX)


def _log(harness: Harness, name: str) -> Path:
    path = harness.folder / f"{name}.log"
    path.touch()
    return path


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


async def _until(log: Path, count: int) -> None:
    async with asyncio.timeout(RESULT_S_MAX):
        while len(_lines(log)) < count:
            await asyncio.sleep(0.01)


# -- steps
async def steps_run_once_and_their_results_come_back(harness: Harness) -> None:
    """In order where awaited one by one, and in the order of the calls where gathered."""
    log = _log(harness, "steps")
    found = await _run(harness, "steps", str(log))
    same(found, ["one", "two", [number * 2 for number in range(10)]], "results come back")
    same(_lines(log), ["one", "two"], "each step ran once")


async def steps_are_retried(harness: Harness) -> None:
    """As often as they say, no more; the last error is told."""
    some, log = _log(harness, "retried"), _log(harness, "exhausted")
    enough, never = await asyncio.gather(
        _run(harness, "retries", {"log": str(some), "fails": 3}),
        _run(harness, "retries", {"log": str(log), "fails": 99}),
    )
    same(enough, ["done", 4], "the attempts after the first")
    same(
        never,
        ["failed", "step `flaky` failed on attempt 4: RuntimeError: attempt 4 fails", 4, "RuntimeError"],
        "the last error is told",
    )
    same(len(_lines(log)), 4, "no attempt too many")


async def steps_give_up_when_told(harness: Harness) -> None:
    """``give_up_on`` is not retried, and neither is a result that does not fit; a timeout is."""
    expected: dict[str, tuple[list[Any], int]] = {
        "hopeless": (["step-failed", 1], 1),
        "endless": (["step-timed-out", 2], 2),
        "misfit": (["result-invalid", 1], 0),
    }
    logs = {which: _log(harness, which) for which in expected}
    found = await asyncio.gather(
        *(_run(harness, "trouble", {"log": str(log), "which": which}) for which, log in logs.items())
    )
    for (which, (outcome, attempts)), result in zip(expected.items(), found, strict=True):
        same(result, outcome, which)
        same(len(_lines(logs[which])), attempts, f"attempts of {which}")


# -- timers
async def sleeps_take_their_time(harness: Harness) -> None:
    """By the run's own clock, not less; none at all is fine."""
    found = await _run(harness, "sleeps", 0.3)
    check(0.29 <= found < 10, f"a sleep of 0.3 s took {found} s")
    check(await _run(harness, "sleeps", 0) < 5, "a sleep of nothing ends")


async def asyncio_timers_work(harness: Harness) -> None:
    """``asyncio.timeout``, ``asyncio.sleep`` and ``run.race`` in agent code."""
    same(await _run(harness, "timers"), ["timeout", "None"], "timers fire")


# -- messages
async def messages_arrive_once_in_order(harness: Harness) -> None:
    """From outside and from another run; topics are apart; a key is taken once; a receive may time out."""
    run = await harness.start("mail", 3)
    for body in (1, "two", {"three": [3]}):
        await harness.send(run, "in", body, key=f"key {body}")
        await harness.send(run, "in", body, key=f"key {body}")
    same(await _run(harness, "sender", run), [True, False], "a run is told whether its message was taken")
    found = await harness.result(run, RESULT_S_MAX)
    same(found[0], [1, "two", {"three": [3]}], "in order, each once")
    same(found[1], {"n": 1}, "from another run")
    check(found[2], "with its sender")
    same(found[3], None, "a receive times out with `None`")


async def readers_of_a_topic_take_turns(harness: Harness) -> None:
    """Two receives at once get the messages in the order of the calls."""
    run = await harness.start("readers", None)
    await harness.send(run, "in", "first")
    await harness.send(run, "in", "second")
    same(await harness.result(run, RESULT_S_MAX), ["first", "second"], "in the order of the calls")


async def ended_runs_take_no_messages(harness: Harness) -> None:
    """The sender is told."""
    run = await harness.start("sleeps", 0)
    await harness.result(run, RESULT_S_MAX)
    with refused(RunEndedError, "an ended run takes no messages"):
        await harness.send(run, "in", 1)


# -- children
async def children_return_fail_and_listen(harness: Harness) -> None:
    """A child's id is made of its parent's and the call's number; its result or error comes back."""
    found = await _run(harness, "parent")
    same(found, [True, 8, "ValueError: -1 is negative", 42], "results and errors of children come back")


# -- ends
async def failures_are_visible(harness: Harness) -> None:
    """What an agent raises, a thread or file that it may not or cannot use, a result that does not fit."""
    for how, text in (("raise", "lost"), ("thread", ""), ("open", "No such file")):
        try:
            await _run(harness, "breaks", how)
        except AgentFailedError as error:
            check(text in error.message, f"the message of `{how}` is told, found {error.message!r}")
        else:
            check(False, f"`{how}` fails the run")
    with refused(ResultInvalidError, "a result that does not fit fails the run"):
        await _run(harness, "breaks", "misfit")


async def cancelling_stops_a_run_and_its_children(harness: Harness) -> None:
    """At once, also while it waits; its code may clean up with durable calls; the reason is told."""
    log = _log(harness, "cancelled")
    run = await harness.start("waiter", str(log))
    await _until(log, 1)
    await harness.cancel(run, "enough")
    try:
        await harness.result(run, RESULT_S_MAX)
    except RunCancelledError as error:
        check("enough" in str(error) or "cancel" in str(error), "it says that it was cancelled")
    else:
        check(False, "a cancelled run has no result")
    same(_lines(log), ["waiting", "stopping"], "the code could clean up")
    with refused(RunCancelledError, "its child is cancelled too"):
        await harness.result(f"{run}.1", RESULT_S_MAX)


async def an_agent_may_catch_its_cancellation(harness: Harness) -> None:
    """Then its result counts."""
    log = _log(harness, "stubborn")
    run = await harness.start("stubborn", str(log))
    await _until(log, 1)
    await harness.cancel(run, "enough")
    same(await harness.result(run, RESULT_S_MAX), "not now", "the result counts")


async def deadlines_end_runs(harness: Harness) -> None:
    """With an error of their own."""
    run = await harness.start("late", 60, deadline=0.3)
    with refused(DeadlineExceededError, "a deadline ends the run"):
        await harness.result(run, RESULT_S_MAX)


async def a_key_starts_one_run(harness: Harness) -> None:
    """Also after that run has ended."""
    first = await harness.start("sleeps", 0, key="the key")
    await harness.result(first, RESULT_S_MAX)
    same(await harness.start("sleeps", 5, key="the key"), first, "the same run")


async def state_and_patches(harness: Harness) -> None:
    """State is set and deleted; a new run takes the new path."""
    same(await _run(harness, "state"), [{"n": 2}, "gone", True], "state")


async def questions_are_answered_once(harness: Harness) -> None:
    """Or time out."""
    run = await harness.start("asks", 30)
    async with asyncio.timeout(RESULT_S_MAX):
        while not (calls := await harness.questions(run)):
            await asyncio.sleep(0.02)
    await harness.answer(run, calls[0], {"yes": True})
    same(await harness.result(run, RESULT_S_MAX), [{"yes": True}], "the answer comes back")
    same(await _run(harness, "asks", 0.05), [None], "no answer in time")


# -- crashes
async def a_killed_worker_loses_nothing(harness: Harness) -> None:
    """Another goes on: what was recorded is not repeated, chance is the same, a parked run wakes."""
    log = _log(harness, "crash")
    run = await harness.start("chance", {"log": str(log), "count": 8})
    parked = await harness.start("mail", 1)
    timer = await harness.start("sleeps", 0.5)
    await _until(log, 4)
    await harness.kill_worker()
    await harness.send(parked, "in", "while it was down")
    await harness.start_worker()
    await harness.send(parked, "other", 1)
    found = await harness.result(run, RESULT_S_MAX)
    lines = _lines(log)
    same(
        [line.split()[0] for line in found], [str(number) for number in range(8)], "every step has its result"
    )
    same(list(dict.fromkeys(lines)), found, "chance is the same after the crash")
    check(len(lines) <= len(found) + 1, f"only the step in flight may run again, found {lines}")
    same(
        (await harness.result(parked, RESULT_S_MAX))[0], ["while it was down"], "a message in between is kept"
    )
    check(await harness.result(timer, RESULT_S_MAX) >= 0.49, "a timer goes on")


async def runs_wait_for_a_worker(harness: Harness) -> None:
    """Started and cancelled while there is none."""
    await harness.kill_worker()
    run = await harness.start("sleeps", 0)
    stopped = await harness.start("late", 60)
    await harness.cancel(stopped, "enough")
    await harness.start_worker()
    check(await harness.result(run, RESULT_S_MAX) >= 0, "it runs when a worker is there")
    with refused(RunCancelledError, "and is cancelled if that was asked for"):
        await harness.result(stopped, RESULT_S_MAX)


BASIC = (
    steps_run_once_and_their_results_come_back,
    steps_are_retried,
    steps_give_up_when_told,
    sleeps_take_their_time,
    asyncio_timers_work,
    messages_arrive_once_in_order,
    readers_of_a_topic_take_turns,
    ended_runs_take_no_messages,
    children_return_fail_and_listen,
    failures_are_visible,
    cancelling_stops_a_run_and_its_children,
    an_agent_may_catch_its_cancellation,
    deadlines_end_runs,
    a_key_starts_one_run,
    state_and_patches,
    questions_are_answered_once,
    a_killed_worker_loses_nothing,
    runs_wait_for_a_worker,
)
