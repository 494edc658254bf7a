"""SQL tools: reads are reads, writes are told apart by a parser, values are parameters, rows are bounded."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.core.errors import DefinitionError, StatementRefusedError, ToolFailedError, ToolUnreachableError
from perdure.core.tools import ToolOutput, ToolUse
from perdure.tools.sql import SqlToolset
from perdure.tools.statements import read_statement


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, cents INTEGER, photo BLOB);
        CREATE TABLE secrets (name TEXT, value TEXT);
        INSERT INTO secrets VALUES ('a', 'b');
        """
    )
    connection.executemany(
        "INSERT INTO orders (item, cents) VALUES (?, ?)", [(f"item {n}", n * 100) for n in range(500)]
    )
    connection.execute("UPDATE orders SET photo = x'00ff', cents = 9007199254740993 WHERE id = 1")
    connection.commit()
    connection.close()
    return path


def execute(database: Path, script: str) -> list[Any]:
    """What the owner of the database does, without Perdure."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        if script.startswith("SELECT"):
            return connection.execute(script).fetchall()
        connection.executescript(script)
        return []


async def run(toolset: SqlToolset, tool: str, statement: str | None = None, params: Any = None) -> ToolOutput:
    [found] = [item for item in await toolset.tools() if item.spec.name == f"shop_{tool}"]
    arguments: dict[str, Any] = {} if statement is None else {"statement": statement}
    if params is not None:
        arguments["params"] = params
    return await found.call(ToolUse(run="r", key="r/1", arguments=arguments))


async def test_reading(database: Path) -> None:
    shop = SqlToolset("shop", f"sqlite:///{database}")
    await shop.open()
    assert [tool.spec.name for tool in await shop.tools()] == ["shop_tables", "shop_query"]
    assert {(tool.spec.effect, tool.spec.recovery) for tool in await shop.tools()} == {("read", "pure")}
    tables = (await run(shop, "tables")).value
    assert tables["orders"] == {"id": "INTEGER", "item": "TEXT", "cents": "INTEGER", "photo": "BLOB"}
    found = (
        await run(shop, "query", "SELECT id, item FROM orders WHERE cents > ? ORDER BY id LIMIT 2", [100])
    ).value
    assert found["rows"][0][0] == 1
    assert found["columns"] == ["id", "item"]
    named = await run(shop, "query", "SELECT count(*) FROM orders WHERE item = :item", {"item": "item 7"})
    assert named.value["rows"] == [[1]]
    everything = (await run(shop, "query", "SELECT * FROM orders ORDER BY id")).value
    assert len(everything["rows"]) == 200
    assert everything["truncated"] is True
    assert everything["rows"][0][2:] == ["9007199254740993", {"base64": "AP8=", "size_bytes": 2}]
    with_cte = "WITH dear AS (SELECT * FROM orders WHERE cents > 40000) SELECT count(*) FROM dear"
    assert (await run(shop, "query", with_cte)).value["rows"][0][0] > 1


HIDDEN_WRITES = [
    "DELETE FROM orders",
    "WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone",
    "SELECT 1; DELETE FROM orders",
    "SELECT 1 /* harmless */; -- really\nDROP TABLE orders",
    "/* SELECT */ UPDATE orders SET cents = 0",
    "EXPLAIN DELETE FROM orders",
    "EXPLAIN ANALYZE DELETE FROM orders",
    "PRAGMA writable_schema = 1",
    "ATTACH DATABASE '/tmp/x.db' AS x",
    "VACUUM INTO '/tmp/x.db'",
    "CREATE TABLE t (a)",
    "DROP TABLE orders",
    "ALTER TABLE orders ADD COLUMN x",
    "REPLACE INTO orders (id) VALUES (1)",
    "SELECT load_extension('/tmp/x.so')",
    "SELECT writefile('/tmp/x', 'y')",
    "SELECT * INTO copy FROM orders",
    "BEGIN; DELETE FROM orders; COMMIT",
    "SELECT * FROM orders WHERE id IN (SELECT load_extension('x'))",
    "this is no SQL at all (",
    "",
]


@pytest.mark.parametrize("statement", HIDDEN_WRITES)
async def test_a_hidden_write_is_refused(database: Path, statement: str) -> None:
    before = database.read_bytes()
    with pytest.raises(StatementRefusedError):
        await run(SqlToolset("shop", str(database)), "query", statement)
    assert database.read_bytes() == before


async def test_the_second_wall_holds_where_the_parser_is_fooled(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.tools import sql
    from perdure.tools.statements import Statement

    monkeypatch.setattr(sql, "read_statement", lambda *_, **__: Statement(False, "SELECT", frozenset()))
    shop = SqlToolset("shop", str(database))
    for statement in ("DELETE FROM orders", "ATTACH DATABASE ':memory:' AS x", "PRAGMA query_only = OFF"):
        output = await run(shop, "query", statement)
        assert output.is_error, statement
    assert (await run(shop, "query", "SELECT count(*) FROM orders")).value["rows"] == [[500]]


async def test_tables_that_are_not_allowed_are_refused_and_not_shown(database: Path) -> None:
    shop = SqlToolset("shop", str(database), tables=["orders"])
    assert list((await run(shop, "tables")).value) == ["orders"]
    for statement in (
        "SELECT * FROM secrets",
        "SELECT * FROM orders WHERE item IN (SELECT value FROM secrets)",
        "SELECT * FROM main.secrets",
        "WITH orders AS (SELECT * FROM secrets) SELECT * FROM orders",
        "SELECT sql FROM sqlite_master",
    ):
        with pytest.raises(StatementRefusedError, match="not among"):
            await run(shop, "query", statement)


SHADOWED = [
    # a name of a part of the statement hides the table of another part from a parser that does not know scopes
    "SELECT value FROM secrets WHERE EXISTS (WITH secrets AS (SELECT 1) SELECT * FROM secrets)",
    # a view of the database is trusted, a name that the statement gives itself is not
    "WITH cheap AS (SELECT value FROM main.secrets) SELECT * FROM cheap",
    "SELECT * FROM orders WHERE item IN (WITH shown AS (SELECT value FROM secrets) SELECT * FROM shown)",
]


@pytest.mark.parametrize("statement", SHADOWED)
async def test_the_database_itself_refuses_a_table_that_is_not_allowed(
    database: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = SqlToolset("shop", str(database), tables=["orders", "cheap"])
    execute(
        database, "CREATE VIEW cheap AS SELECT name FROM secrets; CREATE VIEW shown AS SELECT * FROM orders"
    )
    assert (await run(shop, "query", "SELECT * FROM cheap")).value["rows"] == [["a"]]  # its owner made it so
    try:
        first = await run(shop, "query", statement)
    except StatementRefusedError:
        pass
    else:
        assert first.is_error
        assert "prohibited" in str(first.value)
    monkeypatch.setattr("perdure.tools.sql.check_tables", lambda *_: None)
    second = await run(shop, "query", statement)
    assert second.is_error, second.value
    assert "prohibited" in str(second.value)


async def test_a_write_cannot_hide_its_table_behind_a_name_of_its_own(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = SqlToolset("shop", str(database), tables=["orders"], write=True)
    before = database.read_bytes()
    statements = (
        ("WITH secrets AS (SELECT ?) DELETE FROM secrets", [1]),
        ("WITH secrets AS (SELECT ?) UPDATE secrets SET value = ?", [1, "x"]),
        ("WITH secrets AS (SELECT ?) INSERT INTO secrets (name) VALUES (?)", [1, "x"]),
    )
    for statement, params in statements:
        with pytest.raises(StatementRefusedError, match="not among"):
            await run(shop, "execute", statement, params)
    monkeypatch.setattr("perdure.tools.sql.check_tables", lambda *_: None)
    for statement, params in statements:
        assert (await run(shop, "execute", statement, params)).is_error
    assert database.read_bytes() == before


async def test_what_a_trigger_of_the_database_does_is_its_owners(database: Path) -> None:
    execute(
        database,
        """CREATE TABLE log (item TEXT);
        CREATE TRIGGER noted AFTER INSERT ON orders BEGIN INSERT INTO log VALUES (new.item); END""",
    )
    shop = SqlToolset("shop", str(database), tables=["orders"], write=True)
    done = await run(shop, "execute", "INSERT INTO orders (item) VALUES (?)", ["tea"])
    assert done.value == {"rows_changed": 1}
    assert execute(database, "SELECT item FROM log") == [("tea",)]


async def test_full_text_search_reads_its_own_tables(database: Path) -> None:
    execute(database, "CREATE VIRTUAL TABLE docs USING fts5(text); INSERT INTO docs VALUES ('hello world')")
    shop = SqlToolset("shop", str(database), tables=["docs"], write=True)
    found = await run(shop, "query", "SELECT text FROM docs WHERE docs MATCH ?", ["hello"])
    assert found.value["rows"] == [["hello world"]]
    await run(shop, "execute", "INSERT INTO docs (text) VALUES (?)", ["hello moon"])
    found = await run(shop, "query", "SELECT count(*) FROM docs WHERE docs MATCH ?", ["hello"])
    assert found.value["rows"] == [[2]]


async def test_rows_that_a_write_returns_come_back_bounded_and_the_write_is_done(database: Path) -> None:
    shop = SqlToolset("shop", str(database), write=True, rows_max=3)
    done = await run(shop, "execute", "UPDATE orders SET cents = ? WHERE id < ? RETURNING id", [1, 9])
    assert done.value == {"rows_changed": 8, "columns": ["id"], "rows": [[1], [2], [3]], "truncated": True}
    assert execute(database, "SELECT count(*) FROM orders WHERE cents = 1") == [(8,)]
    rolled = await run(shop, "execute", "INSERT OR ROLLBACK INTO orders (id) VALUES (?)", [1])
    assert rolled.is_error
    too_large = await run(shop, "execute", "INSERT INTO orders (cents) VALUES (?)", [2**70])
    assert too_large.is_error


async def test_a_write_nobody_waits_for_any_longer_is_not_made(database: Path) -> None:
    shop = SqlToolset("shop", str(database), write=True)
    slow = """WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + ? FROM n WHERE i < ?)
        INSERT INTO orders (cents) SELECT i FROM n"""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await run(shop, "execute", slow, [1, 1, 100_000_000])
    await asyncio.sleep(0.3)
    assert execute(database, "SELECT count(*) FROM orders") == [(500,)]


async def test_writing_takes_its_values_as_parameters(database: Path) -> None:
    shop = SqlToolset("shop", str(database), write=True)
    [execute] = [tool for tool in await shop.tools() if tool.spec.name == "shop_execute"]
    assert (execute.spec.effect, execute.spec.recovery) == ("irreversible", "opaque")
    done = await run(shop, "execute", "INSERT INTO orders (item, cents) VALUES (?, ?)", ["tea", 5])
    assert done.value == {"rows_changed": 1}
    assert (await run(shop, "execute", "UPDATE orders SET cents = ? WHERE item = ?", [6, "tea"])).value == {
        "rows_changed": 1
    }
    for statement in (
        "UPDATE orders SET cents = 0 WHERE id = 3",
        "DELETE FROM orders WHERE item = 'tea'",
        "INSERT INTO orders (item) VALUES ('x')",
        "INSERT INTO orders (id) VALUES (?) ON CONFLICT DO UPDATE SET cents = 0",
        "WITH zero AS (SELECT 0) UPDATE orders SET cents = (SELECT * FROM zero)",
    ):
        with pytest.raises(StatementRefusedError, match="parameters"):
            await run(shop, "execute", statement)
    wrong = await run(shop, "execute", "INSERT INTO orders (id) VALUES (?)", [1])
    assert wrong.is_error
    assert "UNIQUE" in str(wrong.value)


async def test_a_statement_that_takes_too_long_is_stopped(database: Path) -> None:
    shop = SqlToolset("shop", str(database), timeout_ms=100)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(ToolFailedError, match="100 ms"):
        await run(shop, "query", endless)


async def test_what_is_no_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(ToolUnreachableError, match="no database"):
        await SqlToolset("shop", str(tmp_path / "none.db")).open()
    (tmp_path / "text.db").write_text("x" * 5_000)
    with pytest.raises(ToolUnreachableError):
        await SqlToolset("shop", str(tmp_path / "text.db")).open()
    with pytest.raises(DefinitionError, match="postgres"):
        SqlToolset("shop", "postgres://localhost/x")


def test_kinds_and_tables() -> None:
    assert read_statement("SELECT a FROM t JOIN s.u ON 1", dialect="sqlite").tables == {"t", "s.u"}
    assert read_statement("UPDATE t SET a = ?", dialect="sqlite").is_write
    assert not read_statement("SELECT 1 UNION SELECT 2", dialect="sqlite").is_write
