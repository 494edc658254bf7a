"""The things that are compared, one module each; imported only in a process of their own.

``TABLE`` says what each one is. The order is the order of turns within a round.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast


class Subject(Protocol):
    """What a subject must do; each module has one class ``Bench`` that does it."""

    async def setup(self, directory: Path) -> None:
        """Start, with all data in ``directory``."""

    async def run(self, steps: int) -> list[str]:
        """Execute one run of ``steps`` durable steps to its end; its tokens."""

    async def teardown(self) -> None:
        """Stop, and end every process that was started."""


@dataclass(frozen=True)
class About:
    """How a subject is called in tables, and what must be said about it."""

    title: str
    note: str
    package: str | None = None  # whose version is reported
    durable: bool = True  # whether each step is on disk before the next begins


TABLE: dict[str, About] = {
    "bare_commit": About("bare SQLite commit", "WAL, synchronous=FULL, one commit per step, one at a time"),
    "bare_group": About(
        "bare group commit", "asyncio producers, one writer thread, WAL, FULL, no savepoints"
    ),
    "perdure": About("Perdure", "embedded engine, SQLite, synchronous=FULL", "perdure"),
    "restate": About("Restate", "server binary from npm; uses both cores", "restate-sdk"),
    "langgraph": About("LangGraph sync", "graph API, AsyncSqliteSaver, durability=sync", "langgraph"),
    "dbos": About("DBOS", "SQLite as shipped", "dbos"),
    "temporal": About("Temporal", "dev server on a file, regular activities", "temporalio"),
    "temporal_local": About(
        "Temporal local",
        "dev server on a file, local activities: not durable per step",
        "temporalio",
        durable=False,
    ),
}


def load(name: str) -> Subject:
    """The subject called ``name``, imported here and now."""
    module = importlib.import_module(f"bench.subjects.{name}")
    return cast("Subject", module.Bench())
