"""A run whose code is in a worker process: its calls, timers and end are mirrored here, and answered one event at a time.

What the code does reaches the engine through the same ``Host`` as local code, so journal, matching on replay, waits and parking are
the same. After each event the worker says what the code did until nothing of it was ready; only then is the next entry taken in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from perdure.agents.agent import Agent
from perdure.agents.requests import ActCall
from perdure.core import entries as e
from perdure.core.errors import (
    BlockedError,
    ReplayError,
    RequestInvalidError,
    Suspended,
    UnavailableError,
    error_for,
)
from perdure.core.ids import checked_name
from perdure.core.limits import CALLS_OPEN_MAX, ERROR_TEXT_MAX
from perdure.core.records import RunRecord
from perdure.core.values import too_large
from perdure.engines.embedded.attempts import ToldError
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall, tell_end
from perdure.engines.isolated import wire
from perdure.engines.isolated.again import begin_again
from perdure.engines.isolated.calls import request_of, value_of_entry
from perdure.engines.isolated.mirror import MirrorLoop

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

AHEAD_MAX = 64  # recorded events that a worker gets before it has taken in the first of them
PATCHES_MAX = 10_000  # of one run: each is an entry
EFFECTIVE = (e.TimerFired, e.CancelRequested, e.RunForked)


class Post(Protocol):
    """The connection to the worker process that has the code of a run."""

    @property
    def is_full(self) -> bool:
        """Whether what was sent is still on its way, and much of it."""
        ...

    def send(self, frame: Any) -> None:
        """Send a frame."""
        ...


class Desk(Protocol):
    """Who finds a worker process for a run."""

    def admit(self, host: RemoteHost) -> None:
        """Find one; ``attach`` follows."""
        ...

    def rested(self, host: RemoteHost) -> None:
        """It waits in memory and needs no attention."""
        ...

    def release(self, host: RemoteHost) -> None:
        """It leaves memory."""
        ...


class ToldStop(ToldError, TimeoutError):
    """The code ended as one that is told to stop may end."""


class RemoteHost(Host):
    """One run in memory whose code is in a worker process."""

    def __init__(self, driver: Worker, record: RunRecord, agent: Agent, desk: Desk) -> None:
        super().__init__(driver, record, agent)
        self.loop: MirrorLoop = MirrorLoop()  # type: ignore[abstract]
        self.attempts = self._attempt
        self.desk = desk
        self.post: Post | None = None
        self.number = 0  # of the run, in that connection
        self.is_alone = False  # it is tried in a worker of its own
        self.awaited = 0  # the event that the worker has not taken in yet
        self._worker = driver
        self._started: wire.Start | None = None
        self._later_names: deque[str] = deque()
        self._unsent: deque[e.Entry] = deque()
        self._unseen: deque[e.Entry] = deque()
        self._trying: dict[tuple[int, int], asyncio.Future[bytes]] = {}

    # -- beginning
    def _run_code(self, started: e.RunStarted, args: list[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG002 - the input is read again there
        self.main = asyncio.Future(loop=self.loop)
        self.is_computing = True
        self._later_names = deque(self.names[1:])
        self._started = wire.Start(
            run=0,
            id=self.visible_id,
            agent=self.agent.name,
            input=msgspec.Raw(self.driver.bytes_of(started.input)),
            seq=started.seq,
            at_ms=started.at_ms,
            chance=started.chance,
            session=self.session,
            frontier=self.frontier,
            patches=tuple(sorted(self.patches)),
        )

    def _replay(self, entries: Sequence[e.AnyEntry]) -> None:
        self._unseen, self._unsent = deque(entries), deque(entries)
        self.is_alone = bool(entries) and is_told_by_worker(entries[-1])
        self.desk.admit(self)

    def attach(self, post: Post, number: int) -> None:
        """Begin in a worker process, with everything that is recorded."""
        if self._started is None:
            return
        self.post, self.number = post, number
        post.send(msgspec.structs.replace(self._started, run=number))
        self.awaited = self._started.seq
        self._feed()

    def _feed(self) -> None:
        """Recorded events go ahead of their turn, for what they say does not depend on what the code does; not into a full connection."""
        while self._unsent:
            seq = self._unsent[0].seq
            is_due = seq <= self.seen
            if not is_due and (seq > self.seen + AHEAD_MAX or self.post is None or self.post.is_full):
                return
            self._send(self._unsent.popleft())

    def _send(self, entry: e.Entry) -> bool:
        """Tell the code of an entry; whether it has to do with the code."""
        common: dict[str, Any] = {"run": self.number, "seq": entry.seq, "at_ms": entry.at_ms}
        frame: wire.Downward
        match entry:
            case e.CallEntry() if not isinstance(entry, e.NOTES):
                value, error = value_of_entry(entry, self.driver.bytes_of)
                frame = wire.Answer(**common, call=entry.call, kind=entry.kind, value=value, error=error)
            case e.TimerFired(timer=timer):
                frame = wire.Fired(**common, timer=timer)
            case e.CancelRequested(reason=reason):
                frame = wire.Cancel(**common, reason=reason)
            case e.RunForked(chance=chance):
                frame = wire.Forked(**common, id=self._later_names.popleft(), chance=chance)
            case _:
                return False
        if self.post is not None:
            self.post.send(frame)
        return True

    # -- what the code did
    def ran(self, frame: wire.Ran) -> None:
        """The code has taken an event in.

        Raises:
            RequestInvalidError: that is not what was sent, or not what the protocol allows.
            ReplayError: the code does something else than what is recorded.
        """
        if frame.seq != self.awaited:
            raise RequestInvalidError(f"expected `ran` of event {self.awaited}, found {frame.seq}")
        self.did(frame.do)
        self.awaited = 0
        self._advance()
        if not self.is_closed and not self.is_computing:
            self._worker._after(self)

    def did(self, done: Sequence[wire.Did]) -> None:
        """Take over what the code did."""
        if not self.awaited:
            raise RequestInvalidError("nothing was asked of that run")
        for item in done:
            if self.is_closed:
                return
            self._one(item)

    def _one(self, item: wire.Did) -> None:
        match item:
            case wire.Call():
                self._call(item)
            case wire.GiveUp(call=number):
                open_call = self.calls.get(number)
                if open_call is None:
                    raise RequestInvalidError(f"call {number} is not open, so it cannot be given up")
                self.give_up(open_call)
            case wire.Timer(timer=number, due_ms=due_ms):
                self.loop.arm(number, due_ms)
            case wire.TimerStopped(timer=number):
                self.loop.disarm(number)
            case wire.Patch(name=name):
                if name in self.patches or self.seen < self.frontier or len(self.patches) >= PATCHES_MAX:
                    raise RequestInvalidError(f"patch `{name:.200}` cannot be taken here")
                self.patches[checked_name("a patch", name)] = True
                self.driver.record_patch(self, name)
            case wire.Show(kind=kind, data=data):
                shown = msgspec.json.decode(wire.check_json(data))
                self.emit(checked_name("what is shown", kind), shown)
            case wire.Result() | wire.Error() | wire.Cancelled():
                self._ended(item)

    def _call(self, call: wire.Call) -> None:
        if call.call != self.next_call:
            raise RequestInvalidError(f"expected call {self.next_call}, found {call.call}")
        if len(self.calls) >= CALLS_OPEN_MAX:
            raise RequestInvalidError(f"more than {CALLS_OPEN_MAX} durable calls are open at once")
        request = request_of(call, {*self.names, self.run_id})
        if request.size_bytes > self.driver.payload_bytes_max:
            raise too_large(request.size_bytes, self.driver.payload_bytes_max)
        self.next_call += 1
        open_call = self.calls[call.call] = OpenCall(self, call.call, request, self.seen_ms)
        if self.is_live:
            self.driver.launch(self, open_call)

    def _ended(self, item: wire.Result | wire.Error | wire.Cancelled) -> None:
        main = self.main
        if main is None or main.done():
            raise RequestInvalidError("a run ends once")
        match item:
            case wire.Result(value=value):
                main.set_result(msgspec.Raw(wire.check_json(value)))
            case wire.Cancelled():
                main.cancel()
            case wire.Error(error=problem, is_stop=is_stop):
                main.set_exception(_raised(problem, is_stop=is_stop))

    # -- entries
    def pump(self) -> None:
        """Give the code what is there, one event at a time."""
        self._advance()

    def _advance(self) -> None:
        while not self.is_closed and not self.awaited:
            is_recorded = bool(self._unseen)
            entry = self._unseen.popleft() if is_recorded else self.buffer.pop(self.seen + 1, None)
            if entry is None:
                break
            self._apply(entry)
            is_effective = is_event(entry)
            if is_effective and not is_recorded:
                self._send(entry)
            self.awaited = entry.seq if is_effective else 0
            self._feed()
        if self.is_closed:
            return
        self.is_computing = bool(self.awaited)
        if not self.is_live and not self.awaited:
            self.is_live = True
            self.go_live()
            self.must_settle = True

    def _apply(self, entry: e.Entry) -> None:
        if isinstance(entry, e.CancelRequested):
            self._see(entry)
            self.cancel = entry
            return
        super()._apply(entry)

    def _resolve(self, open_call: OpenCall, entry: e.CallEntry) -> None:
        if entry.kind == ActCall.kind:
            self.has_acted = True
            tell_end(open_call, entry)

    def unreadable(self, frame: wire.Unreadable) -> ReplayError:
        """A recorded value does not fit its type in the worker's code."""
        text = frame.message[:ERROR_TEXT_MAX]
        message = f"what is recorded for call {frame.call} does not fit its type any more: {text}"
        return ReplayError(message, expected=text, found=str(frame.call), seq=self.awaited)

    # -- attempts of steps
    async def _attempt(self, open_call: OpenCall, number: int) -> bytes:
        if self.post is None:
            raise Suspended(self.run_id)
        key = (open_call.number, number)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._trying[key] = future
        self.post.send(wire.StepBegin(run=self.number, call=open_call.number, attempt=number))
        try:
            return await future
        finally:
            del self._trying[key]
            if future.cancelled() and self.post is not None and not self.is_closed:
                self.post.send(wire.StepCancel(run=self.number, call=open_call.number, attempt=number))

    def step_ended(self, frame: wire.StepEnd) -> None:
        """An attempt has ended; one that nobody waits for any more does not matter."""
        future = self._trying.get((frame.call, frame.attempt))
        if future is None or future.done():
            return
        if frame.error is not None:
            told = ToldError(failure_of_problem(frame.error), is_final=frame.is_final)
            future.set_exception(told)
            return
        future.set_result(wire.check_json(frame.value))

    @property
    def is_trying(self) -> bool:
        """Whether the worker makes an attempt of one of its steps."""
        return bool(self._trying)

    @property
    def is_trying_in_thread(self) -> bool:
        """Whether one of them is a plain function: it runs beside the loop."""
        found = (self.calls.get(call) or self.given_up.get(call) for call, _ in self._trying)
        return any(
            getattr(getattr(open_call.request, "step", None), "is_threaded", False)
            for open_call in found
            if open_call is not None
        )

    # -- leaving
    def trouble(self, error: BlockedError) -> None:
        """The code does something else than what is recorded, or that cannot be read: the run is blocked."""
        self._worker._trouble(self, error)

    def lose(self, error: UnavailableError) -> None:
        """The store did not answer: drop the run; its journal tells what is true."""
        self._worker._lose(self, error)

    def move(self, *, is_blamed: bool, why: str) -> None:
        """Its worker is gone: go on from the journal in another one. A run that is blamed has that in its journal."""
        if self.is_closed:
            return
        if self.is_ending:  # its code has said all; the rest is written without it
            self.post = None
            return
        engine, worker, was_parked = self._worker.engine, self._worker, self.is_parked
        pid = getattr(self.post, "pid", 0)
        self.post = None
        engine.forget(self)
        if not was_parked and not engine.is_draining:
            by = f"{engine.name}/{pid}" if is_blamed else None
            engine.spawn(
                begin_again(worker, self.run_id, self.fence, by, why), name=f"perdure-again-{self.run_id}"
            )

    def rest(self) -> None:
        """Wait in memory, here and there."""
        super().rest()
        self.desk.rested(self)

    def close(self) -> None:
        """Leave memory, here and there."""
        if self.is_closed:
            return
        super().close()
        if self.post is not None:
            self.post.send(wire.Drop(run=self.number))
        self.desk.release(self)
        self.post = None


def is_event(entry: e.Entry) -> bool:
    """Whether the code is told of an entry."""
    return isinstance(entry, EFFECTIVE) or (isinstance(entry, e.CallEntry) and not isinstance(entry, e.NOTES))


def is_told_by_worker(entry: e.Entry) -> bool:
    """Whether a run was in flight when a worker process ended, and has not got any further."""
    return isinstance(entry, e.RunRecovered) and "/" in entry.worker


def failure_of_problem(problem: wire.Problem) -> e.Failure:
    """What a journal keeps of an error that a worker told."""
    return e.Failure(
        code=problem.code[:200] or "step-failed",
        message=problem.message[:ERROR_TEXT_MAX],
        type=problem.type[:200],
    )


def _raised(problem: wire.Problem, *, is_stop: bool) -> Exception:
    kind = error_for(problem.code)
    if issubclass(kind, BlockedError):
        return kind(problem.message[:ERROR_TEXT_MAX])
    failure = failure_of_problem(msgspec.structs.replace(problem, code=problem.code or "agent-failed"))
    return ToldStop(failure) if is_stop else ToldError(failure)
