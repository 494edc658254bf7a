"""Model agents: what is journaled, what a crash costs, what is seen live."""

# ruff: noqa: E402

from __future__ import annotations

import asyncio
import builtins
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pydantic_ai = pytest.importorskip("pydantic_ai")

from pydantic import BaseModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.function import FunctionModel

from perdure import (
    ActionState,
    Agent,
    Budget,
    BudgetExhaustedError,
    Runtime,
    Settings,
    current_run,
    step,
    tool,
)
from perdure.core import entries as e
from perdure.core.errors import DefinitionError, StepFailedError
from perdure.models.pydantic_agent import in_run
from perdure.testing.models import OUTPUT, Call, ScriptedModel

CALLS: list[str] = []


class Weather(BaseModel):
    city: str
    degrees: int


def look_up(city: str) -> str:
    """Where a city is."""
    CALLS.append(f"look_up {city}")
    return f"{city} is in Austria"


@step(retries=2, backoff=0.01)
async def measure(city: str) -> dict[str, int]:
    """The temperature."""
    CALLS.append(f"measure {city}")
    if len([call for call in CALLS if call.startswith("measure")]) == 1:
        raise RuntimeError("the station does not answer")
    await asyncio.sleep(0.01)
    return {"degrees": 21}


@in_run
async def ask_boss(question: str) -> str:
    """Asks a human."""
    return str(await current_run().ask(question))


SCRIPT = [Call("look_up", {"city": "Wien"}), Call("measure", {"city": "Wien"}), "21 degrees in Wien"]


def opened(data: Path, *agents: Any, **settings: Any) -> Any:
    return Runtime.open(data, agents=list(agents), settings=Settings(drain_ms=500, poll_ms=50, **settings))


def names(handle: Any, kind: Any = e.StepCompleted) -> list[str]:
    return [entry.name for entry in handle.journal() if isinstance(entry, kind)]


@pytest.fixture(autouse=True)
def fresh() -> None:
    CALLS.clear()


async def test_each_request_and_each_tool_call_is_one_entry(data: Path) -> None:
    model = ScriptedModel(SCRIPT)
    agent = Agent("guide", model=model, instructions="Be short.", tools=[look_up, measure])
    async with opened(data, agent) as runtime:
        handle = await runtime.start("guide", "How warm is it?")
        assert await handle.result(10) == "21 degrees in Wien"
        assert names(handle) == [
            "model scripted", "tool look_up", "model scripted", "tool measure", "model scripted",
        ]  # fmt: skip
        assert names(handle, e.StepRetried) == ["tool measure"]
    assert model.requests == 3
    assert CALLS == ["look_up Wien", "measure Wien", "measure Wien"]


async def test_parallel_tool_calls_replay_and_cost_nothing_again(data: Path) -> None:
    script = [
        [Call("look_up", {"city": "Graz"}), Call("look_up", {"city": "Linz"})],
        Call("ask_boss", {"question": "ok?"}),
        "fine",
    ]

    def agent() -> tuple[ScriptedModel, Agent]:
        model = ScriptedModel(script)
        return model, Agent("guide", model=model, tools=[look_up, ask_boss])

    first, before = agent()
    async with opened(data, before) as runtime:
        handle = await runtime.start("guide", "Go")
        async with asyncio.timeout(10):
            while not handle.questions():
                await asyncio.sleep(0.02)
    second, after = agent()
    async with opened(data, after) as runtime:
        handle = runtime.run(handle.id)
        (question,) = handle.questions()
        assert question.question == "ok?"
        await handle.answer(question.call, "yes")
        assert await handle.result(10) == "fine"
    assert (first.requests, second.requests) == (2, 1)
    assert sorted(CALLS) == ["look_up Graz", "look_up Linz"]


async def test_structured_output(data: Path) -> None:
    model = ScriptedModel([Call(OUTPUT, {"city": "Wien", "degrees": 21})])
    async with opened(data, Agent("guide", model=model, output=Weather)) as runtime:
        handle = await runtime.start("guide", "Wien?")
        assert await handle.result(10) == {"city": "Wien", "degrees": 21}


async def test_a_pydantic_ai_agent_is_taken_as_it_is(data: Path) -> None:
    model = ScriptedModel([Call("look_up", {"city": "Wien"}), "Austria"])
    agent = pydantic_ai.Agent(model, name="desk", instructions="Be short.")
    agent.tool_plain(look_up)
    async with opened(data, agent) as runtime:
        handle = await runtime.start("desk", "Where is Wien?")
        assert await handle.result(10) == "Austria"
        assert names(handle) == ["model scripted", "tool look_up", "model scripted"]
    outside = await agent.run("Where is Wien?")  # elsewhere it is what it was
    assert outside.output == "Austria"


async def test_a_model_that_cannot_stream(data: Path) -> None:
    def reply(messages: list[Any], info: Any) -> Any:
        return pydantic_ai.ModelResponse(parts=[pydantic_ai.TextPart("plain")])

    agent = pydantic_ai.Agent(FunctionModel(reply, model_name="plain"), name="desk")
    async with opened(data, agent) as runtime:
        assert await (await runtime.start("desk", "Hello")).result(10) == "plain"


