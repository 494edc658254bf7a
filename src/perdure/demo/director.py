"""Runs the show: starts the worker as a real process, kills it half-way, starts another, passes on answers.

It watches the journal beside the worker and drives no run itself. It prints nothing; a :class:`Watcher` is told.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from perdure import RunHandle, Runtime, Status
from perdure.core import entries as e
from perdure.demo import evidence
from perdure.demo.desk import AGENT, invoice_desk, list_mails, steps_expected
from perdure.demo.proof import Proof, prove
from perdure.demo.review import Answer
from perdure.demo.reviewer import Reviewer

POLL_S = 0.002  # how often the journal is read: so often that the kill comes at the step that was chosen
STALL_S_MAX = 60.0  # a worker without any new entry for so long hangs; waiting for a person does not count
LOG_TAIL_CHARACTERS = 2_000  # of a worker's own output, shown when it failed


class DemoError(Exception):
    """The demo could not be brought to its end; the text says what happened."""


class Plan(msgspec.Struct, frozen=True):
    """What to do and where: ``kill_at`` is the number of recorded steps at which the worker is killed."""

    folder: Path
    data: Path
    ledger: Path
    pace_ms: int
    kill_at: int


class Outcome(msgspec.Struct, frozen=True):
    """What happened; times in milliseconds. ``kill_signal`` is how the first worker ended."""

    run: str
    proof: Proof
    result: dict[str, Any]
    first_pid: int
    second_pid: int
    kill_signal: int
    steps_total: int
    questions: int
    entries: int
    first_worker_ms: int
    second_worker_ms: int
    restart_to_takeover_ms: int
    restart_to_first_step_ms: int

    @property
    def is_proved(self) -> bool:
        """Whether the first worker was killed by SIGKILL and every claim holds nevertheless."""
        return self.kill_signal == signal.SIGKILL and self.proof.is_proved


class Watcher(Protocol):
    """Is told what happens, in order."""

    def worker_started(self, pid: int, *, is_second: bool) -> None:
        """A worker process runs."""

    def steps_recorded(self, count: int) -> None:
        """So many steps are in the journal."""

    def worker_killed(self, pid: int, recorded: int) -> None:
        """The first worker got SIGKILL and is gone; so many steps were recorded."""

    def answered(self, question: dict[str, Any], answer: Answer) -> None:
        """A question was answered by message."""


class _Follower:
    """Reads a run's journal as it grows."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handle: RunHandle | None = None
        self.journal: list[e.AnyEntry] = []
        self.recorded = 0
        self.moved_at = time.monotonic()

    @property
    def handle(self) -> RunHandle:
        """The run; there is one once a worker has started it."""
        if self._handle is None:
            raise DemoError("the worker has not started a run")
        return self._handle

    @property
    def has_run(self) -> bool:
        """Whether a worker has started the run."""
        return self._handle is not None

    def read(self) -> int:
        """Take in new entries and return how many steps are recorded."""
        if self._handle is None:
            found = self._runtime.runs(agent=AGENT, limit=1)
            self._handle = self._runtime.run(found[0].id) if found else None
        if self._handle is not None:
            new = self._handle.journal(after=self.journal[-1].seq if self.journal else 0)
            if new:
                self.journal.extend(new)
                self.recorded += sum(isinstance(entry, e.StepCompleted) for entry in new)
                self.moved_at = time.monotonic()
        return self.recorded


async def direct(plan: Plan, reviewer: Reviewer, watcher: Watcher) -> Outcome:
    """Run the whole demo.

    Raises:
        DemoError: a worker ended before it should, or hangs.
    """
    async with Runtime.open(plan.data, agents=[invoice_desk], beside=True) as runtime:
        follower = _Follower(runtime)
        started = time.monotonic()
        async with _worker(plan, 1) as first:
            watcher.worker_started(first.pid, is_second=False)
            await _until(follower, first, plan, 1, watcher, lambda: _has_reached(follower, plan.kill_at))
            first.send_signal(signal.SIGKILL)
            await first.wait()
        first_ms = _since(started)
        watcher.worker_killed(first.pid, follower.read())
        before = list(follower.journal)
        if _has_ended(follower):
            raise DemoError(
                "the worker was done before it could be killed; give a larger `--pace` or more mails"
            )
        started, started_wall_ms = time.monotonic(), time.time_ns() // 1_000_000
        async with _worker(plan, 2) as second:
            watcher.worker_started(second.pid, is_second=True)
            answered = await _work_on(follower, second, plan, reviewer, watcher)
            await asyncio.wait_for(second.wait(), STALL_S_MAX)
        second_ms = _since(started)
        follower.read()
        files = _files_of(follower.journal, runtime)
        log = evidence.read(plan.ledger.with_name(evidence.LOG_NAME))
        result = await follower.handle.result(timeout=STALL_S_MAX)
        new = follower.journal[len(before) :]
        return Outcome(
            run=follower.handle.id,
            proof=prove(before, follower.journal, log, files, second.pid, runtime.bytes_of),
            result=result,
            first_pid=first.pid,
            second_pid=second.pid,
            kill_signal=-(first.returncode or 0),
            steps_total=steps_expected(len(files)),
            questions=answered,
            entries=len(follower.journal),
            first_worker_ms=first_ms,
            second_worker_ms=second_ms,
            restart_to_takeover_ms=_first_at(new, e.RunRecovered) - started_wall_ms,
            restart_to_first_step_ms=_first_at(new, e.StepCompleted) - started_wall_ms,
        )


