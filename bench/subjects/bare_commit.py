"""Baseline: SQLite alone, WAL and synchronous=FULL, one commit for each step, no framework at all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

from bench.workload import token


class Bench:
    """One connection in the loop's own thread: commits follow one another, whatever is in flight."""

    async def setup(self, directory: Path) -> None:
        """Open the database."""
        self._runs = 0
        self._db = sqlite3.connect(directory / "bare.db", isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute(
            "create table journal(run int, seq int, body text, primary key(run, seq)) without rowid"
        )

    async def run(self, steps: int) -> list[str]:
        """A row and a commit per step."""
        self._runs += 1
        run, tokens = self._runs, []
        for i in range(steps):
            tokens.append(token(i))
            self._db.execute("insert into journal values(?,?,?)", (run, i, json.dumps(tokens[-1])))
        await asyncio.sleep(0)  # lets the clock of the throughput measure be looked at
        return tokens

    async def teardown(self) -> None:
        """Close."""
        self._db.close()
