"""Baseline: the least that a group-committing journal can be: producers on a loop, one writer thread."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from pathlib import Path

from bench.workload import token

Row = tuple[int, int, str]
Work = tuple[Row, "asyncio.Future[None]"]


class Bench:
    """A list under a condition; what has gathered while a commit ran makes up the next one."""

    async def setup(self, directory: Path) -> None:
        """Open the database and start the writer."""
        self._runs = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Work] = []
        self._condition = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._write, args=(directory / "group.db",), daemon=True)
        self._thread.start()

    def _write(self, path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute("create table journal(run int, seq int, body text, primary key(run, seq)) without rowid")
        while True:
            with self._condition:
                while not self._waiting:
                    if self._is_stopping:
                        db.close()
                        return
                    self._condition.wait()
                batch, self._waiting = self._waiting, []
            db.execute("begin immediate")
            for row, _ in batch:
                db.execute("insert into journal values(?,?,?)", row)
            db.execute("commit")
            self._loop.call_soon_threadsafe(_acknowledge, batch)

    async def run(self, steps: int) -> list[str]:
        """A row per step, acknowledged after its group's commit."""
        self._runs += 1
        run, tokens = self._runs, []
        for i in range(steps):
            tokens.append(token(i))
            future: asyncio.Future[None] = self._loop.create_future()
            with self._condition:
                self._waiting.append(((run, i, json.dumps(tokens[-1])), future))
                self._condition.notify()
            await future
        return tokens

    async def teardown(self) -> None:
        """Stop the writer."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, 5)


def _acknowledge(batch: list[Work]) -> None:
    for _, future in batch:
        if not future.done():
            future.set_result(None)
