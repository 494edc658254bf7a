"""SQLite: files that are missing, new, foreign, newer, damaged, read-only or full; backups of a store in use."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from perdure import Runtime, agent
from perdure.core.errors import (
    CorruptError,
    DataDirInvalidError,
    JournalCorruptError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)
from perdure.core.values import Payload
from perdure.stores.sqlite import SqliteStore, backup, integrity, open_connection, sizes
from perdure.testing.conformance.rows import insert, running, slept, text

MARK = "a-mark-that-is-nowhere-else"


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[Path]:
    """A file system of its own at ``target``; skips where this is not allowed."""
    target.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=False)


async def filled(path: Path, runs: int = 3) -> None:
    """A closed database with some runs."""
    store = SqliteStore(path)
    for number in range(runs):
        await store.transact(lambda tx, n=number: running(tx, f"r{n}"))
        await store.transact(lambda tx, n=number: tx.append(f"r{n}", 1, (slept(2),), {}))
    await store.close()


# -- opening
@pytest.mark.parametrize("exists", [False, True])
async def test_a_missing_or_empty_file_gets_the_newest_schema(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "perdure.db"
    if exists:
        path.touch()
    store = SqliteStore(path)
    await store.transact(lambda tx: insert(tx, "one"))
    await store.close()
    assert integrity(path) == []
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone()[0] >= 1
        assert raw.execute("PRAGMA application_id").fetchone()[0] == 0x50455244
        assert raw.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    raw.close()


async def test_what_is_written_is_there_after_reopening(tmp_path: Path) -> None:
    await filled(tmp_path / "perdure.db")
    store = SqliteStore(tmp_path / "perdure.db")
    assert [entry.seq for entry in store.read(lambda tx: tx.journal("r2"))] == [1, 2]
    assert sizes(tmp_path / "perdure.db")["journal"] == 6
    await store.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    await filled(path)
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 999")
    raw.close()
    with pytest.raises(DataDirInvalidError, match="schema 999.*upgrade") as caught:
        SqliteStore(path)
    assert caught.value.facts["found"] == 999


async def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE theirs (x)")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(DataDirInvalidError, match="another program"):
        SqliteStore(path)
    assert path.read_bytes() == before


# -- damage
async def test_a_smashed_header_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    await filled(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    with pytest.raises(CorruptError, match="damaged.*backup"):
        SqliteStore(path)
    assert integrity(path)


async def test_a_flipped_byte_blocks_only_its_run(tmp_path: Path) -> None:
    @agent("waits")
    async def waits(run, text: str):  # type: ignore[no-untyped-def]
        await run.receive("go")
        return text

    async with Runtime.open(tmp_path, agents=[waits]) as runtime:
        hurt = await runtime.start("waits", MARK)
        well = await runtime.start("waits", "well")
        while {run.status.value for run in runtime.runs()} != {"waiting"}:
            await asyncio.sleep(0.01)
    path = tmp_path / "perdure.db"
    data = bytearray(path.read_bytes())
    at = data.find(MARK.encode())
    assert at > 0
    assert data.find(MARK.encode(), at + 1) < 0
    data[at] ^= 1
    path.write_bytes(bytes(data))
    assert any("damaged" in problem for problem in integrity(path))
    async with Runtime.open(tmp_path, agents=[waits]) as runtime:
        await runtime.run(hurt.id).send("go")
        await runtime.run(well.id).send("go")
        assert await runtime.run(well.id).result(10) == "well"
        with pytest.raises(JournalCorruptError):
            await runtime.run(hurt.id).result(10)
        assert runtime.run(hurt.id).status.value == "blocked"


async def test_a_damaged_blob_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    store = SqliteStore(path)
    await store.transact(
        lambda tx: tx.set_state("a", "s", "k", Payload(blob="f" * 64, size=1), {"f" * 64: b"x"})
    )
    with pytest.raises(CorruptError, match="blob"):
        store.read(lambda tx: tx.blob("f" * 64))
    await store.close()


# -- no rights, no room
async def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataDirInvalidError):
        async with Runtime.open(tmp_path / "file"):
            pass
    with pytest.raises(StoreReadOnlyError):
        SqliteStore(tmp_path / "file" / "perdure.db")


async def test_a_missing_directory_is_refused_by_the_store(tmp_path: Path) -> None:
    with pytest.raises(StoreReadOnlyError, match="directory exists"):
        SqliteStore(tmp_path / "none" / "perdure.db")


async def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    await filled(folder / "perdure.db")
    if os.geteuid() != 0:
        folder.chmod(0o500)
        (folder / "perdure.db").chmod(0o400)
        await _refused_as_read_only(folder)
        return
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        await _refused_as_read_only(folder)


async def _refused_as_read_only(folder: Path) -> None:
    with pytest.raises((StoreReadOnlyError, DataDirInvalidError)):
        async with Runtime.open(folder):
            pass
    with pytest.raises(StoreReadOnlyError):
        store = SqliteStore(folder / "perdure.db")
        try:
            await store.transact(lambda tx: insert(tx, "new"))
        finally:
            await store.close()


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        filler = folder / "filler"
        filler.write_bytes(b"x" * 1_000_000)
        store = SqliteStore(folder / "perdure.db")
        kept = await _until_full(store)
        assert kept > 3
        filler.unlink()
        await store.transact(lambda tx: insert(tx, "after"))
        assert store.read(lambda tx: tx.run("after")) is not None
        await store.close()
        assert integrity(folder / "perdure.db") == []


async def test_a_full_database_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perdure.db")
    limit = store._writer.execute("PRAGMA page_count").fetchone()[0] + 40
    store._writer.execute(f"PRAGMA max_page_count = {limit}")
    await _until_full(store)
    store._writer.execute("PRAGMA max_page_count = 1000000")
    await store.transact(lambda tx: insert(tx, "after"))
    await store.close()
    assert integrity(tmp_path / "perdure.db") == []


async def _until_full(store: SqliteStore) -> int:
    """Write until it is refused; everything acknowledged must be there and nothing of the refused work."""
    body = "x" * 20_000
    for number in range(2_000):
        try:
            await store.transact(lambda tx, n=number: (insert(tx, f"r{n}"), tx.deliver(f"r{n}", "t", text(body), {}, sender="", now_ms=1, key=None)))  # fmt: skip
        except StoreFullError as error:
            assert "disk is full" in str(error)
            found = store.read(lambda tx: [tx.run(f"r{n}") is not None for n in range(number + 1)])
            assert found == [True] * number + [False]
            return number
    raise AssertionError("it never got full")


# -- in use
async def test_backup_while_writing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perdure.db")
    stop = asyncio.Event()

    async def write() -> int:
        await store.transact(lambda tx: running(tx, "one"))
        seq = 1
        while not stop.is_set():
            seq += 1
            await store.transact(lambda tx: tx.append("one", 1, (slept(seq),), {}))  # noqa: B023
        return seq

    writer = asyncio.create_task(write())
    for number in range(3):
        await asyncio.sleep(0.05)
        target = tmp_path / f"copy{number}.db"
        await asyncio.to_thread(backup, tmp_path / "perdure.db", target)
        copy = open_connection(target, read_only=True)
        seqs = [row[0] for row in copy.execute("SELECT seq FROM journal ORDER BY seq")]
        copy.close()
        assert seqs == list(range(1, len(seqs) + 1))
        assert integrity(target) == []
    stop.set()
    last = await writer
    assert len(store.read(lambda tx: tx.journal("one"))) == last
    await store.close()


async def test_changes_of_another_process_are_noticed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perdure.db")
    other = SqliteStore(tmp_path / "perdure.db")
    for _ in range(3):
        store.changed_elsewhere()
        await store.transact(lambda tx: None)
    assert not store.changed_elsewhere()
    await other.transact(lambda tx: insert(tx, "one"))
    store.changed_elsewhere()
    await store.transact(lambda tx: None)
    assert store.changed_elsewhere()
    assert store.read(lambda tx: tx.run("one")) is not None
    await other.close()
    await store.close()


async def test_a_locked_database_is_unavailable_and_nothing_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perdure.db")
    store._writer.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "perdure.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        await store.transact(lambda tx: insert(tx, "one"))
    other.execute("ROLLBACK")
    other.close()
    await store.transact(lambda tx: insert(tx, "two"))
    assert store.read(lambda tx: [tx.run("one"), tx.run("two") is not None]) == [None, True]
    await store.close()


def test_two_processes_may_make_a_database_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    failures: list[BaseException] = []

    def make() -> None:
        try:
            open_connection(path).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_runs_that_ended_last_are_found_by_their_index(tmp_path: Path) -> None:
    with closing(open_connection(tmp_path / "d.db")) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM runs WHERE agent = 'a' AND ended_ms > 1 AND ended_ms <= 2 "
            "ORDER BY ended_ms DESC, key DESC LIMIT 50 OFFSET 0"
        ).fetchall()
    assert [row[3].partition(" (")[0] for row in plan] == ["SEARCH runs USING INDEX runs_ended"]