def _files_of(journal: list[e.AnyEntry], runtime: Runtime) -> list[str]:
    """The mails that the run listed: the folder itself may have changed since."""
    for entry in journal:
        if isinstance(entry, e.StepCompleted) and entry.name == list_mails.name:
            return msgspec.json.decode(runtime.bytes_of(entry.result), type=list[str])
    return []


def _has_ended(follower: _Follower) -> bool:
    return any(isinstance(entry, e.ENDINGS) for entry in follower.journal)


async def _has_reached(follower: _Follower, count: int) -> bool:
    return follower.read() >= count


async def _work_on(
    follower: _Follower, worker: asyncio.subprocess.Process, plan: Plan, reviewer: Reviewer, watcher: Watcher
) -> int:
    """Follow the run to its end and answer what it asks; returns the number of answers."""
    answered: set[int] = set()

    async def is_done() -> bool:
        if not follower.has_run or not follower.handle.status.is_ended:
            for item in follower.handle.questions() if follower.has_run else []:
                if item.call in answered:
                    continue
                answered.add(item.call)
                answer = await _answer_of(reviewer, item.question)
                await follower.handle.answer(item.call, msgspec.to_builtins(answer), sender=reviewer.name)
                watcher.answered(item.question, answer)
                follower.moved_at = time.monotonic()
            return False
        follower.read()
        return True

    await _until(follower, worker, plan, 2, watcher, is_done)
    return len(answered)


async def _answer_of(reviewer: Reviewer, question: dict[str, Any]) -> Answer:
    """Ask the reviewer in a daemon thread: an open prompt must not keep an interrupted demo from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def give(value: Answer) -> None:
        if not answer.done():
            answer.set_result(value)

    def ask() -> None:
        value = reviewer.answer(question)
        with suppress(RuntimeError):  # the loop is closed: the demo was interrupted
            loop.call_soon_threadsafe(give, value)

    threading.Thread(target=ask, daemon=True, name="reviewer").start()
    return await answer


async def _until(
    follower: _Follower,
    worker: asyncio.subprocess.Process,
    plan: Plan,
    number: int,
    watcher: Watcher,
    is_done: Callable[[], Awaitable[bool]],
) -> None:
    """Follow the journal until ``is_done``.

    Raises:
        DemoError: the worker is gone or stands still, or the run is blocked.
    """
    shown = -1
    follower.moved_at = time.monotonic()
    while True:
        is_gone = worker.returncode is not None
        recorded = follower.read()
        if recorded != shown:
            watcher.steps_recorded(recorded)
            shown = recorded
        if await is_done():
            return
        if is_gone:
            reason = f"worker {number} ended by itself with code {worker.returncode}"
            raise DemoError(f"{reason}\n{_tail(_output_of(plan, number))}".strip())
        if follower.has_run and follower.handle.status is Status.BLOCKED:
            raise DemoError(f"the run is blocked: `perdure runs show {follower.handle.id}` says why")
        if time.monotonic() - follower.moved_at > STALL_S_MAX:
            raise DemoError(f"worker {number} made no progress for {STALL_S_MAX:.0f} s")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def _worker(plan: Plan, number: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process, which does not outlive this context."""
    arguments = [str(plan.data), str(plan.folder), str(plan.ledger), str(plan.pace_ms)]
    with _output_of(plan, number).open("wb") as output:
        process = await _spawn(arguments, output)
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _spawn(arguments: list[str], output: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perdure.demo.worker", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
    )  # fmt: skip


def _output_of(plan: Plan, number: int) -> Path:
    return plan.data.parent / f"worker-{number}.log"


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def _first_at(entries: list[e.AnyEntry], kind: type[e.Entry]) -> int:
    """When the first entry of a kind was recorded; of any kind, if there is none."""
    found = next((entry for entry in entries if isinstance(entry, kind)), entries[0])
    return found.at_ms
