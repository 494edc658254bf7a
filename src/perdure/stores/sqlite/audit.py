"""The audit log in SQL: leaves, the hashes of the tree, checkpoints, sealed details and the keys of data subjects.

Nothing of the tree is kept in memory: a work that is rolled back leaves no trace, and two processes see one tree.
"""

from __future__ import annotations

import msgspec

from perdure.core.audit import AuditLeaf, AuditRecord, encode_record
from perdure.core.errors import AuditInvalidError, invariant
from perdure.governance.checkpoints import parse_checkpoint
from perdure.governance.merkle import Frontier, leaf_hash
from perdure.governance.notes import parse_note
from perdure.governance.sealed import sealed_digest
from perdure.stores.sqlite.side import SideTables

_ALL = -1  # no limit, as SQLite says it


class AuditTables(SideTables):
    """The part of the ``Transaction`` port about the audit log."""

    # -- records
    def audit(self, record: AuditRecord, sealed: bytes = b"", subject: str = "") -> int:
        """Append a record; its place, from 0."""
        if sealed:
            digest = sealed_digest(sealed)
            invariant(record.sealed in ("", digest), "the record names the digest of other sealed details")
            record = msgspec.structs.replace(record, sealed=digest)
        leaf = encode_record(record)
        hashed = leaf_hash(leaf)
        execute = self._execute
        frontier = self._frontier()
        place = frontier.size
        execute(
            "INSERT INTO audit_leaves VALUES (?, ?, ?, ?, ?)", (place, leaf, hashed, record.run, record.call)
        )
        frontier, nodes = frontier.append(hashed)
        for node in nodes:
            execute("INSERT INTO audit_hashes VALUES (?, ?, ?)", node)
        execute("UPDATE audit_head SET size = ?, edge = ? WHERE one = 1", (frontier.size, frontier.edge))
        if sealed:
            execute("INSERT INTO audit_sealed VALUES (?, ?, ?)", (place, subject, sealed))
        return place

    def audit_records(self, after: int = -1, limit: int | None = None) -> list[AuditLeaf]:
        """Records with a place over ``after``, in order."""
        rows = self._execute(
            "SELECT place, leaf, hash FROM audit_leaves WHERE place > ? ORDER BY place LIMIT ?",
            (after, _ALL if limit is None else limit),
        ).fetchall()
        return [AuditLeaf(index=place, leaf=leaf, hash=hashed) for place, leaf, hashed in rows]

    def audit_of(self, run: str, call: int | None = None) -> list[AuditLeaf]:
        """The records about a run, or about one call of it, in order."""
        rows = self._execute(
            "SELECT place, leaf, hash FROM audit_leaves WHERE run = ?1 AND run <> '' AND (?2 IS NULL OR call = ?2) "
            "ORDER BY place",
            (run, call),
        ).fetchall()
        return [AuditLeaf(index=place, leaf=leaf, hash=hashed) for place, leaf, hashed in rows]

    # -- the tree
    def audit_head(self) -> tuple[int, bytes]:
        """How many records there are, and the root hash over them."""
        frontier = self._frontier()
        return frontier.size, frontier.root

    def audit_hash(self, level: int, index: int) -> bytes:
        """The hash of a perfect subtree."""
        if level == 0:
            row = self._execute("SELECT hash FROM audit_leaves WHERE place = ?", (index,)).fetchone()
        else:
            query = "SELECT hash FROM audit_hashes WHERE level = ? AND place = ?"
            row = self._execute(query, (level, index)).fetchone()
        if row is None:
            message = f"the audit log has no hash {index} on level {level}: it is damaged, or not that long"
            raise AuditInvalidError(message, level=level, index=index)
        found: bytes = row[0]
        return found

    def _frontier(self) -> Frontier:
        row = self._execute("SELECT size, edge FROM audit_head WHERE one = 1").fetchone()
        if row is None or len(row[1]) != 32 * row[0].bit_count():
            raise AuditInvalidError("the head of the audit log is missing or damaged; restore a backup")
        return Frontier(*row)

    # -- checkpoints
    def put_checkpoint(self, note: str) -> None:
        """Keep a signed checkpoint; to one with the same text its signatures are added."""
        parsed = parse_note(note)
        found = parse_checkpoint(parsed)
        frontier = self._frontier()
        invariant(found.size <= frontier.size, "a checkpoint has more records than the log", size=found.size)
        if found.size == frontier.size:
            invariant(found.root == frontier.root, "a checkpoint is not of this log", size=found.size)
        query = "SELECT note FROM audit_checkpoints WHERE body = ?"
        row = self._execute(query, (found.body,)).fetchone()
        if row is not None:  # two witnesses answer at any time, and neither knows of the other's line
            for signature in parsed.signatures:
                row = (parse_note(row[0]).signed_with(signature).text,)
            note = row[0]
        self._execute(
            "INSERT INTO audit_checkpoints (size, body, note) VALUES (?, ?, ?) "
            "ON CONFLICT (body) DO UPDATE SET note = excluded.note",
            (found.size, found.body, note),
        )

    def checkpoints(self, after: int = -1, limit: int | None = None) -> list[str]:
        """Signed checkpoints of more than ``after`` records, the smallest first."""
        rows = self._execute(
            "SELECT note FROM audit_checkpoints WHERE size > ? ORDER BY size, key LIMIT ?",
            (after, _ALL if limit is None else limit),
        ).fetchall()
        return [note for (note,) in rows]

    def latest_checkpoint(self) -> str | None:
        """The checkpoint of the most records; of those of one size, the last that was made."""
        query = "SELECT note FROM audit_checkpoints ORDER BY size DESC, key DESC LIMIT 1"
        row = self._execute(query).fetchone()
        return None if row is None else str(row[0])

    # -- sealed details
    def audit_sealed(self, index: int) -> tuple[str, bytes] | None:
        """The subject and the sealed details of a record; an erased subject has no name any more."""
        row = self._execute("SELECT subject, body FROM audit_sealed WHERE place = ?", (index,)).fetchone()
        return None if row is None else (str(row[0]), bytes(row[1]))

    def subject_key(self, subject: str) -> bytes | None:
        """The wrapped data key of a subject."""
        row = self._execute("SELECT wrapped FROM subject_keys WHERE subject = ?", (subject,)).fetchone()
        return None if row is None else bytes(row[0])

    def put_subject_key(self, subject: str, wrapped: bytes) -> None:
        """Set the wrapped data key of a subject."""
        self._execute(
            "INSERT INTO subject_keys VALUES (?, ?) ON CONFLICT (subject) DO UPDATE SET wrapped = excluded.wrapped",
            (subject, wrapped),
        )

    def drop_subject_key(self, subject: str) -> bool:
        """Erase a subject: its key, and its name beside the sealed details; whether there was a key."""
        (before,) = self._execute("PRAGMA secure_delete").fetchone()
        self._execute("PRAGMA secure_delete = ON")  # freed bytes are overwritten, not only unlinked
        try:
            dropped = self._execute("DELETE FROM subject_keys WHERE subject = ?", (subject,)).rowcount
            self._execute(
                "UPDATE audit_sealed SET subject = '' WHERE subject = ? AND subject <> ''", (subject,)
            )
        finally:
            self._execute(f"PRAGMA secure_delete = {('OFF', 'ON', 'FAST')[before]}")
        return bool(dropped)
