"""Backup while running, integrity check, sizes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from perdure.core.errors import CorruptError, PerdureError
from perdure.governance.merkle import Frontier, leaf_hash
from perdure.stores.sqlite.schema import open_connection, translate, translated
from perdure.stores.sqlite.transaction import SqliteTransaction

_AUDIT_SINCE = 3  # the schema's version with an audit log
_PAGES_PER_STEP = 1_000  # copied at a time, so that a backup does not hold off the writer for long


def backup(source: Path, target: Path) -> None:
    """Copy a database, also while a process writes to it; the copy is one consistent moment.

    Raises:
        CorruptError: the copy does not pass the integrity check.
    """
    with translated():
        reading = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
        writing = sqlite3.connect(target)
        try:
            reading.backup(writing, pages=_PAGES_PER_STEP, sleep=0.005)
        finally:
            reading.close()
            writing.close()
    problems = integrity(target)
    if problems:
        raise CorruptError(f"the backup `{target}` is damaged: {problems[0]}")


def integrity(path: Path) -> list[str]:
    """What is wrong with a database: pages, the checksum of every journal entry, the tree of the audit log. Empty means intact.

    This finds damage. Who can write the file can also write what this compares: for that there are checkpoints.
    """
    try:
        connection = open_connection(path, read_only=True)
    except PerdureError as error:
        return [str(error)]
    try:
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        transaction = SqliteTransaction(connection)
        for (run_id,) in connection.execute("SELECT id FROM runs ORDER BY key"):
            try:
                transaction.journal(run_id)
            except CorruptError as error:
                problems.append(str(error))
        problems += _audit_problems(connection)
    except sqlite3.Error as error:
        return [str(translate(error))]
    finally:
        connection.close()
    return problems


def _audit_problems(connection: sqlite3.Connection) -> list[str]:
    """What does not fit together in the audit log."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < _AUDIT_SINCE:
        return []
    frontier = Frontier()
    for place, leaf, hashed in connection.execute(
        "SELECT place, leaf, hash FROM audit_leaves ORDER BY place"
    ):
        if place != frontier.size:
            return [f"record {frontier.size} of the audit log is missing"]
        if leaf_hash(leaf) != hashed:
            return [f"record {place} of the audit log was changed"]
        frontier, nodes = frontier.append(hashed)
        for level, index, found in nodes:
            query = "SELECT hash FROM audit_hashes WHERE level = ? AND place = ?"
            if connection.execute(query, (level, index)).fetchone() != (found,):
                return [f"hash {index} on level {level} of the audit log's tree is not that of its records"]
    if connection.execute("SELECT size, edge FROM audit_head").fetchall() != [(frontier.size, frontier.edge)]:
        return ["the head of the audit log is not that of its records"]
    return []


def sizes(path: Path) -> dict[str, int]:
    """Rows by table, and ``bytes`` of the database."""
    connection = open_connection(path, read_only=True)
    try:
        tables = ("runs", "journal", "mail", "blobs", "questions", "schedules")
        found = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
        pages, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return {**found, "bytes": pages * size}
    finally:
        connection.close()


def statuses(path: Path) -> dict[str, int]:
    """How many runs there are by status."""
    connection = open_connection(path, read_only=True)
    try:
        return dict(connection.execute("SELECT status, count(*) FROM runs GROUP BY status ORDER BY status"))
    finally:
        connection.close()
