"""In the worker process: one run's code on its deterministic loop. Implements ``Calls`` by frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

import msgspec

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.agents.requests import Request, StepCall
from perdure.agents.run import Run, enter_run
from perdure.core import entries as e
from perdure.core.errors import InputInvalidError, OutsideRunError, Suspended, UsageError
from perdure.core.limits import ERROR_TEXT_MAX
from perdure.core.values import too_large
from perdure.engines.embedded.attempts import attempt, failure_of, is_final
from perdure.engines.embedded.loop import RunLoop, _Timer
from perdure.engines.isolated import wire
from perdure.engines.isolated.calls import call_of, value_for

log = logging.getLogger("perdure.worker")


class GuestLoop(RunLoop):
    """Tells which timers the code sets and stops."""

    def __init__(self, did: Callable[[wire.Did], None]) -> None:
        super().__init__()
        self._did = did

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run at a time, durably."""
        timer = super().call_at(when, callback, *args, context=context)
        if isinstance(timer, _Timer) and timer.number:
            self._did(wire.Timer(timer=timer.number, due_ms=round(when * 1000)))
        return timer

    def _timer_handle_cancelled(self, handle: _Timer) -> None:
        if self.timers.pop(handle.number, None) is not None:
            self._did(wire.TimerStopped(timer=handle.number))


class GuestFuture(asyncio.Future[Any]):
    """The future of a durable call; tells when the code gives it up."""

    number: int
    guest: Guest

    def cancel(self, msg: Any | None = None) -> bool:
        """Give the call up."""
        cancelled = super().cancel(msg)
        if cancelled:
            self.guest.give_up(self.number)
        return cancelled


