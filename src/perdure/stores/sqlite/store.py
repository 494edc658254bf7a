"""The writer: one thread, one connection, group commit.

Works wait in a queue; the thread takes all that are there, runs each in a savepoint of its own inside one
transaction, commits once, and gives every acknowledgement back to the loop in one call. A work that raises undoes only
itself. ``synchronous=FULL`` makes the commit durable before any acknowledgement.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from perdure.core.errors import StoreUnavailableError
from perdure.core.limits import BATCH_WORKS_MAX
from perdure.ports.store import Transaction
from perdure.stores.sqlite.schema import open_connection, translate, translated
from perdure.stores.sqlite.transaction import SqliteTransaction

T = TypeVar("T")
_Work = tuple[Callable[[Transaction], Any], "asyncio.Future[Any]"]
_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]


class SqliteStore:
    """The ``Store`` port on one SQLite file, for one process at a time.

    Args:
        path: the database file; made if missing.
        durability: ``full`` or ``relaxed`` (see ``Settings``).

    Raises:
        CorruptError, DataDirInvalidError, StoreReadOnlyError: the file cannot be used.
    """

    def __init__(self, path: Path, *, durability: str = "full") -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = open_connection(path, durability=durability)
        self._reader = open_connection(path, read_only=True)
        self._transaction = SqliteTransaction(self._writer)
        self._reading = SqliteTransaction(self._reader)
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._closed = False
        self._version = 0
        self._foreign = False
        self.batches = 0
        self.works = 0
        self._thread = threading.Thread(target=self._write, name="perdure-store", daemon=True)
        self._thread.start()

    def transact(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Queue a work now, in the order of the calls; await the result."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(StoreUnavailableError("the store is closed"))
        else:
            self._queue.put((work, future))
        return future

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run a reading work on the loop's own connection: one consistent view of what is durable."""
        with translated():
            self._reader.execute("BEGIN")
            try:
                return work(cast(Transaction, self._reading))
            finally:
                self._reader.execute("COMMIT")

    def changed_elsewhere(self) -> bool:
        """Whether another process committed since the last call (SQLite's ``data_version`` of the writer)."""
        changed, self._foreign = self._foreign, False
        if self._queue.empty():
            self._queue.put((self._look, self._loop.create_future()))
        return changed

    def _look(self, tx: Transaction) -> None:  # noqa: ARG002 - a work like any other
        version = self._writer.execute("PRAGMA data_version").fetchone()[0]
        self._foreign = self._foreign or (self._version not in (0, version))
        self._version = version

    async def close(self) -> None:
        """Finish what was accepted, then close."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        while self._thread.is_alive():
            await asyncio.sleep(0.001)
        self._reader.close()
        self._writer.close()

    # -- in the thread
    def _write(self) -> None:
        queue = self._queue
        while True:
            first = queue.get()
            batch: list[_Work | None] = [first]
            try:
                while len(batch) < BATCH_WORKS_MAX:
                    batch.append(queue.get_nowait())
            except Empty:
                pass
            works = [item for item in batch if item is not None]
            if works:
                answers = self._commit(works)
                self._loop.call_soon_threadsafe(_answer, answers)
            if len(works) < len(batch):
                return

    def _commit(self, works: list[_Work]) -> list[_Answer]:
        """Run the works and commit; if the transaction as a whole fails, every work of it gets the error."""
        execute = self._writer.execute
        answers: list[_Answer] = []
        try:
            execute("BEGIN IMMEDIATE")
            for work, future in works:
                answers.append(self._run(work, future))
            execute("COMMIT")
        except sqlite3.Error as error:
            if self._writer.in_transaction:
                execute("ROLLBACK")
            failure = translate(error)
            return [(future, None, failure) for _, future in works]
        self.batches += 1
        self.works += len(works)
        return answers

    def _run(self, work: Callable[[Transaction], Any], future: asyncio.Future[Any]) -> _Answer:
        execute = self._writer.execute
        execute("SAVEPOINT work")
        try:
            result = work(cast(Transaction, self._transaction))
        except sqlite3.OperationalError:
            raise  # the disk, not the work: the whole batch fails
        except Exception as error:  # noqa: BLE001 - the work's own error goes to its caller; the others go on
            execute("ROLLBACK TO work")
            execute("RELEASE work")
            return future, None, translate(error) if isinstance(error, sqlite3.Error) else error
        execute("RELEASE work")
        return future, result, None


def _answer(answers: list[_Answer]) -> None:
    for future, result, error in answers:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
