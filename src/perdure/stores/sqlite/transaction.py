"""Runs, journals and leases in SQL. Mail, questions, state and schedules are in ``side``."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from perdure.core.entries import AnyEntry, Entry, decode_entry, encode_entry
from perdure.core.errors import FenceError, JournalCorruptError
from perdure.core.records import RunFilter, RunRecord, Status
from perdure.stores.sqlite.approvals import ApprovalTables
from perdure.stores.sqlite.audit import AuditTables
from perdure.stores.sqlite.ledger import LedgerTables

_COLUMNS = (
    "id, agent, status, created_ms, session, idempotency_key, parent, priority, fence, worker, "
    "(SELECT coalesce(max(seq), 0) FROM journal WHERE run = runs.key), ready_ms, wake_ms, deadline_ms, recoveries, "
    "cancel_reason, cancel_code, code, ended_ms"
)
_FIELDS = [
    "id",
    "agent",
    "status",
    "created_ms",
    "session",
    "idempotency_key",
    "parent",
    "priority",
    "fence",
    "worker",
    "seq",
    "ready_ms",
    "wake_ms",
    "deadline_ms",
    "recoveries",
    "cancel_reason",
    "cancel_code",
    "code",
    "ended_ms",
]
_ENDED = "('completed', 'failed', 'cancelled')"

# Fence and order are checked by the insert itself: one statement on the hot path. No row means a newer lease, a run
# that is not running, a gap, or (by the primary key) a fork.
_APPEND = """
INSERT OR IGNORE INTO journal (run, seq, crc, body)
SELECT key, ?2, ?3, ?4 FROM runs
WHERE id = ?1 AND fence = ?5 AND status = 'running'
  AND (?2 = 1 OR EXISTS (SELECT 1 FROM journal WHERE run = runs.key AND seq = ?2 - 1))
