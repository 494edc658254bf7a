"""The audit log in SQL."""

from __future__ import annotations

from collections.abc import Iterator

from perdure.core.audit import AuditRecord, AuditRow, Checkpoint
from perdure.core.errors import CorruptError
from perdure.governance.merkle import completed, root
from perdure.stores.sqlite.side import SideTables

PAGE = 10_000


class AuditTables(SideTables):
    """The part of ``Transaction`` about the audit log."""

    def audit(self, record: AuditRecord, *, sealed: bytes = b"", subject: str = "") -> int:
        """Add a record; its place."""
        size = self.audit_size()
        leaf = record.encode()
        self._execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (size, record.run, record.call, leaf))
        for level, place, found in completed(size, leaf, self.audit_node):
            self._execute("INSERT INTO audit_nodes VALUES (?, ?, ?)", (level, place, found))
        if sealed:
            self._execute("INSERT INTO audit_sealed VALUES (?, ?, ?)", (size, subject, sealed))
        return size

    def audit_node(self, level: int, place: int) -> bytes:
        """The hash of a complete subtree."""
        row = self._execute(
            "SELECT hash FROM audit_nodes WHERE level = ? AND place = ?", (level, place)
        ).fetchone()
        if row is None:
            raise CorruptError(
                f"node {place} of level {level} of the audit log is missing; `perdure audit verify`"
            )
        found: bytes = row[0]
        return found

    def audit_size(self) -> int:
        """How many records there are."""
        return int(self._execute("SELECT coalesce(max(place) + 1, 0) FROM audit").fetchone()[0])

    def audit_head(self) -> tuple[int, bytes]:
        """How many records there are, and the root over them."""
        size = self.audit_size()
        return size, root(size, self.audit_node)

    def audit_rows(self, start: int = 0, end: int | None = None) -> Iterator[AuditRow]:
        """Records from place ``start`` to before ``end``, in order."""
        while True:
            limit = PAGE if end is None else min(PAGE, end - start)
            rows = self._execute(
                "SELECT place, leaf FROM audit WHERE place >= ? ORDER BY place LIMIT ?",
                (start, max(0, limit)),
            ).fetchall()
            for place, leaf in rows:
                yield AuditRow(index=place, leaf=leaf)
            if len(rows) < limit or not rows:
                return
            start = rows[-1][0] + 1

    def audit_of(self, run: str, call: int | None = None) -> list[AuditRow]:
        """The records of a run, or of one of its actions."""
        query, values = "SELECT place, leaf FROM audit WHERE run = ?", [run]
        if call is not None:
            query, values = f"{query} AND call = ?", [run, str(call)]
        rows = self._execute(f"{query} AND run <> '' ORDER BY place", values).fetchall()
        return [AuditRow(index=place, leaf=leaf) for place, leaf in rows]

    def audit_sealed(self, place: int) -> tuple[str, bytes] | None:
        """The subject and the encrypted details of a record."""
        row = self._execute("SELECT subject, data FROM audit_sealed WHERE place = ?", (place,)).fetchone()
        return None if row is None else (row[0], row[1])

    def subject_key(self, subject: str) -> bytes | None:
        """The encrypted key of a subject."""
        row = self._execute("SELECT key FROM audit_subjects WHERE subject = ?", (subject,)).fetchone()
        return None if row is None else bytes(row[0])

    def put_subject_key(self, subject: str, key: bytes) -> None:
        """Keep the encrypted key of a subject."""
        self._execute("INSERT INTO audit_subjects VALUES (?, ?)", (subject, key))

    def drop_subject_key(self, subject: str) -> bool:
        """Destroy the key of a subject; whether there was one."""
        return bool(self._execute("DELETE FROM audit_subjects WHERE subject = ?", (subject,)).rowcount)

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a signed head; one of the same size is replaced (a witness has added its signature)."""
        self._execute(
            "INSERT OR REPLACE INTO audit_checkpoints VALUES (?, ?, ?)",
            (checkpoint.size, checkpoint.note, checkpoint.at_ms),
        )

    def checkpoints(self) -> list[Checkpoint]:
        """Every signed head, by size."""
        rows = self._execute("SELECT size, note, at_ms FROM audit_checkpoints ORDER BY size").fetchall()
        return [Checkpoint(size=size, note=note, at_ms=at_ms) for size, note, at_ms in rows]

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest signed head."""
        row = self._execute(
            "SELECT size, note, at_ms FROM audit_checkpoints ORDER BY size DESC LIMIT 1"
        ).fetchone()
        return None if row is None else Checkpoint(size=row[0], note=row[1], at_ms=row[2])
