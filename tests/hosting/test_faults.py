"""Bad input from both sides: each has its status, its stable code, and leaves the books as they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import ActionState, Budget, Runtime, tool
from perdure.core.errors import PerdureError
from tests.hosting.desk import Provider, program, providing, reply, stream

pytestmark = pytest.mark.timeout(60)
WAIT_S = 10


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing() as made:
        yield made


async def run(
    folder: Path, provider: Provider, text: str, *, tools: Any = (), budget: Any = None, **more: Any
) -> Any:
    """The result of one program, and the rows of its ledger."""
    agent = program(folder, text, tools=tools, **more)
    async with Runtime.open(folder / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "hello", budget=budget)
        result = await handle.result(WAIT_S)
        return result, runtime.actions.all_of(handle.id)


async def test_tokens(tmp_path: Path, provider: Provider) -> None:
    text = """
found = []
for key in (None, "", "Bearer prd-run-forged", "Basic abc"):
    status, headers, body = ask("x", headers={"authorization": key})
    found.append([status, headers.get("x-perdure-code"), json.loads(body)["error"]["code"], headers["x-should-retry"]])
status, headers, _ = ask("x", headers={"x_perdure_run": "another"})
found.append([status, headers.get("x-perdure-code")])
status, _, _ = ask("x", headers={"host": "evil.example"})
found.append(status)
open(WHERE, "w").write(KEY + " " + MODEL_URL)
give(found)
"""
    old = tmp_path / "token"
    result, rows = await run(tmp_path, provider, f"WHERE = {str(old)!r}\n{text}")
    assert result[:4] == [[401, "token-refused", "token-refused", "false"]] * 4
    assert result[4:] == [[401, "token-refused"], 403]
    assert not rows and not provider.asked
    agents = [
        program(tmp_path, 'KEY = input(); give(ask("x")[::2])', name="late"),
        program(tmp_path, "print(KEY)", name="first"),
    ]
    async with Runtime.open(tmp_path / "other", agents=agents, upstreams=[provider.upstream()]) as runtime:
        token = await (await runtime.start("first")).result(WAIT_S)
        status, body = await (await runtime.start("late", token)).result(WAIT_S)
    assert status == 401 and "has ended" in body
    assert not provider.asked


async def test_requests(tmp_path: Path, provider: Provider) -> None:
    text = """
found = []
for data in (b"{", b"[]", b"{}", b'{"model": "small", "messages": 3', b"\\xff"):
    status, headers, _ = send(MODEL_URL + "/chat/completions", data)
    found.append([status, headers.get("x-perdure-code")])
status, headers, body = ask("x", model="nobody")
found.append([status, headers["x-perdure-code"], "small" in body])
try:
    status, headers, _ = send(MODEL_URL + "/chat/completions", b" " * (33 << 20))
    found.append([status, headers["x-perdure-code"]])
except urllib.error.URLError:
    found.append("cut")
error = rpc("tools/call", name="nobody", arguments={})
found.append(error.get("error", error.get("result")))
error = rpc("tools/call", name="look", arguments={"what": 3})
found.append(error.get("error", error.get("result")))
give(found)
"""

    @tool(effect="read")
    async def look(what: str) -> str:
        """Look something up."""
        return what

    result, rows = await run(tmp_path, provider, text, tools=[look])
    assert result[:5] == [[400, "request-invalid"]] * 5
    assert result[5] == [404, "model-unknown", True]
    assert result[6] in ([413, "request-invalid"], "cut")
    assert "tool-unknown" in json.dumps(result[7]) or "nobody" in json.dumps(result[7])
    assert "what" in json.dumps(result[8])
    assert not rows and not provider.asked


async def test_upstream_faults(tmp_path: Path, provider: Provider) -> None:
    def slow(handler: Any, body: Any) -> None:
        reply(handler, 429, b'{"error": {"message": "slow down"}}', retry_after="7")

    def broken(handler: Any, body: Any) -> None:
        reply(handler, 500, b"oops")

    def malformed(handler: Any, body: Any) -> None:
        reply(handler, 200, b'{"choices": [')

    def renamed(handler: Any, body: Any) -> None:
        provider.well(handler, {**body, "model": "small-2027"})

    provider.plan = [broken, malformed, renamed, slow]
    text = """
found = []
for n in range(8):
    status, headers, body = ask(f"question {n}")
    found.append([status, headers.get("x-perdure-code"), headers.get("retry-after"), json.loads(body).get("model")])
