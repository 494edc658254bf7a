"""The simulated store: real SQLite in memory, the statements of production, and faults at numbered questions.

One :class:`SimDisk` is shared by all processes and survives their crashes. Each process has a :class:`SimStore`, which
groups works into commits as the real writer does: works of one commit share its fate, acknowledgements go back in
order, and after an error the outcome may be either.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from perdure.core.errors import StoreFullError, StoreUnavailableError
from perdure.ports.store import Transaction
from perdure.stores.sqlite.schema import migrations, translate
from perdure.stores.sqlite.transaction import SqliteTransaction
from perdure.testing.ledger_oracle import WATCH as _WATCH_LEDGER
from perdure.testing.loop import INCARNATION

if TYPE_CHECKING:
    from perdure.testing.world import World

T = TypeVar("T")
_Work = tuple[Callable[[Transaction], Any], "asyncio.Future[Any]"]

# What the oracle sees of each commit: temporary triggers write beside the tables, and a rollback undoes that as well.
_WATCH = """
CREATE TEMP TABLE seen_entries (run INTEGER, seq INTEGER, body BLOB, worker TEXT, status TEXT);
CREATE TEMP TRIGGER see_entry AFTER INSERT ON main.journal BEGIN
    INSERT INTO seen_entries SELECT new.run, new.seq, new.body, worker, status FROM main.runs WHERE key = new.run;
END;
CREATE TEMP TABLE seen_changes (what TEXT, run INTEGER, seq INTEGER);
CREATE TEMP TRIGGER see_update AFTER UPDATE ON main.journal BEGIN
    INSERT INTO seen_changes VALUES ('changed', old.run, old.seq);
END;
CREATE TEMP TRIGGER see_delete AFTER DELETE ON main.journal BEGIN
    INSERT INTO seen_changes VALUES ('deleted', old.run, old.seq);
END;
CREATE TEMP TABLE seen_mail (id INTEGER, run INTEGER, topic TEXT, body BLOB);
CREATE TEMP TRIGGER see_mail AFTER INSERT ON main.mail BEGIN
    INSERT INTO seen_mail VALUES (new.id, new.run, new.topic, new.body);
END;
CREATE TEMP TABLE seen_status (run INTEGER, before TEXT, after TEXT);
CREATE TEMP TRIGGER see_status AFTER UPDATE OF status ON main.runs WHEN old.status <> new.status BEGIN
    INSERT INTO seen_status VALUES (new.key, old.status, new.status);
END;
"""


class SimDisk:
    """What survives every crash."""

    def __init__(self, transaction: type[SqliteTransaction] = SqliteTransaction) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for _, script in migrations():
            self.connection.executescript(script)
        self.connection.executescript(_WATCH + _WATCH_LEDGER)
        self.transaction = transaction(self.connection)
        self.commits = 0

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run a reading work on what is committed."""
        return work(cast(Transaction, self.transaction))


class SimStore:
    """The ``Store`` port of one process.

    Args:
        world: whose disk and chance it uses.
        worker: the name of the worker that writes through it; empty for a client beside the workers.
    """

    def __init__(self, world: World, worker: str) -> None:
        self._world = world
        self._disk = world.disk
        self.worker = worker
        self.process = INCARNATION.get()
        self._queue: list[_Work] = []
        self._is_due = False
        self._acknowledged_s = 0.0
        self._seen_commits = self._disk.commits
        self._foreign = False

    # -- port ``Store``
    def transact(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Queue a work; it takes effect in the order of the calls, some virtual time later."""
        loop = self._world.loop
        future: asyncio.Future[T] = loop.create_future()
        if loop.is_disposed or loop.is_dead(self.process):
            return future
        self._queue.append((work, future))
        if not self._is_due:
            self._is_due = True
            loop.call_later(self._latency_s(), self._flush)
        return future

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run a reading work on what is committed."""
        return self._disk.read(work)

    def changed_elsewhere(self) -> bool:
        """Whether another process had committed by the last call, as the real store says it (one call late)."""
        changed, self._foreign = self._foreign, self._disk.commits != self._seen_commits
        self._seen_commits = self._disk.commits
        return changed

    async def close(self) -> None:
        """Nothing to do: the process owns nothing."""

    # -- one commit
    def _latency_s(self) -> float:
        swarm, chance = self._world.swarm, self._world.chance
        if self.worker and chance.fault("store slow", swarm.store_slow):
            self._world.sometimes["store slow"] += 1
            return chance.between("store slow ms", 500, 6_000) / 1000
        return chance.between("store ms", 0, swarm.store_ms) / 1000

    def _flush(self) -> None:
        world, swarm = self._world, self._world.swarm
        works, self._queue, self._is_due = self._queue, [], False
        if self._asks("store busy", swarm.store_busy):
            self._acknowledge(works, [], StoreUnavailableError("the store was busy (simulated)"))
            return
        execute = self._disk.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            answers = [self._run(work) for work, _ in works]
        except sqlite3.Error as error:
            execute("ROLLBACK")
            self._acknowledge(works, [], translate(error))
            return
        for what, probability, failure in (
            ("store full", swarm.store_full, StoreFullError("the disk is full (simulated)")),
            ("store lost", swarm.store_lost, StoreUnavailableError("no answer, not committed (simulated)")),
            ("crash before commit", swarm.crash_before_commit, None),
        ):
            if self._asks(what, probability):
                execute("ROLLBACK")
                self._end(works, [], failure)
                return
        execute("COMMIT")
        self._disk.commits += 1
        self._seen_commits += 1
        world.oracle.committed(self.worker)
        if self._asks("crash after commit", swarm.crash_after_commit):
            self._end(works, answers, None)
        elif self._asks("store unknown", swarm.store_unknown):
            self._end(works, [], StoreUnavailableError("no answer, though committed (simulated)"))
        else:
            self._acknowledge(works, answers, None)

    def _asks(self, what: str, probability: float) -> bool:
        if not self.worker and what.startswith("crash"):
            return False
        if not self._world.chance.fault(what, probability):
            return False
        self._world.sometimes[what] += 1
        return True

    def _end(self, works: list[_Work], answers: list[Any], failure: Exception | None) -> None:
        """The commit came to an error, or (without one) its process dies here."""
        if failure is None:
            self._world.crash(self.process or "", "at a commit")
        else:
            self._acknowledge(works, answers, failure)

    def _run(self, work: Callable[[Transaction], Any]) -> tuple[Any, Exception | None]:
        execute = self._disk.connection.execute
        execute("SAVEPOINT work")
        try:
            result = work(cast(Transaction, self._disk.transaction))
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - the work's own error goes to its caller
            execute("ROLLBACK TO work")
            execute("RELEASE work")
            return None, translate(error) if isinstance(error, sqlite3.Error) else error
        execute("RELEASE work")
        return result, None

    def _acknowledge(self, works: list[_Work], answers: list[Any], failure: Exception | None) -> None:
        loop = self._world.loop
        at_s = max(self._acknowledged_s, loop.time() + self._latency_s())
        self._acknowledged_s = at_s
        futures = [future for _, future in works]
        loop.call_at(at_s, _answer, futures, answers or [(None, failure)] * len(works))


def _answer(futures: list[asyncio.Future[Any]], answers: list[tuple[Any, Exception | None]]) -> None:
    for future, (result, error) in zip(futures, answers, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
