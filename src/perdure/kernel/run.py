"""The run machine: ``fold`` makes a run's state from its journal, ``decide`` says what comes next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from perdure.core.entries import (
    NOTES,
    AnyEntry,
    CallEntry,
    CancelRequested,
    Entry,
    Failure,
    PatchApplied,
    QuestionAsked,
    RunBlocked,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunMigrated,
    RunParked,
    RunRecovered,
    RunStarted,
    RunUnblocked,
    StepRetried,
    Wait,
)
from perdure.core.errors import invariant
from perdure.core.records import Status
from perdure.core.values import Payload


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as its journal tells it. ``status`` never says pending or queued: those are the store's to say."""

    seq: int = 0
    at_ms: int = 0
    status: Status = Status.RUNNING
    started: RunStarted | None = None
    version: str = ""
    calls: frozenset[int] = field(default_factory=frozenset)
    retries: tuple[StepRetried, ...] = ()
    questions: tuple[QuestionAsked, ...] = ()
    patches: frozenset[str] = field(default_factory=frozenset)
    waits: tuple[Wait, ...] = ()
    recoveries: int = 0
    cancel: CancelRequested | None = None
    result: Payload | None = None
    error: Failure | None = None


# -- commands: what an engine must do with a run that it has claimed ------------------------------
@dataclass(frozen=True, slots=True)
class Drive:
    """Run the agent: replay what is recorded, go on from there."""


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Record that the agent must stop, then drive it."""

    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Block:
    """Record that an operator must decide."""

    error: Failure
    expected: str = ""
    found: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """Do nothing: the run has ended or is blocked."""


Command = Drive | RequestCancel | Block | Leave


@dataclass(frozen=True, slots=True)
class Rules:
    """What ``decide`` needs to know of the worker: its version of the agent and its limits."""

    version: str
    recoveries_max: int
    migrate: bool = False


def fold(entries: Iterable[AnyEntry], state: RunState | None = None) -> RunState:
    """The state after ``entries``, from nothing or from an earlier state.

    Raises:
        BrokenInvariantError: the journal has a gap, goes back in time, or goes on after its end.
    """
    state = state or RunState()
    calls = set(state.calls)
    retries = {entry.call: entry for entry in state.retries}
    questions = {entry.call: entry for entry in state.questions}
    for entry in entries:
        _check_order(state, entry)
        if isinstance(entry, StepRetried):
            retries[entry.call] = entry
        elif isinstance(entry, QuestionAsked):
            questions[entry.call] = entry
        elif isinstance(entry, NOTES):
            pass
        elif isinstance(entry, CallEntry):
            invariant(entry.call not in calls, f"call {entry.call} ended twice", seq=entry.seq)
            calls.add(entry.call)
            retries.pop(entry.call, None)
            questions.pop(entry.call, None)
        state = _fold_life(state, entry)
    return replace(
        state, calls=frozenset(calls), retries=tuple(retries.values()), questions=tuple(questions.values())
    )


def _check_order(state: RunState, entry: Entry) -> None:
    invariant(entry.seq == state.seq + 1, f"entry {entry.seq} follows entry {state.seq}", seq=entry.seq)
    invariant(entry.at_ms >= state.at_ms, f"entry {entry.seq} is earlier than the one before", seq=entry.seq)
    invariant(not state.status.is_ended, f"entry {entry.seq} follows the end of the run", seq=entry.seq)
    first = isinstance(entry, RunStarted)
    invariant(first == (entry.seq == 1), "a journal begins with one RunStarted", seq=entry.seq)


def _fold_life(state: RunState, entry: Entry) -> RunState:
    """The state after one entry, but for its open and ended calls."""
    status, recoveries = Status.RUNNING, 0
    changed: dict[str, object] = {}
    match entry:
        case RunStarted():
            changed = {"started": entry, "version": entry.version}
        case RunMigrated(version=version):
            changed = {"version": version}
        case RunForked():
            changed = {"cancel": None}
        case RunRecovered():
            recoveries = state.recoveries + 1
        case RunParked(waits=waits):
            status = Status.WAITING
            changed = {"waits": waits}
        case CancelRequested():
            changed = {"cancel": entry}
        case PatchApplied(name=name):
            changed = {"patches": state.patches | {name}}
        case RunCompleted(result=result):
            status = Status.COMPLETED
            changed = {"result": result}
        case RunFailed(error=error):
            status = Status.FAILED
            changed = {"error": error}
        case RunCancelled(reason=reason):
            status = Status.CANCELLED
            changed = {"error": Failure(code="run-cancelled", message=reason)}
        case RunBlocked(error=error):
            status = Status.BLOCKED
            changed = {"error": error}
        case RunUnblocked():
            changed = {"error": None}
    if not isinstance(entry, RunParked):
        changed["waits"] = ()
    return replace(state, seq=entry.seq, at_ms=entry.at_ms, status=status, recoveries=recoveries, **changed)  # type: ignore[arg-type]


def decide(state: RunState, now_ms: int, rules: Rules) -> Command:
    """What a worker that holds the run's lease does next."""
    if state.status.is_ended or state.status is Status.BLOCKED:
        return Leave()
    if state.recoveries >= rules.recoveries_max:
        message = (
            f"the run was in flight at {state.recoveries} crashes of its worker in a row; "
            "look at the agent's last call, then `perdure runs resume` or `runs cancel`"
        )
        return Block(Failure(code="run-quarantined", message=message))
    if rules.version != state.version and not rules.migrate:
        message = (
            f"the run was started by version `{state.version}` of its agent and this worker has `{rules.version}`; "
            "deploy the old version, or `perdure runs resume --migrate` to go on with the new one"
        )
        return Block(Failure(code="agent-changed", message=message), state.version, rules.version)
    deadline_ms = state.started.deadline_ms if state.started else None
    if deadline_ms is not None and now_ms >= deadline_ms and state.cancel is None:
        return RequestCancel(reason="the deadline passed", code="deadline-exceeded")
    return Drive()


def outcome(state: RunState) -> tuple[Status, Payload | None, Failure | None]:
    """How an ended run ended: its status, its result, its error."""
    return state.status, state.result, state.error
