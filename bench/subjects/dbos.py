"""Rival: DBOS on its SQLite system database, as shipped (rollback journal, no tuning)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dbos import DBOS, DBOSConfig

from bench.workload import token


@DBOS.step()
async def token_step(i: int) -> str:
    """The step."""
    return token(i)


@DBOS.workflow()
async def bench(steps: int) -> list[str]:
    """The run."""
    return [await token_step(i) for i in range(steps)]


class Bench:
    """Workflows are called in place: the cheapest way that DBOS offers, and as durable as a started one."""

    async def setup(self, directory: Path) -> None:
        """Create the system database and launch."""
        config: DBOSConfig = {
            "name": "bench",
            "system_database_url": f"sqlite:///{directory / 'dbos.db'}",
            "run_admin_server": False,
            "log_level": "ERROR",
        }
        DBOS(config=config)
        await asyncio.to_thread(DBOS.launch)

    async def run(self, steps: int) -> list[str]:
        """One workflow."""
        return await bench(steps)

    async def teardown(self) -> None:
        """Stop its threads; runs that are in flight stay pending."""
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
