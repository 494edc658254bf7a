"""One run in memory: its code on its loop, its open calls, and the delivery of entries in journal order.

Everything that the agent sees reaches it through :meth:`Host.deliver`, one entry at a time, live as on replay. The host
does no I/O: it asks its engine (the ``Driver``) to launch calls and to write.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import Context, copy_context
from typing import Any

import msgspec

from perdure.agents.agent import Agent
from perdure.agents.requests import ActCall, Request
from perdure.agents.run import Run, enter_run
from perdure.core import entries as e
from perdure.core.errors import (
    DefinitionError,
    InputInvalidError,
    OutsideRunError,
    ReplayError,
    Suspended,
    UsageError,
)
from perdure.core.limits import CALLS_OPEN_MAX
from perdure.core.principals import Chain, Principal
from perdure.core.records import RunRecord
from perdure.core.values import Payload, too_large
from perdure.engines.embedded.loop import RunLoop
from perdure.engines.embedded.open_call import Driver, OpenCall, is_wait, mismatch, note, tell_end, tell_gone
from perdure.engines.embedded.results import value_of
from perdure.gateway.hosted import Attempt
from perdure.gateway.memory import RunMemory


class Host:
    """One run in memory. Implements ``Calls`` for its agent."""

    def __init__(self, driver: Driver, record: RunRecord, agent: Agent) -> None:
        self.driver = driver
        self.run_id = record.id
        self.names = [record.id]  # what ``run.id`` says, now and after each fork that is still to come
        self.agent = agent
        self.session = record.session
        self.parent = record.parent
        self.deadline_ms = record.deadline_ms
        self.fence = record.fence
        self.loop = RunLoop()  # type: ignore[abstract] # what an agent may not do raises on use
        self.calls: dict[int, OpenCall] = {}
        self.given_up: dict[int, OpenCall] = {}
        self.stash: dict[str, deque[e.MessageReceived]] = {}
        self.patches: dict[str, bool] = {}
        self.next_call = 1
        # Written position: touched only by works, which the store runs one after the other.
        self.seq = 0
        self.at_ms = 0
        # Delivered position.
        self.seen = 0
        self.seen_ms = 0
        self.buffer: dict[int, e.Entry] = {}
        self.frontier = 0  # the last recorded entry that depends on what the code did
        self.unwritten = 0  # patches on their way into the journal
        self.held: list[OpenCall] = []  # calls that begin when those are durable
        self.is_live = False
        self.is_closed = False
        self.is_parked = False
        self.is_pumping = False
        self.is_settling = False
        self.must_settle = False
        self.parked_at: tuple[int, tuple[e.Wait, ...]] = (0, ())  # the last `RunParked`: where, for what
        self.is_ending = False
        self.is_blocking = False
        self.cancel: e.CancelRequested | None = None
        self.busy = 0  # tasks of the engine that work for this run
        self.alarm: asyncio.TimerHandle | None = None
        self.alarm_ms: int | None = None
        self.main: asyncio.Future[Any] | None = None
        self.attempts: Callable[[OpenCall, int], Awaitable[bytes]] | None = None  # of steps, if not made here
        self.is_computing = False  # its code, elsewhere, has not said yet what it does next
        self.pins: dict[str, str] = {}  # digests of the tools that the run goes by
        self.has_acted = False
        self.principals: Chain = ()  # the run itself, then who it acts for
        self.memory: RunMemory | None = None  # what gates remember of the run
        self.attempt: Attempt | None = None  # of a hosted program: the latest in this process
        self.random = random.Random(0)  # noqa: S311 - seeded from the journal, for replay, not for secrets

    # -- the agent's side (port ``Calls``)
    def issue(self, request: Request) -> asyncio.Future[Any]:
        """Number a durable call and begin it (at once when live, at the frontier on replay)."""
        if self.is_closed:
            raise Suspended(self.run_id)
        if asyncio._get_running_loop() is not self.loop:
            message = f"`{request.kind}` was called outside the code of run `{self.run_id}`"
            raise OutsideRunError(f"{message}; steps and threads cannot make durable calls of their run")
        if len(self.calls) >= CALLS_OPEN_MAX:
            raise UsageError(
                f"more than {CALLS_OPEN_MAX} durable calls are open at once; gather in smaller groups"
            )
        if request.size_bytes > self.driver.payload_bytes_max:
            raise too_large(request.size_bytes, self.driver.payload_bytes_max)
        number = self.next_call
        self.next_call += 1
        open_call = self.calls[number] = OpenCall(self, number, request, self.seen_ms)
        if self.is_live:
            self.driver.launch(self, open_call)
        return open_call.future

    @property
    def visible_id(self) -> str:
        """The run's id; up to the point where it was forked off, the id of the run that it was then."""
        return self.names[0]

    def now_ms(self) -> int:
        """The time of the entry delivered last."""
        return self.seen_ms

    def chance(self, bits: int) -> int:
        """Bits from the run's own seeded generator."""
        return self.random.getrandbits(bits)

    def patched(self, name: str) -> bool:
        """True if the journal has the patch, or nothing that was recorded came after this point."""
        if name not in self.patches:
            self.patches[name] = self.seen >= self.frontier
            if self.patches[name]:
                self.driver.record_patch(self, name)
        return self.patches[name]

    def emit(self, kind: str, data: Any) -> None:
        """Show something to live watchers, unless this is a replay."""
        if self.is_live:
            self.driver.show(self, kind, data)

    def give_up(self, open_call: OpenCall) -> None:
        """The agent cancelled a call."""
        if not self.is_closed and self.calls.pop(open_call.number, None) is not None:
            self.given_up[open_call.number] = open_call
            self.driver.drop_call(self, open_call)

    def adopt(self, request: Request) -> OpenCall:
        """Number a call that a hosted program made: outside the run's code, but in its journal."""
        if len(self.calls) >= CALLS_OPEN_MAX:
            raise UsageError(f"more than {CALLS_OPEN_MAX} calls of run `{self.run_id}` are open at once")
        number = self.next_call
        self.next_call += 1
        open_call = self.calls[number] = OpenCall(self, number, request, self.seen_ms)
        return open_call

    # -- the engine's side
    def begin(self, journal: list[e.AnyEntry]) -> None:
        """Start the agent and replay its journal up to the frontier.

        Raises:
            ReplayError: the agent made other calls than those recorded.
        """
        self.patches = {entry.name: True for entry in journal if isinstance(entry, e.PatchApplied)}
        self.names = [*(entry.origin for entry in journal if isinstance(entry, e.RunForked)), self.run_id]
        self.frontier = max((entry.seq for entry in journal if isinstance(entry, _OF_CODE)), default=0)
        started = journal[0]
        if not isinstance(started, e.RunStarted):
            raise ReplayError("the journal does not begin with `RunStarted`")
        self.seq, self.at_ms = journal[-1].seq, journal[-1].at_ms
        self._see(started)
        self._start(started)
        self._replay(journal[1:])

    def _replay(self, entries: Sequence[e.AnyEntry]) -> None:
        self.loop.drain()
        for entry in entries:
            self._apply(entry)
            self.loop.drain()
        self.is_live = True

    def go_live(self) -> None:
        """Begin every call that has no recorded end; of given-up calls, and after the agent's end, what was dispatched."""
        is_over = self.main is None or self.main.done()
        for open_call in [*self.calls.values(), *self.given_up.values()]:
            is_dispatched = open_call.intent is not None and isinstance(open_call.request, ActCall)
            if is_dispatched or (open_call.number in self.calls and not is_over):
                self.driver.launch(self, open_call)

    def _start(self, started: e.RunStarted) -> None:
        self.random.seed(started.chance)
        own = Principal(kind="agent", name=self.agent.name, run=self.run_id, groups=self.agent.roles)
        self.principals = (own, *started.principals)
        if self.memory is not None:
            is_hosted = self.agent.program is not None
            self.memory.begin(
                self.run_id, self.agent.name, started, self.driver.bytes_of, is_hosted=is_hosted
            )
        args, kwargs = self.agent.parameters.read_input(self.driver.bytes_of(started.input))
        self._run_code(started, args, kwargs)

    def _run_code(self, started: e.RunStarted, args: list[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG002 - where it runs elsewhere it needs more
        handler = self.agent.handler
        if handler is None:
            raise DefinitionError(f"agent `{self.agent.name}` has no code")
        context: Context = copy_context()
        run = Run(self)
        context.run(enter_run, run)
        self.main = context.run(self.loop.create_task, handler(run, *args, **kwargs), context=context)  # type: ignore[arg-type]

    def deliver(self, entry: e.Entry) -> bool:
        """Take an entry that is durable now; whether the agent should be pumped."""
        self.buffer[entry.seq] = entry
        return (self.seen + 1) in self.buffer and not self.is_pumping

    def pump(self) -> None:
        """Give the agent the entries that are there, in order, one at a time."""
        self.is_pumping = True
        try:
            while not self.is_closed and (entry := self.buffer.pop(self.seen + 1, None)) is not None:
                self._apply(entry)
                self.loop.drain()
        finally:
            self.is_pumping = False

    def _see(self, entry: e.Entry) -> None:
        self.seen = entry.seq
        self.seen_ms = entry.at_ms
        self.loop.now_s = entry.at_ms / 1000

    def _apply(self, entry: e.Entry) -> None:
        self._see(entry)
        match entry:
            case e.CallEntry():
                self._apply_call(entry)
            case e.TimerFired(timer=timer):
                if not self.loop.fire(timer):
                    raise mismatch(self.run_id, entry, f"timer {timer}", "fewer timers")
            case e.CancelRequested():
                self.cancel = entry
                if self.main is not None:
                    self.main.cancel(entry.reason)
            case e.RunParked(waits=waits):
                self._check_waits(entry, waits)
                self.parked_at = (entry.seq, waits)
            case e.RunForked(chance=chance):
                self.random.seed(chance)
                self.names.pop(0)
                self.cancel = None
            case e.ToolsPinned(digests=digests):
                self.pins = digests
            case e.RunCompleted() | e.RunFailed() | e.RunCancelled():
                raise mismatch(self.run_id, entry, "the end of the run", "an agent that goes on")
            case _:
                pass

    def _apply_call(self, entry: e.CallEntry) -> None:
        is_note = isinstance(entry, e.NOTES)
        open_call = self.calls.get(entry.call) if is_note else self.calls.pop(entry.call, None)
        given_up = open_call is None
        if open_call is None:
            open_call = self.given_up.get(entry.call) if is_note else self.given_up.pop(entry.call, None)
        if open_call is None and self.agent.program is not None and entry.kind == ActCall.kind:
            open_call = self._adopted(entry)
            if open_call is None:
                return
        expected = f"{entry.kind} `{entry.name}` {entry.digest}".rstrip()
        if open_call is None:
            raise mismatch(self.run_id, entry, expected, "no such call")
        request = open_call.request
        if (request.kind, request.name, request.digest) != (entry.kind, entry.name, entry.digest):
            raise mismatch(
                self.run_id, entry, expected, f"{request.kind} `{request.name}` {request.digest}".rstrip()
            )
        if self.memory is not None:
            self.memory.see(entry, self.driver.bytes_of)
        if is_note:
            self.has_acted = self.has_acted or entry.kind == ActCall.kind
            note(open_call, entry)
        elif given_up:
            if isinstance(entry, e.MessageReceived) and entry.message is not None:
                self.stash.setdefault(entry.name, deque()).append(entry)
        else:
            if isinstance(entry, e.MessageReceived) and (kept := self.stash.get(entry.name)):
                self.stash[entry.name] = deque(old for old in kept if old.message != entry.message)
            self._resolve(open_call, entry)

    def _adopted(self, entry: e.CallEntry) -> OpenCall | None:
        """The call of a hosted program that a recorded intent tells of; nobody else will make it on replay."""
        self.next_call = max(self.next_call, entry.call + 1)
        if not isinstance(entry, e.ActionIntended | e.ActionHeld):
            return None
        data = self.driver.bytes_of(entry.request)
        request = ActCall(entry.name, entry.digest, bytes, entry.what, data, entry.endpoint)
        open_call = self.calls[entry.call] = OpenCall(self, entry.call, request, self.seen_ms)
        return open_call

    def _resolve(self, open_call: OpenCall, entry: e.CallEntry) -> None:
        future = open_call.future
        if entry.kind == ActCall.kind:
            self.has_acted = True
            tell_end(open_call, entry)
            if self.agent.program is not None:  # its caller is outside the run's code
                future.set_result(None)
                return
        try:
            value = value_of(entry, open_call.request.read, self.driver.bytes_of)
        except (ValueError, InputInvalidError) as error:
            message = f"what is recorded for call {entry.call} does not fit its type any more: {error}"
            raise ReplayError(message, expected=str(error), found=entry.name, seq=entry.seq) from error
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    def _check_waits(self, entry: e.RunParked, waits: tuple[e.Wait, ...]) -> None:
        for wait in waits:
            if wait.kind == "timer":
                continue
            open_call = self.calls.get(wait.call) or self.given_up.get(wait.call)
            found = (
                "no such call"
                if open_call is None
                else f"{open_call.request.kind} `{open_call.request.name}`"
            )
            expected = f"{wait.kind} `{wait.name}`"
            if found != expected or (open_call and open_call.request.digest != wait.digest):
                raise mismatch(self.run_id, entry, expected, found)

    def labelled(self, payload: Payload, data: bytes, names: Collection[str] = ()) -> Payload:
        """A value that leaves the run for another one (with these parameters), with where its parts come from if that is tracked."""
        seen = None if self.memory is None else self.memory.seen
        return (
            payload if seen is None else msgspec.structs.replace(payload, labels=seen.labels_of(data, names))
        )

    def labelled_failure(self, failure: e.Failure) -> e.Failure:
        """Why the run failed, with where its words come from: the agent may have put anything into them."""
        seen = None if self.memory is None else self.memory.seen
        if seen is None:
            return failure
        return msgspec.structs.replace(failure, labels=seen.labels_of(msgspec.json.encode(failure.message)))

    # -- what is open
    def waits(self) -> list[OpenCall]:
        """Open calls that only wait, in call order."""
        acts = [call for call in self.given_up.values() if isinstance(call.request, ActCall)]
        return [call for call in (*self.calls.values(), *acts) if is_wait(call)]

    def let_go_of_held(self) -> None:
        """Nobody waits for held acts any more: the run may be parked, and a decision takes them up from the journal."""
        for call in self.calls.values():
            if call.held and call.task is not None:
                call.task.cancel()
                call.task = None

    def suspended(self) -> list[OpenCall]:
        """Programs that were stopped until a decision."""
        return [call for call in self.calls.values() if call.is_suspended]

    def is_acting(self) -> bool:
        """Whether something of the run is on its way in the world."""
        found = (*self.calls.values(), *self.given_up.values())
        return any(
            isinstance(call.request, ActCall) and call.task is not None and not call.task.done()
            for call in found
        )

    def next_due_ms(self) -> int | None:
        """When the next wait or timer ends by itself."""
        dues = [due for call in self.waits() if (due := call.wait_due_ms) is not None]
        dues += [round(timer.when() * 1000) for timer in self.loop.timers.values()]
        if self.deadline_ms is not None and self.cancel is None:
            dues.append(self.deadline_ms)
        return min(dues, default=None)

    def rest(self) -> None:
        """Wait in memory: something in the store wakes it."""
        self.is_parked = True

    def close(self) -> None:
        """Leave memory: the agent's code stops where it is and can do nothing durable any more."""
        self.is_closed = True
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        for open_call in (*self.calls.values(), *self.given_up.values()):
            if open_call.task is not None:
                open_call.task.cancel()
            tell_gone(open_call)
            if not open_call.future.done():
                open_call.future.set_exception(Suspended(self.run_id))
        self.loop.abandon()
        self.calls.clear()
        self.given_up.clear()
        self.main = None


_OF_CODE = (e.CallEntry, e.TimerFired, e.RunParked, e.CancelRequested)
