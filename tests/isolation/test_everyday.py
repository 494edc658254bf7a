"""Everyday agents behave in worker processes as they do in the runtime's own: the same results, the same journals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from perdure import RunHandle, Runtime
from perdure.core import entries as e
from perdure.core.errors import DefinitionError, PerdureError, ReplayError, SandboxUnavailableError
from perdure.core.records import Status
from perdure.core.workers import WorkerRules
from tests.golden import agents as golden
from tests.isolation import harness
from tests.isolation.harness import opened, plain
from tests.runtime.agents import Order
from tests.runtime.test_durable import until

Drive = Callable[[Runtime, RunHandle], Awaitable[None]]


async def nothing(runtime: Runtime, handle: RunHandle) -> None:
    pass


async def _notes(runtime: Runtime, handle: RunHandle) -> None:
    for number in range(3):
        await until(runtime, handle.id, Status.WAITING)
        await handle.send("note", {"n": number})
        await asyncio.sleep(0.05)


async def _answer(runtime: Runtime, handle: RunHandle) -> None:
    await until(runtime, handle.id, Status.WAITING)
    await handle.answer(runtime.questions(handle.id)[0].call, 7)


async def _cancel(runtime: Runtime, handle: RunHandle) -> None:
    await until(runtime, handle.id, Status.WAITING)
    await handle.cancel("enough")


async def _race(runtime: Runtime, handle: RunHandle) -> None:
    await until(runtime, handle.id, Status.WAITING)
    await handle.send("b", "from b")
    await asyncio.sleep(0.1)
    await handle.send("b", "again")


async def _go(runtime: Runtime, handle: RunHandle) -> None:
    await until(runtime, handle.id, Status.WAITING)
    await handle.send("go", "gone")


async def _golden(runtime: Runtime, handle: RunHandle) -> None:
    await handle.send("early", "x" * 70_000)
    async with asyncio.timeout(5):
        while not runtime.questions(handle.id):
            await asyncio.sleep(0.01)
    await handle.answer(runtime.questions(handle.id)[0].call, 7)
    await until(runtime, handle.id, Status.WAITING)
    await handle.send("late", "at last")


CASES: list[tuple[str, Any, Drive, bool]] = [
    ("echo", "one", nothing, True),
    ("orders", Order("tea", 2, __import__("datetime").date(2026, 11, 23)), nothing, True),
    ("retrying", {"label": "isolated", "failures": 2}, nothing, True),
    ("retrying", {"label": "isolated-bad", "failures": 99}, nothing, True),
    ("napping", 0.1, nothing, False),
    ("listener", 3, _notes, False),
    ("impatient", 0.05, nothing, True),
    ("parent", ["a", "b"], nothing, True),
    ("parent-of-failure", None, nothing, True),
    ("failing", None, nothing, True),
    ("asker", None, _answer, True),
    ("asker", 0.05, nothing, True),
    ("counter", 3, nothing, False),
    ("cleaner", None, _cancel, False),
    ("racer", None, _race, True),
    ("chance", None, _go, False),
    ("publisher", "paper", nothing, True),
    ("sender", "no-such-run", nothing, True),
    ("foreign-await", None, nothing, True),
    ("threads", None, nothing, True),
    ("misfit", "type", nothing, True),
    ("misfit", "object", nothing, True),
    ("misfit", "4", nothing, True),
    ("golden", ["a"], _golden, True),
]


def first_chance(runtime: Runtime, run: str) -> int:
    (started, *_) = runtime.run(run).journal(limit=1)
    assert isinstance(started, e.RunStarted)
    return started.chance


async def _ended(runtime: Runtime, handle: RunHandle) -> Any:
    try:
        return await handle.result(5)
    except PerdureError as error:
        return error.code, error.message.replace(handle.id, "RUN"), error.facts.get("type")


@pytest.mark.parametrize(("name", "given", "drive", "with_digests"), CASES, ids=lambda item: str(item)[:24])
async def test_the_journal_is_the_same(
    name: str, given: Any, drive: Drive, with_digests: bool, tmp_path: Path
) -> None:
    found = []
    for rules in ("none", harness.RULES):
        async with opened(tmp_path / str(len(found)), rules, extra=(golden.golden, golden.child)) as runtime:
            handle = await runtime.start(name, given)
            await drive(runtime, handle)
            result = await _ended(runtime, handle)
            text = harness.RUN_ID.sub("RUN", repr(result))
            found.append((text, plain(handle.journal(), with_digests=with_digests)))
    here, there = found
    if name == "golden":  # whether it is parked between two answers is a matter of microseconds
        here, there = [(text, _unparked(journal)) for text, journal in found]
    if name in ("chance", "golden"):  # their results have chance in them
        assert here[1][:-1] == there[1][:-1]
        assert here[1][-1].keys() == there[1][-1].keys()
    else:
        assert here == there


def _unparked(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [{**entry, "seq": 0} for entry in journal if entry["kind"] != "RunParked"]
    return [*sorted(found[:-1], key=lambda entry: (entry.get("call", 0), entry["kind"])), found[-1]]


async def test_gathered_steps_all_come_back(data: Path) -> None:
    async with opened(data) as runtime:
        handle = await runtime.start("many", 50)
        assert await handle.result(5) == [f"{handle.id}-{number}!" for number in range(50)]
        assert sum(isinstance(entry, e.StepCompleted) for entry in handle.journal()) == 50


async def test_plain_asyncio_is_the_same_on_replay_in_another_worker(data: Path) -> None:
    async with opened(data) as runtime:
        handle = await runtime.start("plain-asyncio", None)
        await until(runtime, handle.id, Status.WAITING)
        before = plain(handle.journal())
    async with opened(data) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("go", "on")
        assert await handle.result(5) == ["-b2", "-a2", "timed out", "-x!", "-y!", "on"]
        assert plain(handle.journal())[: len(before)] == before


async def test_an_isolated_journal_goes_on_in_process_and_the_other_way_round(data: Path) -> None:
    async with opened(data) as runtime:
        first = await runtime.start("chance", None)
        await until(runtime, first.id, Status.WAITING)
    async with opened(data, "none") as runtime:
        await runtime.run(first.id).send("go", 1)
        one = await runtime.run(first.id).result(5)
        assert one[0] == Random(first_chance(runtime, first.id)).getrandbits(53) / (1 << 53)
        second = await runtime.start("chance", None)
        await until(runtime, second.id, Status.WAITING)
    async with opened(data) as runtime:
        await runtime.run(second.id).send("go", 1)
        two = await runtime.run(second.id).result(5)
        assert two[0] == Random(first_chance(runtime, second.id)).getrandbits(53) / (1 << 53)
    assert len(one) == len(two) == 5
    async with opened(data, resident_runs_max=0) as runtime:
        again = await runtime.fork(second.id, at=3)
        await again.send("go", 2)
        assert (await again.result(5))[:3] == two[:3]


async def test_agents_and_steps_are_elsewhere_and_tools_are_here(data: Path) -> None:
    async with opened(data) as runtime:
        code, step = await (await runtime.start("where")).result(5)
        assert code == step != os.getpid()
        found = await (await runtime.start("actor")).result(5)
        assert found[0] == {"saw": "a", "pid": os.getpid()}
        assert found[1] != os.getpid()
        assert found[2:] == ["tool-failed", "tool-unknown", "arguments-invalid"]


async def test_patches_are_taken_by_new_runs_and_kept(data: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    async with opened(data) as runtime:
        handle = await runtime.start("patcher", log)
        await until(runtime, handle.id, Status.WAITING)
        assert [entry.name for entry in handle.journal() if isinstance(entry, e.PatchApplied)] == ["new-way"]
    async with opened(data) as runtime:
        await runtime.run(handle.id).send("go", 1)
        assert await runtime.run(handle.id).result(5) == [True, True, True, 1]
    assert Path(log).read_text().splitlines() == ["first", "second"]


async def test_parked_runs_rest_and_wake_after_eviction(data: Path, tmp_path: Path) -> None:
    async with opened(data, resident_runs_max=1) as runtime:
        handles = [await runtime.start("sleeper", str(tmp_path / f"log{number}")) for number in range(5)]
        for handle in handles:
            await until(runtime, handle.id, Status.WAITING)
        assert sum(len(worker.hosts) for worker in harness.pool(runtime).workers) <= 1
        for number, handle in enumerate(handles):
            await handle.send("go", number)
        assert [await handle.result(5) for handle in handles] == list(range(5))
    assert all((tmp_path / f"log{number}").read_text() == "asleep\n" for number in range(5))


async def test_large_answers_and_many_calls_fit_through(data: Path) -> None:
    async with opened(data) as runtime:
        handle = await runtime.start("wide", {"count": 40, "size": 200_000})
        assert await handle.result(20) == 40 * 200_000 + 40


async def test_what_is_too_large_is_the_run_s_own_fault(data: Path) -> None:
    async with opened(data, payload_bytes_max=100_000) as runtime:
        handle = await runtime.start("misfit", "large")
        with pytest.raises(PerdureError, match="1000004 bytes is over the limit"):
            await handle.result(5)
        with pytest.raises(PerdureError, match="over the limit"):
            await (await runtime.start("wide", {"count": 1, "size": 100_001})).result(5)
        assert harness.pool(runtime).ended == 0


async def test_an_agent_that_a_worker_cannot_have_is_refused(data: Path) -> None:
    from perdure import Agent

    async def hidden(run: Any) -> None: ...

    with pytest.raises(SandboxUnavailableError, match="agent `hidden` is not there"):
        async with opened(data, extra=(Agent("hidden", handler=hidden),)):
            pass
    with pytest.raises(DefinitionError, match="`none`, `process` or `namespace`, found `'walls'`"):
        async with opened(data, "walls"):
            pass
    with pytest.raises(DefinitionError, match="min <= max"):
        WorkerRules(min=3, max=2)


async def test_what_cannot_run_in_another_process_is_refused(data: Path) -> None:
    from perdure import Agent

    async def main_script(run: Any) -> None: ...

    main_script.__module__ = "__main__"
    with pytest.raises(DefinitionError, match="main script"):
        async with opened(data, extra=(Agent("scripted", handler=main_script),)):
            pass

    async def loop(run: Any) -> None: ...

    model = Agent("modelled", model="test")
    model.bind(loop)
    with pytest.raises(DefinitionError, match="is a model loop"):
        async with opened(data, extra=(model,)):
            pass


async def test_hosted_programs_go_on_as_before_beside_isolated_agents(data: Path) -> None:
    from perdure import process

    program = process("program", ["/bin/cat"])
    async with opened(data, extra=(program,)) as runtime:
        assert await (await runtime.start("program", 42)).result(10) == "42"
        assert await (await runtime.start("echo", "one")).result(5) == "one!"


async def test_what_an_agent_shows_is_seen_live_and_not_again_on_replay(data: Path) -> None:
    seen = []
    async with opened(data) as runtime:
        handle = await runtime.start("shower")
        watching = asyncio.create_task(_watch(handle, seen))
        await asyncio.sleep(0.05)
        await handle.send("go", 1)
        await until(runtime, handle.id, Status.WAITING)
        harness.kill_workers(runtime)
        async with asyncio.timeout(5):
            while handle.id in runtime.engine.hosts:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        await handle.send("go", 2)
        assert await handle.result(10) == [1, 2]
        await watching
    assert [(item.kind, item.data) for item in seen if item.data > 0] == [("token", 1), ("token", 2)]


async def _watch(handle: RunHandle, seen: list[Any]) -> None:
    async for item in handle.live():
        seen.append(item)


@pytest.mark.parametrize(
    ("name", "given", "at", "changes", "text"),
    [
        ("echo", "one", 2, {1: "two"}, "but the agent made step `mark`"),
        ("retrying", {"label": "fits", "failures": 0}, 2, {2: "no number"}, "does not fit its type any more"),
    ],
)
async def test_code_that_does_something_else_than_its_journal_is_blocked_in_both_modes(
    name: str, given: Any, at: int, changes: dict[int, Any], text: str, tmp_path: Path
) -> None:
    found = []
    for rules in ("none", harness.RULES):
        async with opened(tmp_path / str(len(found)), rules) as runtime:
            first = await runtime.start(name, given)
            await first.result(5)
            forked = await runtime.fork(first.id, at=at, changes=changes)
            with pytest.raises(ReplayError, match=text) as caught:
                await forked.result(5)
            found.append(harness.RUN_ID.sub("RUN", caught.value.message))
            assert forked.status is Status.BLOCKED
    assert found[0].split("any more")[0] == found[1].split("any more")[0]
