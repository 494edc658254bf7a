"""The two engines behind the harness of the conformance suite, each with its worker in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from perdure.runtime import Runtime
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.testing.conformance.agents import AGENTS
from perdure.testing.conformance.worker import SETTINGS


class WorkerProcess:
    """Starts and kills the worker."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start_worker(self) -> None:
        command = [sys.executable, "-m", "perdure.testing.conformance.worker", *self._arguments]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            assert await self._process.stdout.readline() == b"ready\n"

    async def kill_worker(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Embedded(WorkerProcess):
    """The embedded engine: this process sends and looks beside the one that drives."""

    def __init__(self, folder: Path, runtime: Runtime, mode: str = "embedded") -> None:
        super().__init__(folder, mode, str(folder / "data"))
        self._runtime = runtime

    async def start(
        self, agent: str, input: Any, *, key: str | None = None, deadline: float | None = None
    ) -> str:
        return (await self._runtime.start(agent, input, idempotency_key=key, deadline=deadline)).id

    async def send(self, run: str, topic: str, body: Any, *, key: str | None = None) -> None:
        await self._runtime.send(run, topic, body, key=key)

    async def questions(self, run: str) -> list[int]:
        return [question.call for question in self._runtime.questions(run)]

    async def answer(self, run: str, call: int, body: Any) -> None:
        await self._runtime.run(run).answer(call, body)

    async def cancel(self, run: str, reason: str) -> None:
        await self._runtime.cancel(run, reason)

    async def result(self, run: str, timeout: float) -> Any:
        return await self._runtime.run(run).result(timeout)


class Temporal(WorkerProcess):
    """The Temporal engine, with its client in this process."""

    def __init__(self, folder: Path, address: str, engine: Any) -> None:
        super().__init__(folder, "temporal", address, engine.queue)
        self._engine = engine

    async def start(
        self, agent: str, input: Any, *, key: str | None = None, deadline: float | None = None
    ) -> str:
        found: str = await self._engine.start(agent, input, idempotency_key=key, deadline=deadline)
        return found

    async def send(self, run: str, topic: str, body: Any, *, key: str | None = None) -> None:
        await self._engine.send(run, topic, body, key=key)

    async def questions(self, run: str) -> list[int]:
        return list(await self._engine.questions(run))

    async def answer(self, run: str, call: int, body: Any) -> None:
        await self._engine.answer(run, call, body)

    async def cancel(self, run: str, reason: str) -> None:
        await self._engine.cancel(run, reason)

    async def result(self, run: str, timeout: float) -> Any:
        return await self._engine.result(run, timeout)


@asynccontextmanager
async def embedded(folder: Path, mode: str = "embedded") -> AsyncIterator[Embedded]:
    async with Runtime.open(folder / "data", agents=AGENTS, settings=SETTINGS, beside=True) as runtime:
        harness = Embedded(folder, runtime, mode)
        await harness.start_worker()
        try:
            yield harness
        finally:
            await harness.kill_worker()


@asynccontextmanager
async def temporal(folder: Path) -> AsyncIterator[Temporal]:
    from perdure.engines.temporal import TemporalEngine, dev_server

    async with dev_server() as address:
        engine = await TemporalEngine.connect(
            address, queue="conformance", clock=SystemClock(), entropy=SystemEntropy(), settings=SETTINGS
        )
        harness = Temporal(folder, address, engine)
        await harness.start_worker()
        try:
            yield harness
        finally:
            await harness.kill_worker()
