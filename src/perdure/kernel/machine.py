"""The states of a run and the transitions between them: one table, from which the diagram in the docs is drawn."""

from __future__ import annotations

from perdure.core.errors import invariant
from perdure.core.records import Status

S = Status

#: (event, states in which it may happen, state after it). Every change of a run's status is a row here.
TRANSITIONS: tuple[tuple[str, frozenset[Status], Status], ...] = (
    ("turn", frozenset({S.PENDING}), S.QUEUED),  # the session's earlier runs have ended
    ("claim", frozenset({S.QUEUED}), S.RUNNING),  # a worker takes the lease
    ("park", frozenset({S.RUNNING}), S.WAITING),  # nothing to do until a message, timer, child or answer
    ("wake", frozenset({S.WAITING}), S.QUEUED),  # one of them came
    ("release", frozenset({S.RUNNING}), S.QUEUED),  # the worker drains, died or lost its lease
    ("block", frozenset({S.RUNNING, S.QUEUED}), S.BLOCKED),  # an operator must decide
    ("unblock", frozenset({S.BLOCKED}), S.QUEUED),  # an operator decided
    ("complete", frozenset({S.RUNNING}), S.COMPLETED),
    ("fail", frozenset({S.RUNNING}), S.FAILED),
    ("cancel", frozenset({S.PENDING, S.QUEUED, S.RUNNING, S.BLOCKED}), S.CANCELLED),
)
_AFTER = {(before, event): after for event, befores, after in TRANSITIONS for before in befores}


def transition(status: Status, event: str) -> Status:
    """The state after ``event``.

    Raises:
        BrokenInvariantError: the event cannot happen in ``status``.
    """
    after = _AFTER.get((status, event))
    invariant(after is not None, f"a run that is {status} cannot {event}", status=status, event=event)
    assert after is not None  # noqa: S101 - for the type checker; the line above decides
    return after


def is_allowed(status: Status, event: str) -> bool:
    """Whether ``event`` may happen to a run in ``status``."""
    return (status, event) in _AFTER


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued: start", "    [*] --> pending: start (session busy)"]
    for event, befores, after in TRANSITIONS:
        lines += [f"    {before} --> {after}: {event}" for before in sorted(befores)]
    lines += [f"    {ended} --> [*]" for ended in ("completed", "failed", "cancelled")]
    return "\n".join(lines)
