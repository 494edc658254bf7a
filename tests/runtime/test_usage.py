"""What a runtime uses, as it is published: measured on real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure import Run, Runtime, agent, process
from perdure.runtime import usage
from perdure.runtime.usage import Usage, children_of, published, seen_process, tree_of

BUSY = "import time\nwhile True: pass"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PERIOD_S", 0.1)


@agent("patient")
async def patient(run: Run) -> str:
    """Wait for a word."""
    return str((await run.receive("go")).body)


async def seen(folder: Path, is_it: Callable[[Usage], bool]) -> Usage:
    async with asyncio.timeout(15):
        while (found := published(folder)) is None or not is_it(found):
            await asyncio.sleep(0.05)
    return found


async def test_a_busy_program_is_seen_with_its_run_and_what_it_uses(tmp_path: Path) -> None:
    made = process("busy", [sys.executable, "-c", BUSY], sandbox="process")
    async with Runtime.open(tmp_path, agents=[made]) as runtime:
        handle = await runtime.start("busy", {})
        found = await seen(
            tmp_path,
            lambda use: any(each.cpu_percent > 20 and each.kind == "program" for each in use.processes),
        )
        (program,) = [each for each in found.processes if each.kind == "program"]
        assert (program.run, program.agent, program.tier) == (handle.id, "busy", "process")
        assert program.memory_bytes > 1 << 20
        assert (found.processes[0].pid, found.processes[0].kind) == (os.getpid(), "runtime")
        assert found.processes[0].memory_bytes > 10 << 20
        assert [(each.run, each.state) for each in found.runs] == [(handle.id, "running")]
        assert (found.running, found.waiting) == (1, 0)
        await runtime.cancel(handle.id)
        await seen(tmp_path, lambda use: not any(each.kind == "program" for each in use.processes))
    assert published(tmp_path) is None


async def test_states_of_runs_are_seen(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[patient]) as runtime:
        waiting = await runtime.start("patient")
        await seen(tmp_path, lambda use: use.waiting == 1)
        await runtime.containment.quarantine("patient", by="anna", reason="odd")
        held = await runtime.start("patient")
        found = await seen(tmp_path, lambda use: len(use.runs) == 2)
        assert [(each.run, each.state, each.doing) for each in found.runs] == [
            (waiting.id, "waiting", "go"),
            (held.id, "held", "agent-quarantined"),
        ]
        assert found.quarantined == ("patient",)


async def test_a_runtime_beside_publishes_nothing(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, beside=True):
        await asyncio.sleep(0.3)
        assert published(tmp_path) is None


def test_a_process_and_all_below_it_is_found() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as started:
        try:
            for _ in range(200):
                if len(list(tree_of(started.pid))) == 2:
                    break
                started.poll()
                os.sched_yield()
                subprocess.run(["/bin/sleep", "0.02"], check=True)
            assert started.pid in children_of(os.getpid())
            assert len(list(tree_of(started.pid))) == 2
            assert seen_process(started.pid) is not None
        finally:
            assert started.stdin is not None
            started.stdin.close()
    assert seen_process(started.pid) is None


def test_a_name_of_any_bytes_is_read(tmp_path: Path) -> None:
    numbers = " ".join(["S", "1", *["0"] * 9, "3", "4", "5", "6", *["0"] * 6, "7"])
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "stat").write_bytes(b"9 (a) \xff (b) " + numbers.encode())
    found = seen_process(9, tmp_path)
    assert found is not None
    assert (found.ticks, found.ticks_below, found.memory_bytes) == (7, 11, 7 * usage.PAGE_BYTES)
