"""The second wall of SQL tools: SQLite itself asks, for every table that a statement touches, whether it may.

A parser can be fooled, and by more than malice: names have scopes, and two parsers differ. What is asked here comes from
the database that runs the statement: https://www.sqlite.org/c3ref/set_authorizer.html
"""

from __future__ import annotations

import fnmatch
import sqlite3
from collections.abc import Callable, Collection, Sequence

from perdure.tools.statements import FUNCTIONS_REFUSED

CHANGES = frozenset((sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE))
ALWAYS = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE))
VIRTUAL = "create virtual table"

Authorizer = Callable[[int, str | None, str | None, str | None, str | None], int]


def wall(
    connection: sqlite3.Connection, allowed: Sequence[str], *, write: bool, own_names: Collection[str]
) -> Authorizer:
    """What refuses everything but reads, and changes if ``write``, of the allowed tables.

    What a view or trigger of the database does is its owner's doing and is let through; one that the statement hides
    behind a name of its own (``own_names``) is not.
    """
    rows = connection.execute("SELECT type, lower(name), lower(sql) FROM sqlite_master").fetchall()
    trusted = {name for kind, name, _ in rows if kind in ("view", "trigger")} - {
        name.lower() for name in own_names
    }
    virtual = _opened(connection, [name for _, name, sql in rows if (sql or "").startswith(VIRTUAL)], allowed)

    def decide(
        action: int, first: str | None, second: str | None, schema: str | None, inner: str | None
    ) -> int:
        name = (first or "").lower()
        if action in ALWAYS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            known = (second or "").lower() not in FUNCTIONS_REFUSED
            return sqlite3.SQLITE_OK if known else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA:  # full-text search asks this of itself; a statement cannot
            return sqlite3.SQLITE_OK if (name, second) == ("data_version", None) else sqlite3.SQLITE_DENY
        if action != sqlite3.SQLITE_READ and not (write and action in CHANGES):
            return sqlite3.SQLITE_DENY
        if schema not in (None, "main"):
            return sqlite3.SQLITE_DENY
        if (inner or "").lower() in trusted or may_use(name, allowed) or name.startswith(virtual):
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    return decide


def _opened(connection: sqlite3.Connection, names: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """How the tables begin in which allowed virtual tables keep their content: the same data under another name.

    Opens them: what their constructors do is no longer let through behind the wall.
    """
    names = [name for name in names if may_use(name, allowed)]
    for name in names:
        quoted = name.replace('"', '""')
        connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0')  # noqa: S608 - a name of the database, quoted
    return tuple(f"{name}_" for name in names)


def may_use(name: str, allowed: Sequence[str]) -> bool:
    """Whether a table is among those that may be used (names, with ``*`` and ``?``; case does not count)."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in allowed)
