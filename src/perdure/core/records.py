"""Rows that a store keeps beside the journals: runs, messages, questions, schedules."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

import msgspec

from perdure.core.values import Payload


class Status(StrEnum):
    """Where a run is in its life; the table of transitions is ``perdure.kernel.machine``."""

    PENDING = "pending"  # waits until the runs of its session that came before it have ended
    QUEUED = "queued"  # can go on as soon as a worker has room
    RUNNING = "running"  # a worker holds its lease
    WAITING = "waiting"  # parked: waits for a message, a timer, a child or an answer
    BLOCKED = "blocked"  # an operator must decide
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self in ENDED


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
Conflict = Literal["enqueue", "reject", "interrupt"]


def statuses(
    want: Status | Literal["unfinished"] | Sequence[Status] | None,
) -> tuple[Status, ...] | None:
    """The statuses that somebody asks for; ``None`` means any."""
    if want == "unfinished":
        return tuple(item for item in Status if not item.is_ended)
    if want is None:
        return None
    return (Status(want),) if isinstance(want, str) else tuple(Status(item) for item in want)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One row about a run. The journal tells what happened; the row tells who may go on with it, and when."""

    id: str
    agent: str
    status: Status
    created_ms: int
    session: str | None = None
    idempotency_key: str | None = None
    parent: str | None = None
    priority: int = 0
    fence: int = 0
    worker: str | None = None
    seq: int = 0
    ready_ms: int = 0
    wake_ms: int | None = None
    deadline_ms: int | None = None
    recoveries: int = 0
    cancel_reason: str | None = None
    cancel_code: str | None = None
    code: str | None = None
    ended_ms: int | None = None


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a mailbox. ``id`` grows in the order of acceptance."""

    id: int
    run: str
    topic: str
    body: Payload
    sender: str = ""
    sent_ms: int = 0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """An open question of a run to a human."""

    run: str
    call: int
    agent: str
    question: Payload
    asked_ms: int
    due_ms: int | None = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Starts a run of ``agent`` at each time of a cron expression in a time zone."""

    name: str
    agent: str
    cron: str
    timezone: str
    input: Payload
    next_ms: int


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to list; ``None`` means any. ``before`` is the id of the last run of the page before."""

    agent: str | None = None
    status: tuple[Status, ...] | None = None
    session: str | None = None
    parent: str | None = None
    before: str | None = None
    limit: int = 100
