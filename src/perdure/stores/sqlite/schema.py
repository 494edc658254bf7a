"""Opening a database: pragmas, numbered migrations, and errors that say what is wrong with the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from perdure.core.errors import (
    CorruptError,
    DataDirInvalidError,
    PerdureError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

APPLICATION_ID = 0x50455244  # "PERD": tells our files from other SQLite databases
BUSY_MS = 10_000  # how long a writer waits for a writer of another process (a command line, a backup)
CACHE_KIB = {False: 8_192, True: 2_048}  # writer, reader: the system caches pages too


def open_connection(
    path: Path | str, *, durability: str = "full", read_only: bool = False
) -> sqlite3.Connection:
    """A connection to an existing or new database, migrated to the newest schema (unless ``read_only``).

    Raises:
        CorruptError: the file is not an intact SQLite database.
        DataDirInvalidError: it belongs to another program or to a newer version of Perdure.
        StoreReadOnlyError: the file or its folder cannot be written.
    """
    with translated():
        if read_only:
            connection = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        else:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, durability=durability, read_only=read_only)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, *, durability: str, read_only: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB[read_only]}")
    _check_owner(connection)
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")
    _migrate(connection, read_only=read_only)


def migrations() -> list[tuple[int, str]]:
    """Numbered scripts, in order."""
    folder = resources.files("perdure.stores.sqlite") / "migrations"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(int(name[:4]), (folder / name).read_text(encoding="utf-8")) for name in names]


def _check_owner(connection: sqlite3.Connection) -> None:
    """Look before the first pragma that writes: another program's file must stay as it is."""
    # Tables first: another process of ours may make them between the two questions, and signs in the same transaction.
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise DataDirInvalidError("the database belongs to another program; choose another data directory")


def _migrate(connection: sqlite3.Connection, *, read_only: bool) -> None:
    scripts = migrations()
    newest = scripts[-1][0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > newest:
        message = (
            f"the database has schema {version} and this version of Perdure knows {newest}; upgrade Perdure"
        )
        raise DataDirInvalidError(message, found=version, expected=newest)
    if read_only:
        return
    for number, script in scripts:
        if number > version:
            _apply(connection, number, script)


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    """One migration, once, also when two processes open a new database at the same time."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] < number:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: ``executescript`` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLite's exceptions into Perdure's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error) from error


def translate(error: sqlite3.Error) -> PerdureError:
    """The error of ours that says what SQLite's means for the caller."""
    text = str(error)
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith("SQLITE_FULL") or "disk is full" in text:
        return StoreFullError("the disk is full; free some space, the runs go on by themselves")
    if code.startswith("SQLITE_READONLY") or "readonly" in text:
        return StoreReadOnlyError("the database cannot be written; check the rights of the data directory")
    if code.startswith("SQLITE_CANTOPEN") or "unable to open" in text:
        return StoreReadOnlyError(
            "the database cannot be opened; check that the data directory exists and its rights"
        )
    if (
        code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
        or "malformed" in text
        or "not a database" in text
    ):
        message = (
            f"the database is damaged ({text}); restore a backup, or salvage it with `sqlite3 ... .recover`"
        )
        return CorruptError(message)
    return StoreUnavailableError(f"the store did not confirm the write ({code or 'SQLite'}: {text})")