"""


class SqliteTransaction(LedgerTables, ApprovalTables, AuditTables):
    """The ``Transaction`` port on one SQLite connection, inside a transaction that the caller has begun."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._execute = connection.execute

    # -- runs
    def insert_run(self, run: RunRecord, entries: Sequence[Entry], blobs: Mapping[str, bytes]) -> RunRecord:
        """Add a run with its first entries, or find the one that is there."""
        cursor = self._execute(
            "INSERT OR IGNORE INTO runs (id, agent, status, created_ms, session, idempotency_key, parent, priority, "
            "fence, worker, claimed_seq, ready_ms, wake_ms, deadline_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                run.id, run.agent, run.status, run.created_ms, run.session, run.idempotency_key, run.parent,
                run.priority, run.fence, run.worker, len(entries), run.ready_ms, run.wake_ms, run.deadline_ms,
            ),
        )  # fmt: skip
        if cursor.rowcount == 0:
            return self._existing(run)
        key = cursor.lastrowid
        self.put_blobs(blobs)
        for entry in entries:
            body = encode_entry(entry)
            self._execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (key, entry.seq, zlib.crc32(body), body))
        return run

    def _existing(self, run: RunRecord) -> RunRecord:
        found = None
        if run.idempotency_key is not None:
            found = self._one("agent = ? AND idempotency_key = ?", (run.agent, run.idempotency_key))
        found = found or self.run(run.id)
        if found is None:
            raise sqlite3.IntegrityError("a run was neither inserted nor found")
        return found

    def run(self, run_id: str) -> RunRecord | None:
        """The row of a run."""
        return self._one("id = ?", (run_id,))

    def _one(self, where: str, values: tuple[Any, ...]) -> RunRecord | None:
        rows = self._many(where, values)
        return rows[0] if rows else None

    def _many(self, where: str, values: Sequence[Any]) -> list[RunRecord]:
        query = f"SELECT {_COLUMNS} FROM runs WHERE {where}"
        return [_record(row) for row in self._execute(query, values)]

    def runs(self, want: RunFilter) -> list[RunRecord]:
        """Rows, newest first."""
        clauses: list[str] = ["1"]
        values: list[Any] = []
        for column in ("agent", "session", "parent"):
            value = getattr(want, column)
            if value is not None:
                clauses.append(f"{column} = ?")
                values.append(value)
        if want.status is not None:
            clauses.append(f"status IN ({', '.join('?' * len(want.status))})")
            values.extend(want.status)
        if want.before is not None:
            clauses.append("key < (SELECT key FROM runs WHERE id = ?)")
            values.append(want.before)
        return self._many(f"{' AND '.join(clauses)} ORDER BY key DESC LIMIT ?", [*values, want.limit])

    def session_runs(self, agent: str, session: str) -> list[RunRecord]:
        """The unfinished runs of a session, oldest first."""
        where = f"agent = ? AND session = ? AND status NOT IN {_ENDED} ORDER BY key"
        return self._many(where, (agent, session))

    def ended_runs(
        self, agent: str, after_ms: int, until_ms: int, limit: int, skip: int = 0
    ) -> list[RunRecord]:
        """Runs of an agent that ended within a time, the last to end first."""
        where = (
            "agent = ? AND ended_ms > ? AND ended_ms <= ? ORDER BY ended_ms DESC, key DESC LIMIT ? OFFSET ?"
        )
        return self._many(where, (agent, after_ms, until_ms, limit, skip))

    def children(self, run_id: str) -> list[RunRecord]:
        """The runs that this run started, oldest first."""
        return self._many("parent = ? ORDER BY key", (run_id,))

    def append(self, run_id: str, fence: int, entries: Sequence[Entry], blobs: Mapping[str, bytes]) -> None:
        """Append to a journal under its lease."""
        if blobs:
            self.put_blobs(blobs)
        for entry in entries:
            body = encode_entry(entry)
            cursor = self._execute(_APPEND, (run_id, entry.seq, zlib.crc32(body), body, fence))
            if cursor.rowcount != 1:
                raise FenceError(
                    f"entry {entry.seq} of run `{run_id}` was refused: fence {fence} is stale or a gap would be made",
                    run=run_id,
                    fence=fence,
                )

    def move(
        self,
        run_id: str,
        fence: int,
        status: Status,
        *,
        now_ms: int,
        wake_ms: int | None = None,
        code: str | None = None,
    ) -> None:
        """Set the status of a run under its lease."""
        ended_ms = now_ms if status.is_ended else None
        cursor = self._execute(
            "UPDATE runs SET status = ?, wake_ms = ?, code = ?, ended_ms = ?, ready_ms = ?, worker = NULL, "
            "recoveries = 0 WHERE id = ? AND fence = ? AND status = 'running'",
            (status, wake_ms, code, ended_ms, now_ms, run_id, fence),
        )
        if cursor.rowcount != 1:
            raise FenceError(
                f"run `{run_id}` was taken over: fence {fence} is stale", run=run_id, fence=fence
            )

    def set_status(self, run_id: str, before: Status, after: Status, *, now_ms: int) -> bool:
        """Set the status of a run without a lease, if it is ``before``."""
        cursor = self._execute(
            "UPDATE runs SET status = ?, ready_ms = ?, wake_ms = NULL, code = NULL, ended_ms = ?, recoveries = 0 "
            "WHERE id = ? AND status = ?",
            (after, now_ms, now_ms if after.is_ended else None, run_id, before),
        )
        return cursor.rowcount == 1

    def request_cancel(self, run_id: str, reason: str, code: str) -> None:
        """Note that the run must be cancelled; the first request counts."""
        self._execute(
            "UPDATE runs SET cancel_reason = ?, cancel_code = ? WHERE id = ? AND cancel_reason IS NULL",
            (reason, code, run_id),
        )

    def journal(self, run_id: str, after: int = 0, limit: int | None = None) -> list[AnyEntry]:
        """Entries in order, each checked against its checksum."""
        rows = self._execute(
            "SELECT seq, crc, body FROM journal WHERE run = (SELECT key FROM runs WHERE id = ?) AND seq > ? "
            "ORDER BY seq LIMIT ?",
            (run_id, after, -1 if limit is None else limit),
        ).fetchall()  # an entry that is damaged must not leave a cursor open: its view would never move on
        entries = []
        for seq, crc, body in rows:
            entry = _checked(run_id, seq, crc, body)
            entries.append(entry)
        return entries

    # -- leases
    def renew(self, worker: str, until_ms: int) -> None:
        """Extend a worker's lease, or begin it."""
        self._execute(
            "INSERT INTO workers VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET lease_until_ms = excluded.lease_until_ms",
            (worker, until_ms),
        )

    def retire(self, worker: str) -> None:
        """End a worker's lease at once."""
        self._execute("DELETE FROM workers WHERE id = ?", (worker,))

    def release_expired(self, now_ms: int, *, others_than: str | None = None) -> int:
        """Queue the running runs of workers whose lease has ended."""
        if others_than is not None:
            self._execute("DELETE FROM workers WHERE id <> ?", (others_than,))
        else:
            self._execute("DELETE FROM workers WHERE lease_until_ms <= ?", (now_ms,))
        # A run that recorded something since it was claimed is not a suspect for the crash of its worker.
        cursor = self._execute(
            "UPDATE runs SET status = 'queued', worker = NULL, ready_ms = ?, recoveries = CASE WHEN EXISTS "
            "(SELECT 1 FROM journal WHERE run = runs.key AND seq > runs.claimed_seq) THEN 1 ELSE recoveries + 1 END "
            "WHERE status = 'running' AND worker NOT IN (SELECT id FROM workers)",
            (now_ms,),
        )
        return cursor.rowcount

    def wake_due(self, now_ms: int, limit: int) -> int:
        """Queue waiting runs whose time has come, the earliest first."""
        cursor = self._execute(
            "UPDATE runs SET status = 'queued', ready_ms = ?1, wake_ms = NULL WHERE key IN (SELECT key FROM runs "
            "WHERE status = 'waiting' AND wake_ms IS NOT NULL AND wake_ms <= ?1 ORDER BY wake_ms LIMIT ?2)",
            (now_ms, limit),
        )
        return cursor.rowcount

    def claim(
        self,
        worker: str,
        now_ms: int,  # noqa: ARG002 - other stores keep the time of a claim
        *,
        room: Mapping[str, int],
        limit: int,
        suspects: bool,
        skip: Collection[str] = (),
    ) -> list[RunRecord]:
        """Take the leases of queued runs."""
        left = dict(room)
        claimed: list[RunRecord] = []
        for run in self._candidates(left, limit, suspects=suspects, skip=skip):
            is_suspect = run.recoveries >= SUSPECT_RECOVERIES
            if left[run.agent] < 1 or (is_suspect and not suspects) or len(claimed) == limit:
                continue
            left[run.agent] -= 1
            suspects = suspects and not is_suspect
            self._execute(
                "UPDATE runs SET status = 'running', worker = ?, fence = fence + 1, claimed_seq = ?, wake_ms = NULL "
                "WHERE id = ?",
                (worker, run.seq + (1 if run.recoveries else 0), run.id),
            )
            claimed.append(
                msgspec.structs.replace(run, status=Status.RUNNING, worker=worker, fence=run.fence + 1)
            )
        return claimed

    def _candidates(
        self, room: Mapping[str, int], limit: int, *, suspects: bool, skip: Collection[str]
    ) -> list[RunRecord]:
        """Queued runs of agents with room, in the order of claims; suspects last, the least suspect first."""
        names = sorted(name for name, free in room.items() if free > 0)
        if not names or limit < 1:
            return []
        marks = ", ".join("?" * len(names))
        skipped = f"AND id NOT IN ({', '.join('?' * len(skip))})" if skip else ""
        where = f"status = 'queued' AND agent IN ({marks}) {skipped} AND recoveries"
        order = "ORDER BY priority DESC, ready_ms, key LIMIT ?"
        values = [*names, *sorted(skip), SUSPECT_RECOVERIES]
        # An agent with little room may fill the page with runs that it cannot take: then its turn comes next time.
        found = self._many(f"{where} < ? {order}", [*values, limit * 2])
        if suspects:
            found += self._many(f"{where} >= ? ORDER BY recoveries, ready_ms, key LIMIT ?", [*values, 1])
        return found

    def seize(self, run_id: str, worker: str, statuses: Collection[Status]) -> RunRecord | None:
        """Take the lease of one run if it is in one of ``statuses``."""
        run = self.run(run_id)
        if run is None or run.status not in statuses:
            return None
        self._execute(
            "UPDATE runs SET status = 'running', worker = ?, fence = fence + 1, claimed_seq = ?, wake_ms = NULL "
            "WHERE id = ?",
            (worker, run.seq, run_id),
        )
        return msgspec.structs.replace(run, fence=run.fence + 1)

    def next_wake_ms(self) -> int | None:
        """When the next waiting run or schedule is due."""
        row = self._execute(
            "SELECT min(due) FROM (SELECT min(wake_ms) AS due FROM runs WHERE status = 'waiting' AND wake_ms IS NOT "
            "NULL UNION ALL SELECT min(next_ms) FROM schedules)"
        ).fetchone()
        return None if row is None else row[0]


SUSPECT_RECOVERIES = (
    2  # in flight at this many crashes in a row: claimed one at a time, to find the one that kills
)


def _record(row: tuple[Any, ...]) -> RunRecord:
    values = dict(zip(_FIELDS, row, strict=True))
    values["status"] = Status(values["status"])
    return RunRecord(**values)


def _checked(run_id: str, seq: int, crc: int, body: bytes) -> AnyEntry:
    message = f"entry {seq} of run `{run_id}` is damaged; restore a backup or cancel the run"
    if zlib.crc32(body) != crc:
        raise JournalCorruptError(message, run=run_id, seq=seq)
    try:
        entry = decode_entry(body)
    except msgspec.MsgspecError as error:
        raise JournalCorruptError(f"{message} ({error})", run=run_id, seq=seq) from error
    if entry.seq != seq:
        raise JournalCorruptError(message, run=run_id, seq=seq)
    return entry
