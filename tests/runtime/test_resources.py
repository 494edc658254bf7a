"""Resources of agents: what may be asked for, who starts beside whom, and that limits hold."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, Limits, Requests, Resources, Run, Runtime, agent, process, step
from perdure.core.errors import (
    AgentFailedError,
    DefinitionError,
    ProgramFailedError,
    ResourcesTooLargeError,
    SandboxUnavailableError,
)
from perdure.core.records import Status
from perdure.core.resources import merged
from perdure.core.sandbox import MIB, SandboxLimits
from perdure.engines.embedded import admission
from perdure.runtime.config import world_from
from perdure.runtime.machine import machine
from perdure.runtime.resourcing import ResourceRules
from perdure.runtime.secrets import LocalSecrets
from perdure.sandboxes.cgroups import Cgroups, group_name
from perdure.sandboxes.namespace import NamespaceSandboxes

GATE: dict[str, asyncio.Event] = {}
ORDER: list[str] = []


class Count:
    """How many are at work now, and were at most."""

    now = 0
    most = 0


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Count.now = Count.most = 0
    ORDER.clear()


@pytest.fixture
async def _namespaces() -> None:
    sandboxes = NamespaceSandboxes(spare=0)
    try:
        await sandboxes.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    await sandboxes.close()


@pytest.fixture
async def _cgroups() -> None:
    groups = Cgroups(group_name())
    if not groups.open():
        pytest.skip("no control group may be written here")
    await groups.close()


@step
async def work(seconds: float) -> None:
    """Be at work for a while."""
    Count.now += 1
    Count.most = max(Count.most, Count.now)
    try:
        await asyncio.sleep(seconds)
    finally:
        Count.now -= 1


async def _worked(run: Run, name: str, seconds: float = 0.05) -> str:
    ORDER.append(name)
    await run.step(work, seconds)
    return name


def worker(name: str, **requests: Any) -> Agent:
    return Agent(name, handler=_worked, resources=Resources(requests=Requests(**requests)))


@agent("waiter", resources=Resources(requests=Requests(cpu=1.0)))
async def waiter(run: Run) -> str:
    """Wait, which takes nothing."""
    return str((await run.receive("go")).body)


# -- what may be asked for
@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("requests", {"cpu": -1}), ("requests", {"cpu": float("nan")}), ("requests", {"memory_bytes": -1}),
        ("requests", {"memory_bytes": 1.5}), ("limits", {"cpu": 0.0}), ("limits", {"memory_bytes": 1_000}),
        ("limits", {"processes": 0}), ("limits", {"wall_ms": True}), ("limits", {"cpu": 1e9}),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused(part: str, values: dict[str, Any]) -> None:
    kind: Any = {"requests": Requests, "limits": Limits}[part]
    with pytest.raises(DefinitionError, match=f"`{part}.{next(iter(values))}`"):
        Resources(**{part: kind(**values)})


def test_a_request_over_its_limit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="a request is at most the limit"):
        Resources(requests=Requests(cpu=2.0), limits=Limits(cpu=1.0))


def test_the_operator_names_requests_and_only_narrows_limits() -> None:
    own = Resources(requests=Requests(cpu=0.5), limits=Limits(cpu=1.0, memory_bytes=64 * MIB))
    given = Resources(requests=Requests(cpu=0.25), limits=Limits(memory_bytes=128 * MIB, processes=8))
    found = merged(own, given)
    assert found.requests == Requests(cpu=0.25)
    assert found.limits == Limits(cpu=1.0, memory_bytes=64 * MIB, processes=8)
    assert merged(own, None) == own
    within = found.limits.within(SandboxLimits(memory_bytes=32 * MIB))
    assert (within.memory_bytes, within.processes, within.cpu_share) == (32 * MIB, 8, 1.0)


def _configured(folder: Path, text: str) -> ResourceRules:
    path = folder / "perdure.toml"
    path.write_text(text)
    return world_from(path, {}, LocalSecrets.default(folder)).resources


def test_a_configuration_says_it_too(tmp_path: Path) -> None:
    text = """
[resources]
cpu = 4
memory_bytes = 1073741824
quarantine = { breaches = 3, within_ms = 60000 }

