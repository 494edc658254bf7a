"""Open calls: durable calls of a run in memory that have not ended, and what a run needs of its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from perdure.agents.requests import WAITS, ActCall, ProgramCall, Request
from perdure.core import entries as e
from perdure.core.actions import ActionState
from perdure.core.errors import ReplayError, RunEndedError
from perdure.core.values import Payload

if TYPE_CHECKING:
    from perdure.engines.embedded.host import Host


class Driver(Protocol):
    """What a host needs of its engine."""

    payload_bytes_max: int

    def launch(self, host: Host, open_call: OpenCall) -> None:
        """Begin to work on a call; its end comes back as an entry."""
        ...

    def drop_call(self, host: Host, open_call: OpenCall) -> None:
        """The agent gave up on a call: stop working on it."""
        ...

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload, fetched if it is a blob."""
        ...

    def show(self, host: Host, kind: str, data: Any) -> None:
        """Pass something on to live watchers."""
        ...

    def record_patch(self, host: Host, name: str) -> None:
        """Append ``PatchApplied``."""
        ...

    def wall_ms(self) -> int:
        """The time of day."""
        ...


class CallFuture(asyncio.Future[Any]):
    """The future of a durable call; tells the host when the agent gives it up."""

    open_call: OpenCall

    def cancel(self, msg: Any | None = None) -> bool:
        """Give the call up."""
        cancelled = super().cancel(msg)
        if cancelled:
            self.open_call.host.give_up(self.open_call)
        return cancelled


class OpenCall:
    """A durable call that has not ended."""

    __slots__ = (
        "asked",
        "attempt",
        "decided",
        "doubt",
        "due_ms",
        "ended",
        "failures",
        "future",
        "held",
        "host",
        "intent",
        "is_decided",
        "is_recording",
        "is_suspended",
        "number",
        "request",
        "since_ms",
        "task",
        "told",
    )

    def __init__(self, host: Host, number: int, request: Request, since_ms: int) -> None:
        self.host = host
        self.number = number
        self.request = request
        self.since_ms = since_ms
        self.future = CallFuture(loop=host.loop)
        self.future.open_call = self
        self.task: asyncio.Task[None] | None = None
        self.attempt = 0
        self.asked = False
        self.is_recording = False  # its end is on its way into the journal: too late to give it up
        self.due_ms: int | None = None
        # Of an action: where it is, and who in this process waits for what becomes of it.
        self.intent: e.ActionIntended | e.ActionHeld | None = None
        self.held = False
        self.doubt = False
        self.is_decided = False  # decided in this life that it goes on: since then nothing was dispatched
        self.failures = 0  # of a program: exits in a row without a new call in between
        self.is_suspended = False  # of a program: stopped until a decision about one of its actions
        self.ended: asyncio.Future[e.CallEntry] | None = None
        self.decided: asyncio.Future[e.CallEntry] | None = None
        self.told: Callable[[ActionState], None] | None = None

    @property
    def wait_due_ms(self) -> int | None:
        """Until when a waiting call waits."""
        if self.due_ms is not None:
            return self.due_ms
        if self.held and isinstance(self.intent, e.ActionHeld):
            return self.intent.due_ms
        span = getattr(self.request, "ms", None)
        span = getattr(self.request, "timeout_ms", None) if span is None else span
        return None if span is None else self.since_ms + span


def is_wait(call: OpenCall) -> bool:
    """Whether only time or the store can end a call (a step between two attempts waits too)."""
    if isinstance(call.request, ActCall):
        return call.held or call.doubt
    if isinstance(call.request, ProgramCall) and call.is_suspended:
        return call.task is None
    return isinstance(call.request, WAITS) or (call.due_ms is not None and call.task is None)


def note(open_call: OpenCall, entry: e.Entry) -> None:
    """Take in an entry about a call that stays open."""
    if isinstance(entry, e.StepRetried):
        open_call.attempt = entry.attempt
        open_call.due_ms = entry.due_ms
    elif isinstance(entry, e.QuestionAsked):
        open_call.asked = True
    elif isinstance(entry, e.ActionIntended | e.ActionHeld):
        open_call.intent = entry
        open_call.held = isinstance(entry, e.ActionHeld)
        _tell(open_call, ActionState.HELD if open_call.held else ActionState.INTENDED)
    elif isinstance(entry, e.ActionDoubted):
        open_call.doubt = True
        _tell(open_call, ActionState.UNKNOWN)
    elif isinstance(entry, e.ActionDecided):
        open_call.held = open_call.doubt = False
        if open_call.decided is not None and not open_call.decided.done():
            open_call.decided.set_result(entry)
        _tell(open_call, ActionState.INTENDED)
    elif isinstance(entry, e.ProgramStarted):
        open_call.attempt, open_call.due_ms, open_call.is_suspended = entry.attempt, None, False
    elif isinstance(entry, e.ProgramExited):
        open_call.due_ms = entry.due_ms
    elif isinstance(entry, e.ProgramSuspended):
        open_call.is_suspended = True


def tell_end(open_call: OpenCall, entry: e.CallEntry) -> None:
    """An action has ended: tell whoever waits for it."""
    for future in (open_call.decided, open_call.ended):
        if future is not None and not future.done():
            future.set_result(entry)


def tell_gone(open_call: OpenCall) -> None:
    """The run leaves memory: whoever waits for its action must ask again."""
    for future in (open_call.decided, open_call.ended):
        if future is not None and not future.done():
            future.set_exception(RunEndedError(f"run `{open_call.host.run_id}` is not in memory any more"))
            future.exception()  # nobody may be left to look at it


def mismatch(run: str, entry: e.Entry, expected: str, found: str) -> ReplayError:
    """The code made another call than the one that is recorded."""
    call = getattr(entry, "call", None)
    where = f"entry {entry.seq}" + (f" (call {call})" if call is not None else "")
    message = (
        f"{where} of run `{run}` records {expected}, but the agent made {found}; "
        "its code changed: guard the change with `run.patched(...)`, or deploy the old code"
    )
    return ReplayError(message, expected=expected, found=found, seq=entry.seq)


def _tell(open_call: OpenCall, state: ActionState) -> None:
    if open_call.told is not None:
        open_call.told(state)