async def test_tokens_are_seen_live(data: Path) -> None:
    agent = Agent("guide", model=ScriptedModel(["one two three"], delay=0.2))
    async with opened(data, agent) as runtime:
        handle = await runtime.start("guide", "count")
        seen = [item async for item in handle.live()]
        assert await handle.result(10) == "one two three"
    assert [(item.kind, item.data) for item in seen] == [
        ("token", "one"),
        ("token", " two"),
        ("token", " three"),
    ]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_model_is_asked_again(data: Path, status: int) -> None:
    busy = ModelHTTPError(status, "scripted", headers={"retry-after": "0.2"})
    model = ScriptedModel([busy, "there you are"])
    async with opened(data, Agent("guide", model=model)) as runtime:
        handle = await runtime.start("guide", "Hello")
        assert await handle.result(10) == "there you are"
        (retried,) = [entry for entry in handle.journal() if isinstance(entry, e.StepRetried)]
    assert retried.due_ms - retried.at_ms >= 200
    assert model.requests == 2


async def test_a_refused_request_is_not_repeated(data: Path) -> None:
    model = ScriptedModel([ModelHTTPError(401, "scripted"), "never"])
    async with opened(data, Agent("guide", model=model)) as runtime:
        handle = await runtime.start("guide", "Hello")
        with pytest.raises(StepFailedError, match="401"):
            await handle.result(10)
    assert model.requests == 1


async def test_a_session_keeps_its_conversation(data: Path) -> None:
    model = ScriptedModel(["Hello Ada", "You are Ada"])
    async with opened(data, Agent("guide", model=model)) as runtime:
        for prompt, reply in (("I am Ada", "Hello Ada"), ("Who am I?", "You are Ada")):
            assert await (await runtime.start("guide", prompt, session="ada")).result(10) == reply
        assert await (await runtime.start("guide", "Who am I?", session="bob")).result(10) == "Hello Ada"


@tool
async def reserve(city: str) -> str:
    """Reserves a room."""
    CALLS.append(f"reserve {city}")
    return f"reserved in {city}"


async def test_tools_of_ours_go_through_the_gateway(data: Path) -> None:
    model = ScriptedModel([Call("reserve", {"city": "Wien"}), "done"])
    agent = Agent("desk", model=model, tools=[reserve], budget=Budget(calls=1))
    async with Runtime.open(data, agents=[agent]) as runtime:
        handle = await runtime.start("desk", "a room, please")
        assert await handle.result(10) == "done"
        [row] = runtime.actions.rows(run=handle.id)
        assert (row.name, row.state, row.recovery) == ("reserve", ActionState.SUCCEEDED, "opaque")
        refused = await runtime.start("desk", "two rooms, please", budget=Budget(calls=0))
        with pytest.raises(BudgetExhaustedError):
            await refused.result(10)
    assert CALLS == ["reserve Wien"]


def test_what_cannot_work_is_said() -> None:
    from perdure.runtime.registry import register

    with pytest.raises(DefinitionError, match="name"):
        register([pydantic_ai.Agent(ScriptedModel([]))])
    with pytest.raises(DefinitionError, match="tool"):
        register([Agent("guide", model=ScriptedModel([]), tools=[3])])
    with pytest.raises(DefinitionError, match="model of type `int`"):
        register([Agent("guide", model=3)])


def test_the_version_is_that_of_the_definition() -> None:
    from perdure.runtime.registry import register

    def version(**options: Any) -> str:
        return register([Agent("guide", model=ScriptedModel([]), **options)])["guide"].version

    assert version() == version()
    assert len({version(), version(instructions="x"), version(tools=[look_up]), version(output=Weather)}) == 4


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.runtime.registry import register

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "pydantic_ai":
            raise ImportError("No module named 'pydantic_ai'")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("perdure.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("perdure.models.pydantic_agent", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DefinitionError, match=r"perdure\[pydantic-ai\]"):
        register([Agent("guide", model="openai:gpt-5")])


async def test_a_kill_between_requests_pays_for_nothing_twice(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    run = ""

    async def worker() -> tuple[asyncio.subprocess.Process, str]:
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("child.py")), str(tmp_path / "data"), str(log), run,
            stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        assert child.stdout is not None
        return child, (await child.stdout.readline()).decode().strip()

    for wanted in (2, 4):
        child, run = await worker()
        async with Runtime.open(tmp_path / "data", agents=[], beside=True) as beside, asyncio.timeout(20):
            while names(beside.run(run)).count("model scripted") < wanted:
                await asyncio.sleep(0.005)
        child.kill()  # in the middle of the tool that the model has just asked for
        await child.wait()
    child, _ = await worker()
    assert child.stdout is not None
    assert (await child.stdout.readline()).decode().strip() == "done"
    await child.wait()
    assert log.read_text().split() == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]  # just what an undisturbed run would have asked
    async with Runtime.open(tmp_path / "data", agents=[], beside=True) as beside:
        assert names(beside.run(run)).count("model scripted") == 5
