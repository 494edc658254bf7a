"""What a worker process has and has not: no database, no keys, no secrets, no descriptors; its socket lets nobody else in."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from perdure.core.workers import WorkerRules
from perdure.engines.isolated import wire
from tests.isolation import harness
from tests.isolation.harness import opened, pool


def socket_of(runtime: object) -> Path:
    return pool(runtime)._folder / "socket"  # type: ignore[arg-type]


async def test_a_worker_holds_no_database_path_key_or_secret(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_SECRET_BANK", "a-very-secret-value")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-secret-value")
    monkeypatch.setenv("PERDURE_DATA", str(data))
    async with opened(data) as runtime:
        found = await (await runtime.start("looker")).result(10)
        token = pool(runtime).workers[0].token
        (pid,) = harness.pids(runtime)
        outside = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline", "maps")]
    assert pid != os.getpid()
    text = repr(found) + repr(outside)
    for secret in (str(data), "perdure.db", "a-very-secret", "another-secret", "PERDURE_DATA"):
        assert secret not in text
    assert set(found["environ"]).isdisjoint({"PERDURE_WORKER_SOCKET", "PERDURE_WORKER_TOKEN"})
    assert token not in repr(found["environ"])
    kinds = {name.split(":")[0] for number, name in found["fd"].items() if int(number) > 2}
    assert kinds <= {"socket", "anon_inode", "/proc/" + str(pid) + "/fd", "pipe"} | {
        name for name in kinds if "mark-" in name
    }
    assert not {name for name in found["modules"] if name.startswith(("perdure.stores", "perdure.runtime"))}


async def test_the_socket_lets_only_the_worker_in_that_was_started(data: Path) -> None:
    async with opened(data) as runtime:
        path = socket_of(runtime)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        used = pool(runtime).workers[0].token
        frames = [
            wire.framed(wire.Hello(protocol=1, token="0" * 64, agents={})),
            wire.framed(wire.Hello(protocol=1, token=used, agents={})),
            wire.framed(wire.Ran(run=1, seq=1)),
            b"\0\0\0\2{}",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xff\xff\xff",
        ]
        for frame in frames:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(frame)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
        # A worker that has not said hello yet: its token in the hand of another process is not enough.
        pool(runtime)._start()
        fresh = pool(runtime).workers[-1].token
        agents = dict(pool(runtime).app.agents)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(wire.framed(wire.Hello(protocol=1, token=fresh, agents=agents)))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        assert await (await runtime.start("echo", "still")).result(10) == "still!"
    assert not path.parent.exists()


async def test_workers_grow_with_the_wait_and_shrink_when_idle(data: Path, tmp_path: Path) -> None:
    rules = WorkerRules(isolation="process", min=1, max=3, concurrency=2, grow_ms=50, idle_ms=300)
    async with opened(data, rules) as runtime:
        assert len(harness.pids(runtime)) == 1
        handles = [
            await runtime.start("steady", {"log": str(tmp_path / f"log{number}"), "count": 60})
            for number in range(6)
        ]
        most, busiest = 0, 0
        while not all(handle.status.is_ended for handle in handles):
            workers = pool(runtime).workers
            most = max(most, len(workers))
            busiest = max([busiest, *(worker.active for worker in workers)])
            await asyncio.sleep(0.01)
        assert (most, busiest) == (3, 2)
        assert [len(await handle.result(5)) for handle in handles] == [60] * 6
        async with asyncio.timeout(10):
            while len(pool(runtime).workers) > 1:
                await asyncio.sleep(0.05)
        assert pool(runtime).ended == 0


async def test_a_drained_worker_hands_its_runs_to_another(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with opened(data, drain_ms=300) as runtime:
        handle = await runtime.start("steady", {"log": str(log), "count": 60})
        await harness.until_lines(log, 3)
        worker = pool(runtime).workers[0]
        worker.state = "draining"
        worker.drain_by = asyncio.get_running_loop().time() + 0.1
        assert await handle.result(15) == [str(number) for number in range(60)]
        assert worker not in pool(runtime).workers
        assert not any(type(entry).__name__ == "RunRecovered" for entry in handle.journal())


async def test_no_worker_is_left_when_the_runtime_has_stopped(data: Path, tmp_path: Path) -> None:
    async with opened(data) as runtime:
        handle = await runtime.start("steady", {"log": str(tmp_path / "log"), "count": 500})
        await harness.until_lines(tmp_path / "log", 3)
        pids = harness.pids(runtime)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    async with opened(data, "none") as runtime:
        assert len(await runtime.run(handle.id).result(30)) == 500
