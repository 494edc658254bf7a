"""Bad input and faults: each has a stable code, a message that says what to do, and loses nothing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    AgentUnknownError,
    InputInvalidError,
    PerdureError,
    ReplayError,
    Run,
    Runtime,
    Settings,
    Status,
    agent,
    step,
)
from perdure.core.errors import (
    AgentChangedError,
    BlockedError,
    CorruptError,
    DataDirInvalidError,
    DataDirLockedError,
    DefinitionError,
    JournalCorruptError,
    OutsideRunError,
    PayloadTooLargeError,
    QuarantinedError,
    ResultInvalidError,
    RunUnknownError,
    StepNotPortableError,
    UsageError,
    error_for,
)
from perdure.runtime.datadir import DATABASE
from tests.conftest import Open
from tests.runtime.agents import CALLS, bad_result, gives_up, hangs, mark, no_json
from tests.runtime.test_durable import kinds, until

ROOT = Path(__file__).parent.parent.parent


async def test_an_unknown_agent_names_those_that_are_known(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        with pytest.raises(AgentUnknownError, match="`echo`") as caught:
            await runtime.start("ecco", "x")
        assert caught.value.code == "agent-unknown"
        with pytest.raises(RunUnknownError):
            runtime.run("nope")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("echo", 5),
        ("orders", {"item": "tea"}),
        ("retrying", ["only-one"]),
        ("retrying", {"label": "x", "fail": 1}),
    ],
)
async def test_input_that_does_not_fit_starts_nothing(open_runtime: Open, name: str, given: Any) -> None:
    async with open_runtime() as runtime:
        with pytest.raises(InputInvalidError) as caught:
            await runtime.start(name, given)
        assert f"`{name}`" in str(caught.value)
        assert runtime.runs() == []


async def test_input_that_is_not_json_is_refused(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        with pytest.raises(InputInvalidError, match="cannot be written as JSON"):
            await runtime.start("echo", object())


@agent("results")
async def results(run: Run, which: str) -> Any:
    known = {"hint": bad_result, "json": no_json, "hangs": hangs}
    if which == "gives-up":
        return await run.step(gives_up, "give-up")
    if which == "agent":
        return {1, object()}
    return await run.step(known[which])


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ("hint", "result-invalid"),
        ("json", "result-invalid"),
        ("hangs", "step-timed-out"),
        ("gives-up", "step-failed"),
    ],
)
async def test_a_step_that_cannot_be_recorded_fails_its_run(
    open_runtime: Open, which: str, code: str
) -> None:
    async with open_runtime([results]) as runtime:
        handle = await runtime.start("results", which)
        with pytest.raises(PerdureError):
            await handle.result(5)
        assert handle.record().code == code
        assert kinds(handle.journal()) == ["RunStarted", "StepFailed", "RunFailed"]
    if which == "gives-up":
        assert CALLS["give-up"] == 1


async def test_an_agents_result_that_is_not_json_fails_the_run(open_runtime: Open) -> None:
    async with open_runtime([results]) as runtime:
        with pytest.raises(ResultInvalidError):
            await (await runtime.start("results", "agent")).result(5)


async def test_oversized_payloads_are_refused_with_the_limit(open_runtime: Open) -> None:
    async with open_runtime(payload_bytes_max=1_000) as runtime:
        with pytest.raises(PayloadTooLargeError, match="1000"):
            await runtime.start("echo", "x" * 2_000)
        handle = await runtime.start("listener", 1)
        with pytest.raises(PayloadTooLargeError):
            await handle.send("note", "x" * 2_000)
        await handle.send("note", "small")
        assert await handle.result(5) == ["small"]


def test_a_closure_or_lambda_is_refused_with_advice() -> None:
    def inner() -> None: ...

    for function in (inner, lambda: None, "text".upper, ROOT.exists):
        with pytest.raises(StepNotPortableError, match="top of a module"):
            step(function)


async def test_a_lambda_in_a_run_is_refused_at_the_call(open_runtime: Open) -> None:
    @agent("lambda")
    async def with_lambda(run: Run) -> None:
        await run.step(lambda: 1)

    async with open_runtime([with_lambda]) as runtime:
        with pytest.raises(PerdureError, match="is a lambda"):
            await (await runtime.start("lambda")).result(5)


@pytest.mark.parametrize(
    "options",
    [{"retries": -1}, {"timeout": 0}, {"backoff": -1}, {"name": ""}],
    ids=lambda options: str(options),
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        step(**options)(mark.function)


def test_definitions_that_cannot_work_are_refused() -> None:
    async def handler(run: Run) -> None: ...

    for wrong in (
        lambda: Agent("x"),
        lambda: Agent("x", handler=handler, model="m"),
        lambda: Agent("x", handler=handler, concurrency=0),
        lambda: Agent("x", handler=handler, conflict="queue"),  # type: ignore[arg-type]
        lambda: Agent("x", handler=print),  # type: ignore[arg-type]
        lambda: Settings(concurrency=0),
        lambda: Settings(durability="eventual"),  # type: ignore[arg-type]
        lambda: Settings.of({"speed": "9"}),
        lambda: Settings.of({"concurrency": "many"}),
    ):
        with pytest.raises(DefinitionError):
            wrong()


async def test_two_agents_of_one_name_are_refused(data: Path) -> None:
    async def handler(run: Run) -> None: ...

    with pytest.raises(DefinitionError, match="two agents"):
        async with Runtime.open(data, agents=[Agent("x", handler=handler), Agent("x", handler=handler)]):
            pass
    with pytest.raises(DefinitionError, match="found a `str`"):
        async with Runtime.open(data, agents=["x"]):
            pass


async def test_waiting_for_something_that_is_not_durable_blocks_with_advice(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        handle = await runtime.start("foreign-await")
        with pytest.raises(BlockedError, match="not durable"):
            await handle.result(5)
        assert handle.record().code == "await-not-durable"
        with pytest.raises(PerdureError, match="in a step"):
            await (await runtime.start("threads")).result(5)


async def test_a_durable_call_from_outside_the_run_is_refused(open_runtime: Open) -> None:
    leaked: list[Run] = []

    @agent("leaky")
    async def leaky(run: Run) -> None:
        leaked.append(run)
        await run.sleep(60)

    async with open_runtime([leaky]) as runtime:
        handle = await runtime.start("leaky")
        await until(runtime, handle.id, Status.WAITING)
        with pytest.raises(OutsideRunError):
            leaked[0].sleep(1)


# -- code that changed ----------------------------------------------------------------------------
def version_one() -> Agent:
    @agent("changing")
    async def changing(run: Run) -> str:
        first = await run.step(mark, "one")
        await run.receive("go")
        return first

    return changing


def version_two() -> Agent:
    @agent("changing")
    async def changing(run: Run) -> str:
        first = await run.step(mark, "two")
        await run.receive("go")
        return first

    return changing


def version_three() -> Agent:
    @agent("changing")
    async def changing(run: Run) -> str:
        if run.patched("new-first-step"):
            first = await run.step(mark, "three")
        else:
            first = await run.step(mark, "one")
        await run.receive("go")
        return first

    return changing


def version_four() -> Agent:
    @agent("changing")
    async def changing(run: Run) -> str:
        first = await run.step(mark, "one")
        await run.receive("stop")
        return first

    return changing


async def test_changed_code_blocks_a_waiting_run_until_an_operator_decides(open_runtime: Open) -> None:
    async with open_runtime([version_one()]) as runtime:
        handle = await runtime.start("changing")
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime([version_two()]) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("go")
        with pytest.raises(AgentChangedError) as changed:
            await handle.result(5)
        assert changed.value.facts["expected"] != changed.value.facts["found"]
        await runtime.resume(handle.id, migrate=True)
        with pytest.raises(ReplayError, match="step `mark`") as caught:
            await handle.result(5)
        assert caught.value.code == "replay-mismatch"
    async with open_runtime([version_three()]) as runtime:
        handle = runtime.run(handle.id)
        await runtime.resume(handle.id, migrate=True)
        assert await handle.result(5) == "one!"  # the message was kept all the time
        assert await _finish(runtime) == "three!"  # new runs take the new path


async def _finish(runtime: Runtime) -> Any:
    fresh = await runtime.start("changing")
    await fresh.send("go")
    return await fresh.result(5)


async def test_a_changed_wait_is_found_before_anything_is_taken(open_runtime: Open) -> None:
    async with open_runtime([version_one()]) as runtime:
        handle = await runtime.start("changing")
        await until(runtime, handle.id, Status.WAITING)
    async with open_runtime([version_four()], migrate=True) as runtime:
        handle = runtime.run(handle.id)
        await handle.send("go")
        with pytest.raises(ReplayError, match="receive `go`"):
            await handle.result(5)


# -- the data directory ----------------------------------------------------------------------------
async def test_a_second_engine_is_told_who_has_the_directory(open_runtime: Open, data: Path) -> None:
    async with open_runtime():
        code = (
            "import asyncio, sys\n"
            "from perdure import Runtime\n"
            "async def main():\n"
            "    async with Runtime.open(sys.argv[1]): pass\n"
            "asyncio.run(main())\n"
        )
        found = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code, str(data)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert found.returncode != 0
        assert "data-dir-locked" in found.stderr
        assert "process " in found.stderr.splitlines()[-1]
        with pytest.raises(DataDirLockedError) as caught:
            async with open_runtime():
                pass
        assert isinstance(caught.value.facts["pid"], int)
    async with open_runtime():
        pass  # free again


async def test_a_directory_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(DataDirInvalidError, match="cannot be made"):
        async with Runtime.open(file):
            pass
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    database = sqlite3.connect(foreign / DATABASE)
    database.execute("CREATE TABLE t (x)")
    database.commit()
    database.close()
    with pytest.raises(DataDirInvalidError, match="another program"):
        async with Runtime.open(foreign):
            pass


async def test_a_smashed_database_is_reported_not_overwritten(open_runtime: Open, data: Path) -> None:
    async with open_runtime() as runtime:
        await (await runtime.start("echo", "x")).result(5)
    path = data / DATABASE
    path.write_bytes(b"garbage" * 1_000)
    with pytest.raises(CorruptError, match="backup"):
        async with open_runtime():
            pass
    assert path.read_bytes().startswith(b"garbage")


async def test_a_flipped_byte_blocks_that_run_only(open_runtime: Open, data: Path) -> None:
    async with open_runtime() as runtime:
        handles = [await runtime.start("listener", 1) for _ in range(2)]
        for handle in handles:
            await until(runtime, handle.id, Status.WAITING)
    database = sqlite3.connect(data / DATABASE)
    (body,) = database.execute("SELECT body FROM journal WHERE run = 1 AND seq = 1").fetchone()
    broken = body.replace(b"listener", b"lastener")
    database.execute("UPDATE journal SET body = ? WHERE run = 1 AND seq = 1", (broken,))
    database.commit()
    database.close()
    async with open_runtime() as runtime:
        for handle in handles:
            await runtime.send(handle.id, "note", "n")
        assert await runtime.run(handles[1].id).result(5) == ["n"]
        with pytest.raises(CorruptError):
            await runtime.run(handles[0].id).result(5)
        assert runtime.run(handles[0].id).status is Status.BLOCKED
        with pytest.raises(JournalCorruptError, match="entry 1"):
            runtime.run(handles[0].id).journal()


async def test_a_full_disk_loses_nothing_that_was_acknowledged(open_runtime: Open) -> None:
    async with open_runtime() as runtime:
        first = await runtime.start("listener", 1)
        await until(runtime, first.id, Status.WAITING)
        writer = runtime.store._writer  # type: ignore[attr-defined]
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(PerdureError) as caught:
            for _ in range(50):
                await first.send("filler", "y" * 3_000)
        assert caught.value.code == "store-full"
        writer.execute("PRAGMA max_page_count = 1000000")
        await first.send("note", "after")
        assert await first.result(5) == ["after"]


async def test_a_clock_that_goes_back_never_makes_a_journal_go_back(open_runtime: Open) -> None:
    class Backwards:
        def __init__(self) -> None:
            self.offset_ms = 0

        def now_ms(self) -> int:
            self.offset_ms -= 7
            return time.time_ns() // 1_000_000 + self.offset_ms

    async with open_runtime() as runtime:
        assert runtime.engine is not None
        runtime.engine.clock = Backwards()
        handle = await runtime.start("many", 10)
        await handle.result(5)
        times = [entry.at_ms for entry in handle.journal()]
        assert times == sorted(times)


async def test_the_watchdog_names_agent_and_line(
    open_runtime: Open, caplog: pytest.LogCaptureFixture
) -> None:
    @agent("blocker")
    async def blocker(run: Run) -> None:
        time.sleep(0.3)  # this very line

    with caplog.at_level(logging.WARNING, "perdure.watchdog"):
        async with open_runtime([blocker], block_ms=50) as runtime:
            await (await runtime.start("blocker")).result(5)
            await asyncio.sleep(0.15)
    found = "\n".join(record.getMessage() for record in caplog.records)
    line = next(
        n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "this very line" in text
    )
    assert "loop-blocked" in found
    assert "agent `blocker`" in found
    assert f"{Path(__file__).name}:{line}" in found


async def test_a_poison_run_is_quarantined_and_the_others_go_on(data: Path) -> None:
    deaths = 0
    for life in range(12):
        command = [sys.executable, "-m", "tests.runtime.poisoned", str(data), "start" if life == 0 else "go"]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        async with asyncio.timeout(30):
            if await process.wait() == 0:
                break
        deaths += 1
    async with Runtime.open(data, beside=True) as runtime:
        (poison,) = runtime.runs(agent="poison")
        assert (poison.status, poison.code) == (Status.BLOCKED, "run-quarantined")
        innocents = runtime.runs(agent="innocent")
        assert [row.status for row in innocents] == [Status.COMPLETED] * 5
        with pytest.raises(QuarantinedError, match="crashes"):
            await runtime.run(poison.id).result(1)
        await runtime.cancel(poison.id, "it kills")
    assert deaths == 3  # `recoveries_max`


def test_every_code_leads_to_its_class() -> None:
    assert error_for("replay-mismatch") is ReplayError
    assert error_for("of-another-version") is PerdureError


async def test_an_oversized_call_is_refused_in_the_agent(open_runtime: Open) -> None:
    @agent("large")
    async def large(run: Run) -> list[str]:
        found = []
        for make in (
            lambda: run.step(mark, "x" * 3_000),
            lambda: run.send(run.id, "t", "x" * 3_000),
            lambda: run.publish("t", "x" * 3_000),
            lambda: run.ask("x" * 3_000),
        ):
            try:
                await make()
            except PayloadTooLargeError as error:
                found.append(error.code)
        try:
            await run.state.set("k", "x" * 3_000)
        except PayloadTooLargeError as error:
            found.append(error.code)
        return found

    async with open_runtime([large], payload_bytes_max=2_000) as runtime:
        assert await (await runtime.start("large")).result(5) == ["payload-too-large"] * 5


async def test_an_agent_that_exits_ends_its_run_only(open_runtime: Open) -> None:
    @agent("exits")
    async def exits(run: Run) -> None:
        await run.step(mark, "before-exit")
        sys.exit(3)

    async with open_runtime([exits]) as runtime:
        with pytest.raises(PerdureError, match="3"):
            await (await runtime.start("exits")).result(5)
        assert await (await runtime.start("echo", "still here")).result(5) == "still here!"


class Moody:
    """A type of the author's whose validation breaks in a way that nobody foresaw."""

    is_broken = False

    @classmethod
    def model_validate(cls, value: Any) -> Moody:
        if cls.is_broken:
            raise RuntimeError("moody")
        return cls()


async def test_a_run_that_cannot_even_begin_is_blocked_and_the_others_go_on(
    open_runtime: Open, data: Path
) -> None:
    @agent("moody")
    async def moody(run: Run, mood: Moody) -> str:
        return "fine"

    async with Runtime.open(data, agents=[moody], beside=True) as runtime:
        handle = await runtime.start("moody", {"a": 1})
    Moody.is_broken = True
    try:
        async with open_runtime([moody]) as runtime:
            with pytest.raises(BlockedError, match="moody"):
                await runtime.run(handle.id).result(5)
            assert await (await runtime.start("echo", "others")).result(5) == "others!"
            assert await (await runtime.start("napping", 0.05)).result(5)  # the dispatcher still wakes runs
    finally:
        Moody.is_broken = False
    async with open_runtime([moody]) as runtime:
        await runtime.resume(handle.id)
        assert await runtime.run(handle.id).result(5) == "fine"
