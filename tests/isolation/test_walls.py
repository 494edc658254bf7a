"""What a worker process has and has not: no database, no keys, no secrets, no descriptors; its socket lets nobody else in."""

from __future__ import annotations

import asyncio
import importlib
import os
import stat
from pathlib import Path

import pytest

from perdure import Runtime
from perdure.core.errors import QuarantinedError, SandboxUnavailableError
from perdure.core.workers import WorkerRules
from perdure.engines.isolated import wire
from perdure.sandboxes import walls
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
        handle = await runtime.start("steady", {"log": str(tmp_path / "log"), "count": 100})
        await harness.until_lines(tmp_path / "log", 3)
        pids = harness.pids(runtime)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    async with opened(data, "none") as runtime:
        assert len(await runtime.run(handle.id).result(30)) == 100


# -- the wall of namespaces
WALLED = WorkerRules(isolation="namespace", min=1, max=1, silence_ms=1_500, memory_bytes=512 << 20)
APP = """
from pathlib import Path
from perdure import Run, agent, step

@step
def look(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            path = Path(name)
            found.append(str(sorted(item.name for item in path.iterdir())) if path.is_dir() else path.read_text())
        except OSError as error:
            found.append(type(error).__name__)
    return found

@agent("walled-app")
async def walled_app(run: Run, names: list[str]) -> list[str]:
    return await run.step(look, names)
"""


async def test_a_wall_keeps_a_worker_from_the_runtime_and_the_host(data: Path) -> None:
    async with opened(data, WALLED) as runtime:
        given = {"data": str(data), "runtime": os.getpid()}
        found = await (await runtime.start("attacker", given)).result(10)
        around = await (await runtime.start("looker")).result(10)
    allowed = {name: said for name, said in found.items() if not said.startswith("refused")}
    assert set(allowed) == {"own", "network"}, allowed
    assert around["uid"] != 0
    assert len(around["pids"]) <= 2
    assert os.getpid() not in around["pids"]
    assert not Path(harness.__file__).with_name("planted.py").exists()


async def test_the_data_directory_and_secrets_are_hidden_also_within_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "app"
    app.mkdir(mode=0o755)
    (app / "walled_app.py").write_text(APP)
    (app / "secrets.toml").write_text('bank = "a-very-secret-value"\n')
    (app / "secrets.toml").chmod(0o600)
    (app / "notes.txt").write_text("notes\n")
    monkeypatch.chdir(app)
    monkeypatch.syspath_prepend(app)
    agents = [importlib.import_module("walled_app").walled_app]
    async with Runtime.open(app / "data", agents=agents, isolation=WALLED) as runtime:
        names = ["notes.txt", "data", "data/perdure.db", "secrets.toml", str(app)]
        handle = await runtime.start("walled-app", names)
        notes, folder, database, secrets, listed = await handle.result(10)
    assert notes == "notes\n"
    assert folder in ("[]", "PermissionError")
    assert database in ("FileNotFoundError", "PermissionError")
    assert secrets in ("", "PermissionError")
    assert "walled_app.py" in listed


@pytest.mark.parametrize("how", ["segfault", "spin", "exit"])
async def test_behind_the_wall_a_run_that_ends_its_worker_is_blamed_too(
    how: str, data: Path, tmp_path: Path
) -> None:
    async with opened(data, WALLED, recoveries_max=1) as runtime:
        neighbour = await runtime.start("chance")
        bad = await runtime.start("ends-in-memory", how)
        with pytest.raises(QuarantinedError):
            await bad.result(15)
        await neighbour.send("go", 1)
        assert len(await neighbour.result(15)) == 5
        assert not any(type(entry).__name__ == "RunRecovered" for entry in neighbour.journal())


async def test_a_wall_that_cannot_stand_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = WorkerRules(isolation="namespace", shows=("/etc",))
    with pytest.raises(SandboxUnavailableError, match="`/etc` would be shown"):
        async with opened(data, rules):
            pass
    monkeypatch.setattr(walls, "WALL", Path("/no/such/wall.py"))
    with pytest.raises(SandboxUnavailableError, match="no worker process"):
        async with opened(data, WALLED):
            pass


async def test_a_worker_that_is_nearly_full_is_replaced_without_blame(data: Path) -> None:
    rules = WorkerRules(isolation="process", min=1, max=1, memory_bytes=256 << 20)
    async with opened(data, rules) as runtime:
        handle = await runtime.start("hoarder", 180 << 20)
        worker = pool(runtime).workers[0]
        async with asyncio.timeout(15):
            while worker in pool(runtime).workers:
                await asyncio.sleep(0.02)
        await handle.send("go", 1)
        assert await handle.result(10) == 1
        assert pool(runtime).ended == 0
        assert not any(type(entry).__name__ == "RunRecovered" for entry in handle.journal())
