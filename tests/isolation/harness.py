"""Runtimes whose agents run in worker processes, and journals without what differs from run to run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from perdure import Runtime, Settings
from perdure.core import entries as e
from perdure.core.workers import WorkerRules
from perdure.engines.isolated.pool import Pool
from tests.isolation import agents
from tests.runtime import agents as everyday

RULES = WorkerRules(isolation="process", min=1, max=2, silence_ms=1_500, memory_bytes=512 << 20)
VARYING = ("at_ms", "sent_ms", "due_ms", "fence", "chance", "worker", "asked_ms")
RUN_ID = re.compile(r"0[0-9a-hjkmnp-tv-z]{21}")


def opened(
    data: Path,
    rules: WorkerRules | str = RULES,
    *,
    extra: tuple[Any, ...] = (),
    more: dict[str, Any] | None = None,
    **settings: Any,
) -> AbstractAsyncContextManager[Runtime]:
    """A data directory with all agents; each call is a process's life."""
    chosen = Settings(**{"drain_ms": 1_000, "poll_ms": 50, **settings})
    known = [*everyday.ALL, *agents.ALL, *extra]
    known = [item for item in known if item.name != "sender" or item is everyday.sender]
    return Runtime.open(data, agents=known, settings=chosen, isolation=rules, **(more or {}))  # type: ignore[arg-type]


def pool(runtime: Runtime) -> Pool:
    """The workers of the Python agents."""
    assert runtime.engine is not None
    assert runtime.engine.places is not None
    found: Pool = runtime.engine.places.pools[-1]  # type: ignore[attr-defined]
    return found


def pids(runtime: Runtime) -> list[int]:
    return [worker.pid for worker in pool(runtime).workers if worker.state == "ready"]


def kill_workers(runtime: Runtime) -> int:
    """kill -9, as an operator or the kernel does it."""
    found = pids(runtime)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


async def until_lines(log: Path, count: int) -> None:
    async with asyncio.timeout(15):
        while not log.exists() or len(log.read_text().splitlines()) < count:
            await asyncio.sleep(0.005)


def plain(journal: list[e.AnyEntry], *, with_digests: bool = True) -> list[dict[str, Any]]:
    """Entries without times, chance and ids."""
    found = []
    for entry in journal:
        made = msgspec.json.decode(msgspec.json.encode(entry))
        for name in (*VARYING, *(() if with_digests else ("digest",))):
            made.pop(name, None)
        made["kind"] = type(entry).__name__
        if "waits" in made:
            for wait in made["waits"]:
                for name in (*VARYING, *(() if with_digests else ("digest",))):
                    wait.pop(name, None)
        text = RUN_ID.sub("RUN", msgspec.json.encode(made).decode())
        found.append(msgspec.json.decode(text))
    return found