give(found)
"""
    result, rows = await run(tmp_path, provider, text)
    assert result[0][0] in (500, 502, 503), result
    assert result[1][0] == 502, result
    assert result[2][::3] == [200, "small-2027"], result
    assert all(item[0] == 429 and int(item[2]) <= 7 for item in result[3:]), result
    assert len(provider.asked) == 4, "an upstream that asks for rest gets it: the storm ends here"
    assert [row.state for row in rows].count(ActionState.SUCCEEDED) == 1
    assert all(row.spent.tokens == 0 for row in rows if row.state is not ActionState.SUCCEEDED)


async def test_a_truncated_stream_is_lost(tmp_path: Path, provider: Provider) -> None:
    provider.plan = [lambda handler, body: stream(handler, body, "half of it", breaks=True)]
    text = """
import http.client
try:
    status, _, body = ask("x", stream=True)
except (http.client.IncompleteRead, ConnectionError):
    sys.exit("it broke off")
give([status, body.rstrip().endswith("[DONE]"), "usage" in body])
"""
    result, rows = await run(tmp_path, provider, text)
    assert result == [200, True, False], "the program sees the break, and no usage that it did not ask for"
    assert [row.state for row in rows] == [ActionState.LOST, ActionState.SUCCEEDED]
    assert (rows[1].input_tokens, rows[1].output_tokens, rows[1].spent.usd_micros) == (100, 20, 400)
    assert len(provider.asked) == 2


@pytest.mark.parametrize(
    "budget",
    [Budget(calls=1), Budget(tokens=5_000), Budget(usd_micros=42_000)],
    ids=["calls", "tokens", "usd"],
)
async def test_budgets(tmp_path: Path, provider: Provider, budget: Budget) -> None:
    text = """
found = []
for n in range(12):
    status, headers, body = ask(f"question {n}" + " " * n * 10)
    found.append([status, headers.get("x-perdure-code"), headers.get("x-should-retry")])
give(found)
"""
    result, rows = await run(tmp_path, provider, text, budget=budget)
    assert result[-1] == [403, "budget-exhausted", "false"]
    paid = [row for row in rows if row.state is ActionState.SUCCEEDED]
    assert len(paid) == len(provider.asked) == sum(item[0] == 200 for item in result) > 0
    assert all(row.spent.tokens == 120 and row.spent.usd_micros == 400 for row in paid)


async def test_an_unpriced_model_is_refused(tmp_path: Path, provider: Provider) -> None:
    text = 'status, headers, body = ask("x", model="dear-one"); give([status, headers["x-perdure-code"]])'
    result, _ = await run(tmp_path, provider, text, budget=Budget(usd_micros=1_000_000))
    assert result[0] == 403 and not provider.asked


async def test_a_budget_that_holds_is_raised(tmp_path: Path, provider: Provider) -> None:
    agent = program(tmp_path, 'give([said("one")["content"], said("two")["content"]])')
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", budget=Budget(calls=1, exhausted="hold"))
        async with asyncio.timeout(WAIT_S):
            async for entry in handle.entries():
                if type(entry).__name__ == "RunParked":
                    break
        assert [row.state for row in runtime.actions.waiting()] == [ActionState.HELD]
    # Held across a restart of the runtime; then the budget is raised.
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        again = runtime.run(handle.id)
        await runtime.actions.set_budget(handle.id, Budget(calls=5))
        assert len(await again.result(WAIT_S)) == 2
    assert len(provider.asked) == 2, "the first answer came from the journal"


async def test_a_key_is_nowhere(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-0123456789abcdef"
    monkeypatch.setenv("PERDURE_SECRET_PROVIDER_KEY", key)

    def echo(handler: Any, body: Any) -> None:
        reply(handler, 400, json.dumps({"error": {"message": f"bad key {key}"}}).encode())

    provider.plan = [echo]
    text = 'first = ask("x")[2]; said("y"); give([first, dict(os.environ)])'
    agent = program(tmp_path, text)
    upstream = provider.upstream(key="secret://PROVIDER_KEY")
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[upstream]) as runtime:
        result = await (await runtime.start("p")).result(WAIT_S)
    assert provider.headers[-1]["authorization"] == f"Bearer {key}"
    told, environment = result
    assert key not in json.dumps(environment)
    assert key not in told
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


async def test_a_program_that_only_fails(tmp_path: Path, provider: Provider) -> None:
    agent = program(tmp_path, 'print("last words", flush=True); sys.exit(3)', restarts_max=2)
    async with Runtime.open(tmp_path / "data", agents=[agent]) as runtime:
        handle = await runtime.start("p")
        with pytest.raises(PerdureError, match="last words") as caught:
            await handle.result(WAIT_S)
        starts = [entry for entry in handle.journal() if type(entry).__name__ == "ProgramStarted"]
    assert len(starts) == 3 and "exit code 3" in str(caught.value)