[resources.agents.clerk]
requests = { cpu = 0.5, memory_bytes = 268435456 }
limits = { cpu = 1, memory_bytes = 536870912, processes = 32, disk_bytes = 1048576, wall_ms = 5000 }
"""
    rules = _configured(tmp_path, text)
    assert rules.quarantine.breaches == 3
    assert rules.agents["clerk"].limits.wall_ms == 5000
    for wrong, said in (
        ("[resources]\nram = 1\n", "ram"),
        ("[resources]\ncpu = 0\n", "more than 0"),
        ("[resources.agents.clerk.limits]\nmemory_bytes = 1\n", r"limits\.memory_bytes"),
        ("[resources.quarantine]\nbreaches = -1\n", "breaches"),
    ):
        with pytest.raises(DefinitionError, match=said):
            _configured(tmp_path, wrong)


async def test_an_agent_that_is_not_there_is_refused(tmp_path: Path) -> None:
    rules = ResourceRules(agents={"clark": Resources()})
    with pytest.raises(DefinitionError, match="`clark`"):
        async with Runtime.open(tmp_path, agents=[worker("clerk")], resources=rules):
            pass


# -- the machine
def _tree(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "cgroup"


def test_the_machine_is_what_its_groups_allow(tmp_path: Path) -> None:
    newer = _tree(
        tmp_path / "2",
        {
            "proc/meminfo": "MemTotal:  8388608 kB\n",
            "proc/self/cgroup": "0::/pod/me\n",
            "cgroup/pod/cpu.max": "25000 100000\n",
            "cgroup/pod/memory.max": "max\n",
            "cgroup/pod/me/cpu.max": "max 100000\n",
            "cgroup/pod/me/memory.max": "1073741824\n",
        },
    )
    assert (machine(*newer).cpu, machine(*newer).memory_bytes) == (0.25, 1 << 30)
    older = _tree(
        tmp_path / "1",
        {
            "proc/meminfo": "MemTotal:  8388608 kB\n",
            "proc/self/cgroup": "4:memory:/me\n1:cpu,cpuacct:/\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/me/memory.limit_in_bytes": "536870912\n",
            "cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (machine(*older).cpu, machine(*older).memory_bytes) == (0.5, 1 << 29)


def test_this_machine_has_something() -> None:
    found = machine()
    assert 0 < found.cpu <= len(os.sched_getaffinity(0))
    assert found.memory_bytes > 64 * MIB


# -- admission
async def test_a_request_larger_than_the_machine_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResourcesTooLargeError, match=r"`huge` asks for 0 processors and 1048576 MiB"):
        async with Runtime.open(tmp_path, agents=[worker("huge", memory_bytes=1 << 40)]):
            pass


async def test_runs_wait_while_the_machine_is_full(tmp_path: Path) -> None:
    rules = ResourceRules(cpu=1.0)
    clerk = worker("clerk", cpu=0.5)
    async with Runtime.open(tmp_path, agents=[clerk], resources=rules) as runtime:
        handles = [await runtime.start("clerk", {"name": str(number)}) for number in range(6)]
        assert [handle.record().status for handle in handles].count(Status.QUEUED) == 4
        assert [await handle.result() for handle in handles] == list("012345")
    assert Count.most == 2


async def test_memory_is_counted_over_all_agents(tmp_path: Path) -> None:
    rules = ResourceRules(memory_bytes=100 * MIB)
    agents = [worker("a", memory_bytes=60 * MIB), worker("b", memory_bytes=60 * MIB), worker("free")]
    async with Runtime.open(tmp_path, agents=agents, resources=rules) as runtime:
        handles = [await runtime.start(name, {"name": name}) for name in ("a", "b", "a", "b")]
        at_once = await runtime.start("free", {"name": "free"})
        assert at_once.record().status is Status.RUNNING
        for handle in (*handles, at_once):
            await handle.result()
    assert Count.most == 2  # one of them, and the one that asks for nothing


async def test_who_waits_for_a_message_takes_nothing(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[waiter], resources=ResourceRules(cpu=1.0)) as runtime:
        one, two = await runtime.start("waiter"), await runtime.start("waiter")
        async with asyncio.timeout(10):
            while {one.record().status, two.record().status} != {Status.WAITING}:
                await asyncio.sleep(0.01)
        await one.send("go", 1)
        await two.send("go", 2)
        assert (await one.result(), await two.result()) == ("1", "2")


async def test_small_runs_do_not_starve_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PATIENCE_MS", 300)
    agents = [worker("small", cpu=0.5), worker("large", cpu=1.0)]
    async with Runtime.open(tmp_path, agents=agents, resources=ResourceRules(cpu=1.0)) as runtime:
        # Two streams of small ones that never end at the same moment: the whole is free only if it is kept free.
        first = await runtime.start("small", {"name": "s", "seconds": 0.1})
        handles = [await runtime.start("small", {"name": "s", "seconds": 0.15}) for _ in range(20)]
        large = await runtime.start("large", {"name": "large", "seconds": 0.01}, priority=-1)
        await large.result(20)
        assert sum(not handle.record().status.is_ended for handle in handles) > 5
        for handle in (first, *handles):
            await handle.result(20)


# -- limits
@agent("bomber", tools=["sandbox.python"], resources=Resources(limits=Limits(memory_bytes=64 * MIB)))
async def bomber(run: Run, code: str) -> Any:
    """Execute code within narrow limits."""
    return await run.act("python", code=code)


@agent("neighbour", tools=["sandbox.python"])
async def neighbour(run: Run, code: str) -> Any:
    """Execute code within the usual limits."""
    return await run.act("python", code=code)


@pytest.mark.usefixtures("_namespaces", "_cgroups")
async def test_the_limits_of_an_agent_hold_in_its_sandboxes_only(tmp_path: Path) -> None:
    code = "print(len(bytearray(b'x' * 150_000_000)))"
    async with Runtime.open(tmp_path, agents=[bomber, neighbour]) as runtime:
        one, two = await runtime.start("bomber", code), await runtime.start("neighbour", code)
        assert (await one.result())["ending"] == "memory"
        assert (await two.result())["stdout"] == "150000000\n"


async def _program(folder: Path, text: str, **limits: Any) -> Any:
    home = folder / "agent"
    home.mkdir(exist_ok=True)
    (home / "main.py").write_text(text)
    made = process(
        "p", [sys.executable, "-S", str(home / "main.py")], restarts_max=0, resources=Resources(limits=Limits(**limits))
    )  # fmt: skip
    async with Runtime.open(folder / "data", agents=[made]) as runtime:
        handle = await runtime.start("p", {})
        try:
            return json.loads(await handle.result(60))
        finally:
            await asyncio.sleep(0.1)  # what is recorded beside the run
            records = [leaf.record for leaf in runtime.audit.records(run=handle.id)]
            ORDER.extend(each.refs["note"] for each in records if "note" in each.refs)


@pytest.mark.usefixtures("_namespaces", "_cgroups")
async def test_a_program_meets_its_limit_of_memory(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailedError, match="met its limit `memory`"):
        await _program(tmp_path, "print(len(bytearray(b'x' * 300_000_000)))", memory_bytes=64 * MIB)
    assert ORDER == ["breach:memory"]


FORKS = """
import os, time
made = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""


