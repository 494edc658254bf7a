"""Every store does what the port promises."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from perdure.ports import NullTelemetry
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.stores.sqlite import SqliteStore
from perdure.testing.conformance import clock, entropy, store, telemetry


@pytest.mark.parametrize("durability", ["full", "relaxed"])
@pytest.mark.parametrize("case", store.CASES, ids=lambda case: case.__name__)
async def test_sqlite(case: Callable[..., Awaitable[None]], durability: str, tmp_path: Path) -> None:
    opened = SqliteStore(tmp_path / "perdure.db", durability=durability)
    try:
        await case(opened)
    finally:
        await opened.close()


@pytest.mark.parametrize("case", store.DAMAGE_CASES, ids=lambda case: case.__name__)
async def test_sqlite_damage(case: Callable[..., Awaitable[None]], tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"

    def damage(run: str, seq: int) -> None:
        where = "run = (SELECT key FROM runs WHERE id = ?) AND seq = ?"
        with sqlite3.connect(path) as other:
            (body,) = other.execute(f"SELECT body FROM journal WHERE {where}", (run, seq)).fetchone()
            bad = body[:-2] + bytes([body[-2] ^ 1]) + body[-1:]
            other.execute(f"UPDATE journal SET body = ? WHERE {where}", (bad, run, seq))
        other.close()

    opened = SqliteStore(path)
    try:
        await case(opened, damage)
    finally:
        await opened.close()


@pytest.mark.parametrize("case", clock.CASES, ids=lambda case: case.__name__)
def test_system_clock(case: Callable[..., None]) -> None:
    case(SystemClock())


@pytest.mark.parametrize("case", entropy.CASES, ids=lambda case: case.__name__)
def test_system_entropy(case: Callable[..., None]) -> None:
    case(SystemEntropy())


@pytest.mark.parametrize("case", telemetry.CASES, ids=lambda case: case.__name__)
def test_null_telemetry(case: Callable[..., None]) -> None:
    case(NullTelemetry())
