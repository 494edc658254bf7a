"""Rows and entries that the store suite writes."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core import entries as e
from perdure.core.records import RunRecord, Status
from perdure.core.values import NULL, Payload
from perdure.ports import Transaction

SENT: dict[str, Any] = {"sender": "s", "now_ms": 5, "key": None}  # what is known of a message


def text(value: str) -> Payload:
    """A small payload."""
    return Payload(inline=msgspec.Raw(msgspec.json.encode(value)))


def row(run: str, status: Status = Status.QUEUED, **fields: Any) -> RunRecord:
    """The row of a run that was just accepted."""
    return RunRecord(
        **{"id": run, "agent": "a", "status": status, "created_ms": 1, "seq": 1, "ready_ms": 1, **fields}
    )


def first(**fields: Any) -> e.RunStarted:
    """The first entry of a journal."""
    return e.RunStarted(seq=1, at_ms=1, agent="a", version="1", input=NULL, chance=7, **fields)


def slept(seq: int) -> e.Slept:
    """Any entry at a position."""
    return e.Slept(seq=seq, at_ms=seq, call=seq, name="", digest="d")


def insert(tx: Transaction, run: str, status: Status = Status.QUEUED, **fields: Any) -> RunRecord:
    """Accept a run."""
    return tx.insert_run(row(run, status, **fields), (first(),), {})


def running(tx: Transaction, run: str, fence: int = 1, worker: str = "w", **fields: Any) -> RunRecord:
    """Accept a run that a worker holds."""
    return insert(tx, run, Status.RUNNING, fence=fence, worker=worker, **fields)


def claim(tx: Transaction, worker: str = "w", limit: int = 10, room: int = 10, **fields: Any) -> list[str]:
    """Claim runs of agent ``a``; their ids."""
    options: dict[str, Any] = {"room": {"a": room}, "limit": limit, "suspects": True, **fields}
    return [run.id for run in tx.claim(worker, 100, **options)]
