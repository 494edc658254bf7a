"""What an SQL statement does, told by a parser: one statement, of which kind, on which tables. When it cannot be told, the answer is no."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.core.errors import DefinitionError, StatementRefusedError

STATEMENT_CHARACTERS_MAX = 50_000
# Functions that do more than compute. SQLite refuses some of them by itself; a name here is refused everywhere.
FUNCTIONS_REFUSED = frozenset(
    (
        "load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "pg_read_file", "pg_read_binary_file",
        "pg_ls_dir", "lo_import", "lo_export", "dblink", "nextval", "setval", "set_config", "pg_sleep",
        "pg_terminate_backend", "query_to_xml", "database_to_xml", "system", "sys_exec", "sys_eval", "load_file",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. ``tables`` are those that it names; ``own_names`` are its own common table expressions."""

    is_write: bool
    kind: str
    tables: frozenset[str]
    own_names: frozenset[str] = frozenset()


def read_statement(text: str, *, dialect: str) -> Statement:
    """What a statement is.

    Raises:
        StatementRefusedError: it is not one SELECT, INSERT, UPDATE or DELETE, or does something else beside it.
        DefinitionError: the parser is not installed.
    """
    sqlglot, exp = _parser()
    if len(text) > STATEMENT_CHARACTERS_MAX:
        raise StatementRefusedError(
            f"a statement may have {STATEMENT_CHARACTERS_MAX} characters, found {len(text)}"
        )
    try:
        parsed = [item for item in sqlglot.parse(text, dialect=dialect) if item is not None]
    except Exception as error:  # whatever the parser raises: what the statement does cannot be told
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StatementRefusedError(
            f"the statement cannot be understood, so it is not run: {first[:300]}"
        ) from error
    if len(parsed) != 1:
        raise StatementRefusedError(f"expected one statement, found {len(parsed)}")
    root = parsed[0]
    kinds = {exp.Insert: "INSERT", exp.Update: "UPDATE", exp.Delete: "DELETE"}
    kind = next((name for found, name in kinds.items() if isinstance(root, found)), "")
    if not kind and isinstance(root, exp.Query):
        kind = "SELECT"
    if not kind:
        raise StatementRefusedError(f"expected SELECT, INSERT, UPDATE or DELETE, found {_name(root)}")
    _check_parts(root, exp, is_write=kind != "SELECT")
    own = frozenset(item.alias_or_name.lower() for item in root.find_all(exp.CTE))
    return Statement(kind != "SELECT", kind, _tables(root, exp, own), own)


def _check_parts(root: Any, exp: Any, *, is_write: bool) -> None:
    """Nothing hides within: a write in a common table expression, INTO, a lock, a function with an effect."""
    changing = (
        exp.Insert,
        exp.Update,
        exp.Delete,
        exp.Merge,
        exp.Create,
        exp.Drop,
        exp.Into,
        exp.Lock,
        exp.Command,
    )
    for node in root.walk():
        if node is not root and isinstance(node, changing):
            raise StatementRefusedError(
                f"the statement hides {_name(node)} within; write it as one of its own"
            )
        if isinstance(node, exp.Func):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            if name in FUNCTIONS_REFUSED:
                raise StatementRefusedError(f"function `{name}` does more than compute, so it is refused")
    if is_write and root.find(exp.Literal):
        message = "a statement that writes takes its values as parameters, found a literal"
        raise StatementRefusedError(f"{message}; write `?` and give the values in `params`")


def _tables(root: Any, exp: Any, own: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    changed = _target(root, exp)  # a name of the statement's own never stands for what is written to
    for table in root.find_all(exp.Table):
        schema, name = table.db, table.name
        if not name:  # a function in the place of a table
            inner = table.this
            raise StatementRefusedError(f"a function stands in the place of a table: {_name(inner)}")
        if schema or table is changed or name.lower() not in own:
            found.add(f"{schema}.{name}".lower() if schema and schema.lower() != "main" else name.lower())
    return frozenset(found)


def _target(root: Any, exp: Any) -> Any:
    if isinstance(root, exp.Query):
        return None
    found = root.this
    return found.this if isinstance(found, exp.Schema) else found


def check_tables(statement: Statement, allowed: Sequence[str]) -> None:
    """Refuse tables that the toolset is not for.

    Raises:
        StatementRefusedError: one is not among ``allowed`` (names, with ``*`` and ``?``).
    """
    for name in sorted(statement.tables):
        if not any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in allowed):
            raise StatementRefusedError(
                f"table `{name}` is not among those that may be used: {_listed(allowed)}"
            )


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _name(node: Any) -> str:
    return str(getattr(node, "key", type(node).__name__)).upper()


def _parser() -> tuple[Any, Any]:
    try:
        import sqlglot
        from sqlglot import exp
    except ImportError as error:
        message = "SQL tools need a parser; install it with `pip install 'perdure[sql]'`"
        raise DefinitionError(message) from error
    return sqlglot, exp
