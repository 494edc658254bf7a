"""The Temporal engine does what every engine must, and fails visibly where Temporal would try for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from perdure.agents.agent import Agent, agent
from perdure.agents.run import Run
from perdure.core.errors import (
    AgentFailedError,
    DefinitionError,
    PayloadTooLargeError,
    QuestionUnknownError,
    ReplayError,
    RunUnknownError,
    UnavailableError,
)
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.testing.conformance import engine
from perdure.testing.conformance.agents import double
from tests.engines import harness

pytest.importorskip("temporalio")
from perdure.engines.temporal import TemporalEngine  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="module")
WAIT_S = 30
RECORDED = 10  # events up to the end of the workflow task that took the first step's result


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[harness.Temporal]:
    async with harness.temporal(tmp_path_factory.mktemp("temporal")) as opened:
        yield opened


@pytest.mark.parametrize("case", engine.BASIC, ids=lambda case: case.__name__)
async def test_basic(case: Callable[..., Awaitable[None]], temporal: harness.Temporal) -> None:
    await case(temporal)


def other(temporal: harness.Temporal, queue: str) -> TemporalEngine:
    """An engine on a queue of its own, with its worker in this process."""
    return TemporalEngine(
        temporal._engine.client,
        queue,
        clock=SystemClock(),
        entropy=SystemEntropy(),
        settings=harness.SETTINGS,
    )


async def events(here: TemporalEngine, run: str) -> list[Any]:
    return list((await here.client.get_workflow_handle(run).fetch_history()).events)


async def big(size: int) -> str:
    return "x" * size


async def test_changed_code_fails_visibly(temporal: harness.Temporal) -> None:
    async def old(run: Run) -> str:
        number = await run.step(double, 1)
        await run.receive("go")
        return str(number)

    async def new(run: Run) -> str:
        await run.sleep(60)
        return "never"

    here = other(temporal, "changed")
    async with here.worker([Agent("changes", handler=old)], [double]):
        run = await here.start("changes")
        async with asyncio.timeout(WAIT_S):
            while len(await events(here, run)) < RECORDED:
                await asyncio.sleep(0.02)
    async with here.worker([Agent("changes", handler=new)], [double]):
        await here.send(run, "go")
        with pytest.raises(ReplayError):
            await here.result(run, WAIT_S)


async def test_large_payloads_are_refused(temporal: harness.Temporal) -> None:
    @agent("large")
    async def large(run: Run, size: int) -> int:
        return len(await run.step(big, size))

    here = other(temporal, "large")
    with pytest.raises(PayloadTooLargeError):
        await here.start("large", "x" * 2_000_000)
    async with here.worker([large], [big]):
        assert await here.result(await here.start("large", 1_500_000), WAIT_S) == 1_500_000
        with pytest.raises(AgentFailedError, match="1900000"):
            await here.result(await here.start("large", 2_000_000), WAIT_S)


async def test_what_is_unknown_is_refused(temporal: harness.Temporal) -> None:
    @agent("misses")
    async def misses(run: Run) -> int:
        return await run.step(double, 1)

    @agent("sessions")
    async def sessions(run: Run) -> None:
        await run.spawn("misses", session="s")

    here = other(temporal, "unknown")
    async with here.worker([misses, sessions]):
        with pytest.raises(AgentFailedError, match="no step is called `double`"):
            await here.result(await here.start("misses"), WAIT_S)
        with pytest.raises(AgentFailedError, match="no sessions"):
            await here.result(await here.start("sessions"), WAIT_S)
        with pytest.raises(AgentFailedError, match="no agent is called `nobody`"):
            await here.result(await here.start("nobody"), WAIT_S)
        run = await here.start("misses")
        with pytest.raises(QuestionUnknownError):
            await here.answer(run, 7, 1)
    for act in (here.cancel("no-such-run"), here.send("no-such-run", "t"), here.result("no-such-run")):
        with pytest.raises(RunUnknownError):
            await act
    with pytest.raises(DefinitionError, match="two agents"):
        async with here.worker([misses, Agent("misses", handler=misses.handler)]):
            pass


async def test_publications_start_subscribers(temporal: harness.Temporal) -> None:
    @agent("subscriber", subscribes=("news",))
    async def subscriber(run: Run, text: str) -> str:
        return text.upper()

    @agent("publisher")
    async def publisher(run: Run) -> list[str]:
        return await run.publish("news", "hot")

    here = other(temporal, "publish")
    async with here.worker([subscriber, publisher]):
        (started,) = await here.result(await here.start("publisher"), WAIT_S)
        assert await here.result(started, WAIT_S) == "HOT"


async def test_no_cluster_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no Temporal cluster"):
        await TemporalEngine.connect("127.0.0.1:9", clock=SystemClock(), entropy=SystemEntropy())
