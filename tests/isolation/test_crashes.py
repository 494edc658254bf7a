"""Workers that die, block, leak, lie or are killed take nobody with them, lose nothing that is recorded and repeat none of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from perdure.core import entries as e
from perdure.core.errors import PerdureError, QuarantinedError
from perdure.core.records import Status
from perdure.core.workers import WorkerRules
from tests.isolation.harness import kill_workers, opened, pids, pool, until_lines
from tests.runtime.test_durable import until

FEW = {"recoveries_max": 2}
ENDS = ("segfault", "exit", "close", "garbage", "endless-frame", "second-hello", "unknown-run", "pong")
QUIET = WorkerRules(isolation="process", min=1, max=1, silence_ms=1_000, memory_bytes=256 << 20)


def recovered(journal: list[e.AnyEntry]) -> int:
    return sum(isinstance(entry, e.RunRecovered) for entry in journal)


def steps(journal: list[e.AnyEntry]) -> list[str]:
    return [entry.name for entry in journal if isinstance(entry, e.StepCompleted)]


@pytest.mark.parametrize("how", ENDS)
async def test_a_run_that_ends_its_worker_once_goes_on(how: str, data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with opened(data) as runtime:
        neighbour = await runtime.start("sleeper", str(tmp_path / "neighbour"))
        await until(runtime, neighbour.id, Status.WAITING)
        handle = await runtime.start("ends-once", {"log": str(log), "how": how})
        assert await handle.result(15) == "after"
        assert log.read_text().splitlines() == ["before", "after"]
        assert steps(handle.journal()) == ["note", "note"]
        assert recovered(handle.journal()) == 1
        await neighbour.send("go", "still here")
        assert await neighbour.result(5) == "still here"
        assert recovered(neighbour.journal()) == 0
        assert pool(runtime).ended == 1


@pytest.mark.parametrize("where", ["code", "loop", "thread"])
async def test_poison_is_tried_alone_then_quarantined_and_its_neighbours_go_on(
    where: str, data: Path, tmp_path: Path
) -> None:
    logs = [tmp_path / f"log{number}" for number in range(6)]
    async with opened(data, **FEW) as runtime:
        good = [await runtime.start("steady", {"log": str(log), "count": 25}) for log in logs]
        await asyncio.gather(*(until_lines(log, 2) for log in logs))
        bad_log = tmp_path / "bad"
        given = {"log": str(bad_log), "how": "segfault"}
        if where == "code":
            bad = await runtime.start("ends-in-code", given)
        else:
            bad = await runtime.start("ends-in-step", {**given, "is_threaded": where == "thread"})
        with pytest.raises(QuarantinedError, match="in flight at 2 crashes"):
            await bad.result(20)
        for handle, log in zip(good, logs, strict=True):
            assert await handle.result(20) == [str(number) for number in range(25)]
            counted = Counter(log.read_text().splitlines())
            assert set(counted) == {str(number) for number in range(25)}
            assert sum(counted.values()) <= 27  # only what was under way at a death is done once more
            # A thread ends the process beside whatever the loop executes just then: that run is tried alone once, too.
            assert recovered(handle.journal()) <= (1 if where == "thread" else 0)
        assert bad_log.read_text().splitlines() == ["before", "segfault", "segfault"]
        assert steps(bad.journal()) == ["note"]
        assert bad.status is Status.BLOCKED


@pytest.mark.parametrize("is_in_code", [True, False])
async def test_a_spinning_worker_is_killed_and_the_run_that_spins_is_blamed(
    is_in_code: bool, data: Path, tmp_path: Path
) -> None:
    log, good_log = tmp_path / "log", tmp_path / "good"
    async with opened(data, **FEW) as runtime:
        good = await runtime.start("steady", {"log": str(good_log), "count": 200})
        await until_lines(good_log, 1)
        name, given = ("ends-in-code", {}) if is_in_code else ("ends-in-step", {"is_threaded": False})
        bad = await runtime.start(name, {**given, "log": str(log), "how": "spin"})
        with pytest.raises(QuarantinedError):
            await bad.result(20)
        assert await good.result(20) == [str(number) for number in range(200)]
        assert recovered(good.journal()) == 0
        assert recovered(bad.journal()) == 2


async def test_a_worker_that_leaks_is_ended_at_its_limit(data: Path, tmp_path: Path) -> None:
    log, good_log = tmp_path / "log", tmp_path / "good"
    async with opened(data, QUIET, **FEW) as runtime:
        good = await runtime.start("steady", {"log": str(good_log), "count": 60})
        await until_lines(good_log, 1)
        given = {"log": str(log), "how": "leak", "is_threaded": True}
        bad = await runtime.start("ends-in-step", given)
        with pytest.raises(QuarantinedError):
            await bad.result(20)
        assert await good.result(20) == [str(number) for number in range(60)]
        assert recovered(good.journal()) == 0
        assert all(worker.peak_bytes <= 256 << 20 for worker in pool(runtime).workers)


async def test_a_flood_of_output_goes_nowhere(data: Path, tmp_path: Path) -> None:
    good_log = tmp_path / "good"
    async with opened(data, **FEW) as runtime:
        good = await runtime.start("steady", {"log": str(good_log), "count": 50})
        await until_lines(good_log, 1)
        bad = await runtime.start("ends-in-code", {"log": str(tmp_path / "log"), "how": "flood"})
        with pytest.raises(QuarantinedError):
            await bad.result(20)
        assert await good.result(20) == [str(number) for number in range(50)]


@pytest.mark.parametrize(
    "how", ["false-event", "false-call", "program", "no-text", "long-name", "no-topic", "ended-twice"]
)
async def test_frames_that_are_not_the_run_s_own_end_the_worker(how: str, data: Path, tmp_path: Path) -> None:
    async with opened(data, **FEW) as runtime:
        log = str(tmp_path / "log")
        bad = await runtime.start("ends-in-code", {"log": log, "how": how})
        with pytest.raises(QuarantinedError):
            await bad.result(15)
        assert [type(entry).__name__ for entry in bad.journal()] == [
            "RunStarted", "StepCompleted", "RunRecovered", "RunRecovered", "RunBlocked",
        ]  # fmt: skip


async def test_a_run_cannot_have_the_result_of_a_run_that_is_not_its_child(data: Path) -> None:
    async with opened(data, **FEW) as runtime:
        other = await runtime.start("secret-keeper")
        await other.result(5)
        spy = await runtime.start("spy", other.id)
        with pytest.raises(PerdureError) as caught:
            await spy.result(15)
        assert "secret of another" not in str(caught.value)
        assert not any(isinstance(entry, e.ChildEnded) for entry in spy.journal())


async def test_kill_9_of_workers_at_many_points_loses_and_repeats_nothing(data: Path, tmp_path: Path) -> None:
    """Takes ten seconds: twenty kills, each with back-off before the next worker."""
    logs = [tmp_path / f"log{number}" for number in range(8)]
    kills = 0
    async with opened(data, recoveries_max=50) as runtime:
        handles = [await runtime.start("steady", {"log": str(log), "count": 40}) for log in logs]
        while kills < 20 and not all(handle.status.is_ended for handle in handles):
            await asyncio.sleep(0.03 + 0.017 * (kills % 7))
            kills += kill_workers(runtime)
        for handle, log in zip(handles, logs, strict=True):
            assert await handle.result(30) == [str(number) for number in range(40)]
            journal = handle.journal()
            done = [entry for entry in journal if isinstance(entry, e.StepCompleted)]
            assert [entry.call for entry in done] == list(range(1, 41))
            counted = Counter(log.read_text().splitlines())
            assert set(counted) == {str(number) for number in range(40)}
            # An attempt that was under way at a kill is made again; never one that was recorded.
            assert sum(counted.values()) <= 40 + kills
    assert kills > 5


async def test_parked_runs_outlive_their_worker(data: Path, tmp_path: Path) -> None:
    async with opened(data) as runtime:
        handles = [await runtime.start("sleeper", str(tmp_path / f"log{number}")) for number in range(3)]
        for handle in handles:
            await until(runtime, handle.id, Status.WAITING)
        assert kill_workers(runtime) == 1
        for number, handle in enumerate(handles):
            await handle.send("go", number)
        assert [await handle.result(10) for handle in handles] == [0, 1, 2]
        assert all((tmp_path / f"log{number}").read_text() == "asleep\n" for number in range(3))
        assert sum(recovered(handle.journal()) for handle in handles) == 0


async def test_workers_die_with_their_runtime(data: Path, tmp_path: Path) -> None:
    """The worker of a killed runtime asks the kernel to die with it; here it notices that its socket is closed."""
    async with opened(data) as runtime:
        (pid,) = pids(runtime)
        worker = pool(runtime).workers[0]
        assert worker._link is not None
        assert worker._link.transport is not None
        worker._link.worker = None
        worker._link.transport.abort()
        async with asyncio.timeout(5):
            while (
                Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
            ):
                await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
