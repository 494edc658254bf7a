"""SQL databases as tools: read-only unless told otherwise, one parsed statement at a time, values as parameters, rows bounded.

Databases of SQLite. Two walls beside the parser: the connection is opened for reading only unless the statement writes, and
SQLite asks for every table that a statement touches whether it may (``sqlite_wall``).
"""

from __future__ import annotations

import asyncio
import base64
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from perdure.core.errors import (
    DefinitionError,
    StatementRefusedError,
    ToolDoubtfulError,
    ToolFailedError,
    ToolUnreachableError,
)
from perdure.core.tools import ToolOutput, ToolSpec, ToolUse, is_tool_name
from perdure.ports import Secrets, Tool
from perdure.tools.sqlite_wall import may_use, wall
from perdure.tools.statements import Statement, check_tables, read_statement

ROWS_MAX = 200
CELL_CHARACTERS_MAX = 10_000
TIMEOUT_MS = 10_000
OPCODES = 10_000  # of SQLite's machine, between two looks at the clock
SAFE_INTEGER = 2**53  # beyond, JSON readers lose digits
PARAMS = {
    "description": "Values for the statement's parameters: a list for `?`, an object for `:name`.",
    "anyOf": [{"type": "array"}, {"type": "object"}],
}


class SqlToolset:
    """The tools ``NAME_tables``, ``NAME_query`` and, with ``write``, ``NAME_execute``. Implements ``Toolset``.

    Args:
        name: what it is called.
        url: ``sqlite:///path/to/file.db``, or a path.
        write: whether rows may be changed.
        tables: those that may be used, with ``*`` and ``?``.
        rows_max: rows of an answer; more are left out, and the answer says so.
        timeout_ms: how long a statement may take.
        secrets: not needed for SQLite.

    Raises:
        DefinitionError: the database is not one of SQLite, or the parser is not installed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        write: bool = False,
        tables: Sequence[str] = ("*",),
        rows_max: int = ROWS_MAX,
        timeout_ms: int = TIMEOUT_MS,
        secrets: Secrets | None = None,
    ) -> None:
        del secrets
        if not is_tool_name(f"{name}_execute"):
            raise DefinitionError(f"a toolset cannot be called `{name!r:.80}`")
        scheme, mark, rest = url.partition("://")
        if mark and scheme != "sqlite":
            raise DefinitionError(
                f"toolset `{name}` has a database of kind `{scheme}`; expected `sqlite:///path`"
            )
        if rows_max < 1 or timeout_ms < 1:
            raise DefinitionError(f"toolset `{name}`: `rows_max` and `timeout_ms` must be 1 or more")
        read_statement(
            "SELECT 1", dialect="sqlite"
        )  # a missing parser is told now, not in the middle of a run
        self._name = name
        # Three slashes are what a URL without a host has: the path follows the third, and a fourth makes it absolute.
        self._path = Path(rest.removeprefix("/") if rest.startswith("//") else rest) if mark else Path(url)
        self._write = write
        self.allowed = tuple(tables)
        self.rows_max = rows_max
        self.timeout_ms = timeout_ms

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    async def open(self) -> None:
        """Look whether the database is there.

        Raises:
            ToolUnreachableError: it is not, or is no database.
        """
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        with closing(self.connect(write=False)) as connection:
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.Error as error:
                raise ToolUnreachableError(f"`{self._path}` cannot be read as a database: {error}") from error

    async def tools(self) -> Sequence[Tool]:
        """The tools."""
        found: list[Tool] = [_Tables(self), _Query(self)]
        if self._write:
            found.append(_Execute(self))
        return found

    async def close(self) -> None:
        """Nothing is held open."""

    def connect(self, *, write: bool) -> sqlite3.Connection:
        """A connection of its own for one use.

        Raises:
            ToolUnreachableError: the file is not there.
        """
        if not self._path.is_file():
            raise ToolUnreachableError(f"there is no database `{self._path}`", toolset=self._name)
        mode = "rw" if write else "ro"
        try:
            connection = sqlite3.connect(
                f"file:{self._path}?mode={mode}", uri=True, timeout=self.timeout_ms / 1000, check_same_thread=False,
                isolation_level=None,
            )  # fmt: skip
        except sqlite3.Error as error:
            raise ToolUnreachableError(f"database `{self._path}` cannot be opened: {error}") from error
        if not write:
            connection.execute("PRAGMA query_only = ON")
        return connection

    def wall_in(self, connection: sqlite3.Connection, statement: Statement) -> None:
        """From here on the connection does what this statement needs, on the allowed tables."""
        connection.set_authorizer(
            wall(connection, self.allowed, write=statement.is_write, own_names=statement.own_names)
        )


class _Tables:
    """Shows which tables there are."""

    def __init__(self, toolset: SqlToolset) -> None:
        self._toolset = toolset
        self.spec = ToolSpec(
            name=f"{toolset.name}_tables",
            description=f"The tables of database `{toolset.name}` and their columns.",
            parameters={"type": "object", "additionalProperties": False},
            effect="read",
            recovery="pure",
            source=f"sql:{toolset.name}",
            timeout_ms=toolset.timeout_ms * 2,
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        """Names and columns."""
        del use
        return await _in_thread(self._toolset, self._read, write=False)

    def _read(self, connection: sqlite3.Connection) -> Any:
        names = [
            row[0]
            for row in connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
            )
        ]
        found: dict[str, Any] = {}
        for name in names:
            if not may_use(name, self._toolset.allowed):  # so it is not shown
                continue
            columns = connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
            found[name] = dict(columns)
        return found


class _Query:
    """Runs one statement that reads."""

    def __init__(self, toolset: SqlToolset) -> None:
        self._toolset = toolset
        self.spec = ToolSpec(
            name=f"{toolset.name}_query",
            description=f"Run one SELECT on database `{toolset.name}` (SQLite); at most {toolset.rows_max} rows come back.",
            parameters=_parameters("One SELECT statement."),
            effect="read",
            recovery="pure",
            source=f"sql:{toolset.name}",
            timeout_ms=toolset.timeout_ms * 2,
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        """Rows, and whether there were more."""
        text, params = use.arguments["statement"], use.arguments.get("params", [])
        statement = await asyncio.to_thread(read_statement, text, dialect="sqlite")
        if statement.is_write:
            raise StatementRefusedError(f"`{self.spec.name}` only reads, found {statement.kind}")
        check_tables(statement, self._toolset.allowed)
        limit = self._toolset.rows_max

        def read(connection: sqlite3.Connection) -> Any:
            self._toolset.wall_in(connection, statement)
            cursor = connection.execute(text, _bound(params))
            rows = cursor.fetchmany(limit + 1)
            columns = [column[0] for column in cursor.description or ()]
            kept = [[_cell(value) for value in row] for row in rows[:limit]]
            return {"columns": columns, "rows": kept, "truncated": len(rows) > limit}

        return await _in_thread(self._toolset, read, write=False)


class _Execute:
    """Runs one statement that writes."""

    def __init__(self, toolset: SqlToolset) -> None:
        self._toolset = toolset
        self.spec = ToolSpec(
            name=f"{toolset.name}_execute",
            description=f"Run one INSERT, UPDATE or DELETE on database `{toolset.name}` (SQLite). Values go into `params`.",
            parameters=_parameters(
                "One INSERT, UPDATE or DELETE statement with `?` or `:name` for each value."
            ),
            source=f"sql:{toolset.name}",
            timeout_ms=toolset.timeout_ms * 2,
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        """How many rows were changed."""
        text, params = use.arguments["statement"], use.arguments.get("params", [])
        statement = await asyncio.to_thread(read_statement, text, dialect="sqlite")
        check_tables(statement, self._toolset.allowed)

        limit = self._toolset.rows_max

        def write(connection: sqlite3.Connection) -> Any:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._toolset.wall_in(connection, statement)
                cursor = connection.execute(text, _bound(params))
                # A statement with RETURNING is done only when its last row was read.
                rows = [[_cell(value) for value in row] for row in cursor.fetchmany(limit)]
                truncated = sum(1 for _ in cursor) > 0
                connection.set_authorizer(None)
                (changed,) = connection.execute("SELECT changes()").fetchone()
            except BaseException:
                connection.set_authorizer(None)
                if connection.in_transaction:  # `INSERT OR ROLLBACK` has left it
                    connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise ToolDoubtfulError(f"the commit was not confirmed: {error}") from error
            if cursor.description is None:
                return {"rows_changed": changed}
            columns = [column[0] for column in cursor.description]
            return {"rows_changed": changed, "columns": columns, "rows": rows, "truncated": truncated}

        return await _in_thread(self._toolset, write, write=True)


def _parameters(text: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"statement": {"type": "string", "description": text}, "params": PARAMS},
        "required": ["statement"],
        "additionalProperties": False,
    }


async def _in_thread(
    toolset: SqlToolset, work: Callable[[sqlite3.Connection], Any], *, write: bool
) -> ToolOutput:
    """Run something on a connection of its own; too long, or no longer awaited, and it is interrupted."""
    given_up = threading.Event()

    def run() -> ToolOutput:
        until = time.monotonic() + toolset.timeout_ms / 1000
        with closing(toolset.connect(write=write)) as connection:
            connection.set_progress_handler(
                lambda: int(given_up.is_set() or time.monotonic() > until),
                OPCODES,
            )
            try:
                return ToolOutput(value=work(connection))
            except sqlite3.OperationalError as error:
                if "interrupted" not in str(error):
                    return _refused(error)
                message = (
                    f"the statement took longer than {toolset.timeout_ms} ms and was stopped; ask for less"
                )
                raise ToolFailedError(message) from error
            except (sqlite3.Error, OverflowError) as error:  # an integer beyond 64 bits
                return _refused(error)

    try:
        return await asyncio.to_thread(run)
    finally:
        given_up.set()


def _refused(error: Exception) -> ToolOutput:
    """What the database says, for the model to read."""
    return ToolOutput(value=f"the database refuses the statement: {error}", is_error=True)


def _bound(params: Any) -> Sequence[Any] | Mapping[str, Any]:
    """Parameters as SQLite takes them; anything else than a plain value is refused by it."""
    return params if isinstance(params, dict) else tuple(params)


def _cell(value: Any) -> Any:
    """A value that JSON holds without loss, and not more of it than a model can use."""
    if isinstance(value, bytes):
        shown = base64.b64encode(value[:CELL_CHARACTERS_MAX]).decode()
        return {"base64": shown, "size_bytes": len(value)}
    if isinstance(value, str) and len(value) > CELL_CHARACTERS_MAX:
        return f"{value[:CELL_CHARACTERS_MAX]}[cut: {len(value)} characters]"
    if isinstance(value, int) and abs(value) > SAFE_INTEGER:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