class Guest:
    """One run in a worker process.

    Args:
        start: how it begins.
        agent: its definition.
        send: sends a frame.
        limits: what the runtime said in its welcome.
    """

    def __init__(
        self, start: wire.Start, agent: Agent, send: Callable[[Any], None], limits: wire.Welcome
    ) -> None:
        self.number = start.run
        self.agent = agent
        self.loop = GuestLoop(self._did)  # type: ignore[abstract]
        self.calls: dict[int, tuple[Request, GuestFuture]] = {}
        self.steps: dict[int, StepCall] = {}
        self.attempts: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.is_closed = False
        self._id = start.id
        self._session = start.session
        self._send = send
        self._limits = limits
        self._start = start
        self._seen, self._seen_ms = start.seq, start.at_ms
        self._patches = set(start.patches)
        self._new_patches: dict[str, bool] = {}
        self._next = 1
        self._do: list[wire.Did] = []
        self._size = 0
        self._has_told_end = False
        self._main: asyncio.Task[Any] | None = None
        self._random = random.Random(start.chance)  # noqa: S311 - seeded from the journal, for replay, not for secrets

    # -- port ``Calls``
    @property
    def visible_id(self) -> str:
        """The run's id, as its code sees it."""
        return self._id

    @property
    def session(self) -> str | None:
        """The key of the run's session."""
        return self._session

    def issue(self, request: Request) -> asyncio.Future[Any]:
        """Give the call the next number, now."""
        if self.is_closed:
            raise Suspended(self._id)
        if asyncio._get_running_loop() is not self.loop:
            message = f"`{request.kind}` was called outside the code of run `{self._id}`"
            raise OutsideRunError(f"{message}; steps and threads cannot make durable calls of their run")
        most = self._limits.calls_open_max
        if len(self.calls) >= most:
            raise UsageError(f"more than {most} durable calls are open at once; gather in smaller groups")
        if request.size_bytes > self._limits.payload_bytes_max:
            raise too_large(request.size_bytes, self._limits.payload_bytes_max)
        frame = call_of(self._next, request)
        future = GuestFuture(loop=self.loop)
        future.guest, future.number = self, self._next
        self.calls[self._next] = (request, future)
        if isinstance(request, StepCall):
            self.steps[self._next] = request
        self._next += 1
        self._did(frame)
        return future

    def now_ms(self) -> int:
        """The time of the last thing that the run saw."""
        return self._seen_ms

    def chance(self, bits: int) -> int:
        """Bits from the run's own seeded generator."""
        return self._random.getrandbits(bits)

    def patched(self, name: str) -> bool:
        """True if the journal has the patch, or nothing that was recorded came after this point."""
        if name in self._patches:
            return True
        if name not in self._new_patches:
            is_new = self._new_patches[name] = self._seen >= self._start.frontier
            if is_new:
                self._did(wire.Patch(name=name))
        return self._new_patches[name]

    def emit(self, kind: str, data: Any) -> None:
        """Show something to live watchers; the runtime leaves out what is only repeated."""
        self._did(wire.Show(kind=kind, data=msgspec.Raw(to_json(data))))

    def give_up(self, number: int) -> None:
        """The code cancelled a call."""
        self.steps.pop(number, None)
        if not self.is_closed and self.calls.pop(number, None) is not None:
            self._did(wire.GiveUp(call=number))

    # -- events
    def begin(self) -> None:
        """Start the code."""
        handler = self.agent.handler
        start = self._start
        self.loop.now_s = start.at_ms / 1000
        if handler is None:
            raise UsageError(f"agent `{self.agent.name}` has no code")
        args, kwargs = self.agent.parameters.read_input(bytes(start.input))
        context = copy_context()
        run = Run(self)
        context.run(enter_run, run)
        self._main = context.run(self.loop.create_task, handler(run, *args, **kwargs), context=context)  # type: ignore[arg-type]
        self._drained(start.seq)

    def take(self, event: wire.Answer | wire.Fired | wire.Cancel | wire.Forked) -> None:
        """Take an event in, and tell what the code did then."""
        self._seen, self._seen_ms = event.seq, event.at_ms
        self.loop.now_s = event.at_ms / 1000
        match event:
            case wire.Answer():
                self._answer(event)
            case wire.Fired(timer=timer):
                self.loop.fire(timer)
            case wire.Cancel(reason=reason):
                if self._main is not None:
                    self._main.cancel(reason)
            case wire.Forked(id=name, chance=chance):
                self._id = name
                self._random.seed(chance)
        self._drained(event.seq)

    def _answer(self, answer: wire.Answer) -> None:
        found = self.calls.pop(answer.call, None)
        self.steps.pop(answer.call, None)
        if found is None:
            return  # given up
        request, future = found
        try:
            value = value_for(request, answer)
        except (ValueError, InputInvalidError) as error:
            self._send(wire.Unreadable(run=self.number, call=answer.call, message=str(error)))
            self.close()
            return
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    def _drained(self, seq: int) -> None:
        try:
            self.loop.drain()
        except SystemExit:
            log.warning("agent `%s` raised SystemExit; it ends its run, not the process", self.agent.name)
        if self.is_closed:
            return
        main = self._main
        if main is not None and main.done() and not self._has_told_end:
            self._has_told_end = True
            self._did(self._end(main))
        done, self._do, self._size = tuple(self._do), [], 0
        self._send(wire.Ran(run=self.number, seq=seq, do=done))

    def _did(self, item: wire.Did) -> None:
        if self.is_closed:
            return
        self._do.append(item)
        self._size += wire.size_of(item)
        if self._size > wire.BATCH_BYTES:
            done, self._do, self._size = tuple(self._do), [], 0
            self._send(wire.Do(run=self.number, do=done))

    def _end(self, main: asyncio.Task[Any]) -> wire.Did:
        if main.cancelled():
            return wire.Cancelled()
        error = main.exception()
        if error is not None:
            _die_of_memory(error)
            is_stop = isinstance(error, TimeoutError | asyncio.CancelledError)
            return wire.Error(error=_problem(failure_of(error, "agent-failed")), is_stop=is_stop)
        try:
            data = to_json(main.result())
        except InputInvalidError as problem:
            text = f"the result of agent `{self.agent.name}` does not fit: {problem.message}"
            return wire.Error(error=wire.Problem("result-invalid", text[:ERROR_TEXT_MAX]))
        if len(data) > self._limits.payload_bytes_max:
            text = f"the result of agent `{self.agent.name}` does not fit: "
            text += too_large(len(data), self._limits.payload_bytes_max).message
            return wire.Error(error=wire.Problem("payload-too-large", text[:ERROR_TEXT_MAX]))
        return wire.Result(value=msgspec.Raw(data))

    # -- steps
    def begin_step(self, frame: wire.StepBegin, mark: Callable[[Any, int], Any]) -> None:
        """Make an attempt, beside everything else."""
        call = self.steps.get(frame.call)
        if call is None:
            return  # given up on the way
        key = (frame.call, frame.attempt)
        task = asyncio.get_running_loop().create_task(mark(self._attempt(call, frame), self.number))
        self.attempts[key] = task
        task.add_done_callback(lambda _: self.attempts.pop(key, None))

    async def _attempt(self, call: StepCall, frame: wire.StepBegin) -> None:
        common: dict[str, Any] = {"run": self.number, "call": frame.call, "attempt": frame.attempt}
        try:
            data = await attempt(call.step, call.arguments, asyncio.to_thread)
            if len(data) > self._limits.payload_bytes_max:
                raise too_large(len(data), self._limits.payload_bytes_max)
        except SystemExit:
            os._exit(1)  # at once: the loop's own way waits for threads
        except Exception as error:  # noqa: BLE001 - the step's own error: recorded, and raised in the agent
            _die_of_memory(error)
            failure = failure_of(error, "step-failed")
            ended = wire.StepEnd(**common, error=_problem(failure), is_final=is_final(error, call.step))
        else:
            ended = wire.StepEnd(**common, value=msgspec.Raw(data))
        if not self.is_closed:
            self._send(ended)

    def cancel_step(self, frame: wire.StepCancel) -> None:
        """Nobody waits for an attempt any more."""
        task = self.attempts.get((frame.call, frame.attempt))
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Forget the run: its code stops where it is and can do nothing durable any more."""
        if self.is_closed:
            return
        self.is_closed = True
        for task in list(self.attempts.values()):
            task.cancel()
        for _, future in list(self.calls.values()):
            if not future.done():
                future.set_exception(Suspended(self._id))
        with contextlib.suppress(Exception):
            self.loop.abandon()
        self.calls.clear()
        self.steps.clear()
        self._main = None


def _problem(failure: e.Failure) -> wire.Problem:
    return wire.Problem(failure.code, failure.message, failure.type)


def _die_of_memory(error: BaseException) -> None:
    """Where memory has run out nothing can be trusted to go on: the runtime starts another worker."""
    if isinstance(error, MemoryError):
        os._exit(OUT_OF_MEMORY)


OUT_OF_MEMORY = 77  # the exit code that says so
