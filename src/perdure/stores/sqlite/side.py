"""Mail, questions, blobs, session state and schedules in SQL."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping

import msgspec

from perdure.core.errors import CorruptError, RunUnknownError
from perdure.core.records import Mail, Question, Schedule
from perdure.core.values import Payload

_encode = msgspec.json.Encoder().encode
_payload = msgspec.json.Decoder(Payload).decode


class SideTables:
    """The part of the ``Transaction`` port beside runs and journals."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    # -- blobs
    def put_blobs(self, blobs: Mapping[str, bytes]) -> None:
        """Keep blobs under the SHA-256 of their bytes, once each."""
        for name, body in blobs.items():
            self._execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (name, body))

    def blob(self, name: str) -> bytes:
        """The bytes of a blob, checked against its name."""
        row = self._execute("SELECT body FROM blobs WHERE name = ?", (name,)).fetchone()
        if row is None or hashlib.sha256(row[0]).hexdigest() != name:
            raise CorruptError(f"blob `{name}` is missing or damaged; restore a backup", blob=name)
        body: bytes = row[0]
        return body

    # -- mail
    def deliver(
        self,
        run_id: str,
        topic: str,
        body: Payload,
        blobs: Mapping[str, bytes],
        *,
        sender: str,
        now_ms: int,
        key: str | None,
    ) -> int:
        """Put a message into a mailbox, once per ``key``."""
        run = self._key(run_id)
        if key is not None:
            cursor = self._execute("INSERT OR IGNORE INTO mail_keys VALUES (?, ?)", (run, key))
            if cursor.rowcount == 0:
                return 0
        self.put_blobs(blobs)
        cursor = self._execute(
            "INSERT INTO mail (run, topic, body, sender, sent_ms) VALUES (?, ?, ?, ?, ?)",
            (run, topic, _encode(body), sender, now_ms),
        )
        return cursor.lastrowid or 0

    def take(self, run_id: str, topic: str) -> Mail | None:
        """Remove and return the oldest message of a topic."""
        row = self._execute(
            "DELETE FROM mail WHERE id = (SELECT id FROM mail WHERE run = (SELECT key FROM runs WHERE id = ?) "
            "AND topic = ? ORDER BY id LIMIT 1) RETURNING id, body, sender, sent_ms",
            (run_id, topic),
        ).fetchone()
        if row is None:
            return None
        return Mail(id=row[0], run=run_id, topic=topic, body=_payload(row[1]), sender=row[2], sent_ms=row[3])

    def has_mail(self, run_id: str, topic: str) -> bool:
        """Whether a message of that topic waits."""
        query = "SELECT 1 FROM mail WHERE run = (SELECT key FROM runs WHERE id = ?) AND topic = ? LIMIT 1"
        return self._execute(query, (run_id, topic)).fetchone() is not None

    def _key(self, run_id: str) -> int:
        row = self._execute("SELECT key FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise RunUnknownError(f"no run has the id `{run_id}`; `perdure runs list` shows them", run=run_id)
        key: int = row[0]
        return key

    # -- questions
    def open_question(self, question: Question) -> None:
        """List a question."""
        self._execute(
            "INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?, ?)",
            (
                question.run, question.call, question.agent, _encode(question.question), question.asked_ms,
                question.due_ms,
            ),
        )  # fmt: skip

    def close_question(self, run_id: str, call: int) -> None:
        """Take a question off the list."""
        self._execute("DELETE FROM questions WHERE run = ? AND call = ?", (run_id, call))

    def questions(self, run_id: str | None) -> list[Question]:
        """Open questions, oldest first."""
        rows = self._execute(
            "SELECT run, call, agent, question, asked_ms, due_ms FROM questions WHERE ?1 IS NULL OR run = ?1 "
            "ORDER BY asked_ms, run, call",
            (run_id,),
        )
        return [
            Question(run=run, call=call, agent=agent, question=_payload(body), asked_ms=asked, due_ms=due)
            for run, call, agent, body, asked, due in rows
        ]

    # -- session state
    def state(self, agent: str, session: str, key: str) -> Payload | None:
        """A value of a session's state."""
        row = self._execute(
            "SELECT value FROM session_state WHERE agent = ? AND session = ? AND key = ?",
            (agent, session, key),
        ).fetchone()
        return None if row is None else _payload(row[0])

    def set_state(
        self, agent: str, session: str, key: str, value: Payload | None, blobs: Mapping[str, bytes]
    ) -> None:
        """Set or delete a value of a session's state."""
        if value is None:
            self._execute(
                "DELETE FROM session_state WHERE agent = ? AND session = ? AND key = ?", (agent, session, key)
            )
            return
        self.put_blobs(blobs)
        self._execute(
            "INSERT OR REPLACE INTO session_state VALUES (?, ?, ?, ?)", (agent, session, key, _encode(value))
        )

    # -- schedules
    def schedules(self, due_ms: int | None = None) -> list[Schedule]:
        """Schedules by name; only the due ones if a time is given."""
        rows = self._execute(
            "SELECT name, agent, cron, timezone, input, next_ms FROM schedules WHERE ?1 IS NULL OR next_ms <= ?1 "
            "ORDER BY name",
            (due_ms,),
        )
        return [
            Schedule(name=name, agent=agent, cron=cron, timezone=zone, input=_payload(body), next_ms=next_ms)
            for name, agent, cron, zone, body, next_ms in rows
        ]

    def put_schedule(self, schedule: Schedule) -> None:
        """Add or replace a schedule."""
        self._execute(
            "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?)",
            (
                schedule.name, schedule.agent, schedule.cron, schedule.timezone, _encode(schedule.input),
                schedule.next_ms,
            ),
        )  # fmt: skip

    def drop_schedule(self, name: str) -> bool:
        """Remove a schedule."""
        return self._execute("DELETE FROM schedules WHERE name = ?", (name,)).rowcount == 1
