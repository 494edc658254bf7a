"""Backup while running, integrity check, sizes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from perdure.core.errors import CorruptError, PerdureError
from perdure.stores.sqlite.schema import open_connection, translate, translated
from perdure.stores.sqlite.transaction import SqliteTransaction

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
    """What is wrong with a database: pages, then the checksum of every journal entry. Empty means intact."""
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
    except sqlite3.Error as error:
        return [str(translate(error))]
    finally:
        connection.close()
    return problems


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