@pytest.mark.usefixtures("_namespaces", "_cgroups")
async def test_a_program_meets_its_limit_of_processes(tmp_path: Path) -> None:
    assert await _program(tmp_path, FORKS, processes=8) == 7  # and itself
    assert ORDER == ["breach:processes"]


BUSY = """
import time
begin, used = time.monotonic(), time.process_time()
while time.monotonic() < begin + 1.5: pass
print(round((time.process_time() - used) / (time.monotonic() - begin), 2))
"""


@pytest.mark.usefixtures("_namespaces", "_cgroups")
async def test_a_program_gets_its_share_of_a_processor(tmp_path: Path) -> None:
    assert await _program(tmp_path, BUSY, cpu=0.25) < 0.4


@pytest.mark.usefixtures("_namespaces")
async def test_a_program_meets_its_limit_of_time(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailedError, match="met its limit `wall-time`: 700 ms"):
        await _program(tmp_path, "import time; time.sleep(60)", wall_ms=700)
    assert ORDER == ["breach:wall-time"]


@pytest.mark.usefixtures("_namespaces")
async def test_without_control_groups_a_share_is_refused_and_memory_is_each_process_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroups, "open", lambda _: False)
    (tmp_path / "1").mkdir()
    with pytest.raises(AgentFailedError, match="needs control groups"):
        await _program(tmp_path / "1", "print(1)", cpu=0.5)
    (tmp_path / "2").mkdir()
    text = "try: bytearray(300_000_000)\nexcept MemoryError: print('\"refused\"')"
    assert await _program(tmp_path / "2", text, memory_bytes=64 * MIB) == "refused"


async def test_a_plain_process_cannot_be_limited(tmp_path: Path) -> None:
    made = process(
        "p", [sys.executable, "-c", "print(1)"], sandbox="process", restarts_max=0, resources=Resources(limits=Limits(processes=4))
    )  # fmt: skip
    async with Runtime.open(tmp_path, agents=[made]) as runtime:
        with pytest.raises(AgentFailedError, match="need a wall"):
            await (await runtime.start("p", {})).result(20)
