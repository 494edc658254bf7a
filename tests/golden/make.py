"""Writes the kept database of this version: ``python -m tests.golden.make VERSION``. Run once for a landed version."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from perdure import Budget, Runtime, Settings
from perdure.governance.keys import public_record
from tests.golden.agents import AGENTS, GOVERNED, KEY

HERE = Path(__file__).parent


async def make(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Runtime.open(folder, agents=AGENTS, settings=Settings(poll_ms=20)) as runtime:
            handle = await runtime.start("golden", ["a", "b"], session="kept", idempotency_key="golden")
            await handle.send("early", "x" * 70_000)
            while not handle.questions():
                await asyncio.sleep(0.01)
            await handle.answer(handle.questions()[0].call, 3)
            while not any(wait.name == "late" for wait in getattr(handle.journal()[-1], "waits", ())):
                await asyncio.sleep(0.01)
            acting = await runtime.start(
                "golden-actor", idempotency_key="golden-actor", budget=Budget(calls=2, exhausted="hold")
            )
            while not any(wait.kind == "act" for wait in getattr(acting.journal()[-1], "waits", ())):
                await asyncio.sleep(0.01)
            await runtime.schedule("never", "0 0 29 2 *", "golden-child", "x")
        async with Runtime.open(folder, agents=GOVERNED, settings=Settings(poll_ms=20)) as runtime:
            await runtime.keys.register([public_record(KEY, "anna", ["finance"], 1)], by="golden")
            await runtime.start("golden-governed", idempotency_key="golden-governed")
            while not runtime.approvals.pending():
                await asyncio.sleep(0.01)
        source = sqlite3.connect(Path(folder) / "perdure.db")
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        source.execute("VACUUM INTO ?", (str(target),))
        source.close()


if __name__ == "__main__":
    asyncio.run(make(HERE / f"{sys.argv[1]}.db"))
