"""``run.model``: through the gateway, paid from the budget, recorded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure import (
    AgentFailedError,
    Budget,
    BudgetExhaustedError,
    Price,
    RefusedError,
    Run,
    Runtime,
    Upstream,
    agent,
)
from perdure.core.actions import ActionState
from perdure.core.errors import UpstreamError

SCRIPT = '{"turns": [{"text": "one {random}"}, {"text": "two {random}"}]}'


@agent("asker")
async def asker(run: Run, model: str) -> list[str]:
    messages: list[dict[str, str]] = [{"role": "user", "content": "hello"}]
    said: list[str] = []
    for _ in range(2):
        answer = await run.model(model, messages, max_tokens=100)
        said.append(answer["choices"][0]["message"]["content"])
        messages += [{"role": "assistant", "content": said[-1]}, {"role": "user", "content": "go on"}]
    return said


@agent("embedder")
async def embedder(run: Run) -> int:
    found = await run.model("m", endpoint="embeddings", input=["a", "b"])
    return len(found["data"])


@agent("unlucky")
async def unlucky(run: Run) -> str:
    try:
        await run.model("dead", [{"role": "user", "content": "x"}])
    except UpstreamError as error:
        return error.code
    return "answered"


@pytest.fixture
def upstreams(tmp_path: Path) -> list[Upstream]:
    script = tmp_path / "script.json"
    script.write_text(SCRIPT)
    price = Price(input="1.00", output="2.00")
    return [
        Upstream(name="s", wire="scripted", path=str(script), models=("m", "free"), prices={"m": price}),
        Upstream(name="d", base_url="http://127.0.0.1:9/v1", models=("dead",), attempts=1),
    ]


async def test_answers_are_recorded_and_paid_for(tmp_path: Path, upstreams: list[Upstream]) -> None:
    async with Runtime.open(tmp_path / "data", agents=[asker, embedder], upstreams=upstreams) as runtime:
        handle = await runtime.start("asker", "m")
        first, second = await handle.result(10)
        assert first.startswith("one ")
        assert second.startswith("two ")
        rows = runtime.actions.all_of(handle.id)
        assert [(row.what, row.name, row.state, row.upstream) for row in rows] == [
            ("model", "m", ActionState.SUCCEEDED, "s")
        ] * 2
        account = runtime.actions.accounts(handle.id)[0]
        expected = sum(-(-((row.input_tokens or 0) * 1 + (row.output_tokens or 0) * 2) // 1) for row in rows)
        assert account.spent.usd_micros == expected
        assert account.spent.unpriced == 0
        assert await (await runtime.start("embedder")).result(10) == 2
    async with Runtime.open(tmp_path / "data", agents=[asker, embedder], upstreams=upstreams) as runtime:
        assert await runtime.run(handle.id).result(1) == [first, second]


async def test_a_budget_of_money_refuses_what_it_cannot_check_or_pay(
    tmp_path: Path, upstreams: list[Upstream]
) -> None:
    async with Runtime.open(tmp_path / "data", agents=[asker], upstreams=upstreams) as runtime:
        poor = await runtime.start("asker", "m", budget=Budget(usd_micros=10))
        with pytest.raises(BudgetExhaustedError, match="0.000010 USD"):
            await poor.result(10)
        unknown = await runtime.start("asker", "free", budget=Budget(usd_micros=10_000_000))
        with pytest.raises(RefusedError, match="cost is not known"):
            await unknown.result(10)
        allowed = await runtime.start("asker", "free", budget=Budget(usd_micros=10_000_000, unpriced="allow"))
        assert len(await allowed.result(10)) == 2
        assert runtime.actions.accounts(allowed.id)[0].spent.unpriced == 2


async def test_nobody_answers(tmp_path: Path, upstreams: list[Upstream]) -> None:
    async with Runtime.open(tmp_path / "data", agents=[asker, unlucky], upstreams=upstreams) as runtime:
        handle = await runtime.start("unlucky")
        assert await handle.result(20) == "upstream-unavailable"
        [row] = runtime.actions.all_of(handle.id)
        assert row.state is ActionState.LOST
        assert runtime.actions.accounts(handle.id)[0].reserved.calls == 0
        with pytest.raises(AgentFailedError, match="no upstream offers"):
            await (await runtime.start("asker", "nothing")).result(10)
