"""Policies, approvals and containment for a program that knows nothing of them: over real MCP, through restarts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime, process, tool
from perdure.governance.grants import sign
from perdure.governance.keys import private_key, public_record
from perdure.runtime.rulebook import Rules

ANNA = private_key(bytes(range(32)))
PROGRAM = """
import json, os, sys, urllib.request
headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json",
           "accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
def call(name, **arguments):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    request = urllib.request.Request(os.environ["PERDURE_MCP_URL"], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        text = response.read().decode()
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    result = json.loads(lines[-1] if lines else text)
    found = result.get("result") or {"content": [{"text": json.dumps(result)}], "isError": True}
    return ("error: " if found.get("isError") else "") + found["content"][0]["text"]
print(call("pay", to="acme", cents=5) + "; " + call("pay", to="acme", cents=2000))
"""
RULES = """
@id("small") permit (principal, action == Action::"pay", resource) when { context.input.cents < 1000 };
@id("large") @hold("finance") permit (principal, action == Action::"pay", resource) when { context.input.cents >= 1000 };
"""
sent: list[int] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


@tool
async def pay(to: str, cents: int) -> str:
    """Pay."""
    sent.append(cents)
    return f"paid {cents}"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Runtime]:
    (path / "policies").mkdir(exist_ok=True)
    (path / "policies" / "a.cedar").write_text(RULES)
    (path / "program.py").write_text(PROGRAM)
    payer = process("payer", [sys.executable, str(path / "program.py")], tools=[pay], hold=0.5)
    async with Runtime.open(
        path / "data", agents=[payer], rules=Rules(policies=path / "policies")
    ) as runtime:
        await runtime.keys.register([public_record(ANNA, "anna", ["finance"], 1)], by="t")
        yield runtime


async def held(runtime: Runtime) -> Any:
    async with asyncio.timeout(20):
        while not (found := runtime.approvals.pending()):
            await asyncio.sleep(0.02)
    return found[0]


async def test_a_held_call_of_a_program_waits_for_its_signature(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("payer", "go")
        pending = await held(runtime)
        assert (pending.claim.arguments, sent) == ({"to": "acme", "cents": 2000}, [5])
        statement = runtime.approvals.statement(pending.record.key, "approve")
        await runtime.approvals.submit(pending.record.key, sign(statement, ANNA))
        assert await handle.result(20) == "paid 5; paid 2000"
        assert sent == [5, 2000]


async def test_it_waits_while_the_program_is_stopped_and_the_runtime_restarted(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("payer", "go")
        before = await held(runtime)
        await asyncio.sleep(1.0)  # the program is stopped: it only waits
    async with opened(tmp_path) as runtime:
        pending = await held(runtime)
        assert pending.claim == before.claim
        statement = runtime.approvals.statement(pending.record.key, "approve")
        await runtime.approvals.submit(pending.record.key, sign(statement, ANNA))
        assert await runtime.run(handle.id).result(20) == "paid 5; paid 2000"
        assert sent == [5, 2000]


async def test_a_rejection_reaches_the_program_as_an_error_of_the_tool(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.start("payer", "go")
        pending = await held(runtime)
        statement = runtime.approvals.statement(pending.record.key, "reject", reason="no such supplier")
        await runtime.approvals.submit(pending.record.key, sign(statement, ANNA))
        found = await handle.result(20)
        assert found.startswith("paid 5; error: ")
        assert "no such supplier" in found
        assert sent == [5]


async def test_containment_and_the_kill_switch_reach_a_program(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.containment.set("agent:payer", "restrict", by="anna", reason="odd")
        found = await (await runtime.start("payer", "go")).result(20)
        assert found.count("contained-restrict") == 2
        await runtime.containment.lift("agent:payer", by="anna")
        handle = await runtime.start("payer", "go")
        await held(runtime)
        report = await runtime.containment.kill("agent:payer", by="anna", reason="enough")
        assert (report.runs, report.not_stopped) == ((handle.id,), ())
        assert sent == [5]


async def test_a_program_that_says_it_is_not_sure_is_asked_about(tmp_path: Path) -> None:
    text = PROGRAM.replace(
        '"arguments": arguments}', '"arguments": arguments, "_meta": {"dev.perdure/confidence": 30}}'
    )
    (tmp_path / "program.py").write_text(text.replace("cents=2000", "cents=6"))
    payer = process("payer", [sys.executable, str(tmp_path / "program.py")], tools=[pay], hold=0.5)
    async with Runtime.open(tmp_path / "data", agents=[payer], rules=Rules(confidence_min=60)) as runtime:
        await runtime.keys.register([public_record(ANNA, "anna", ["approver"], 1)], by="t")
        handle = await runtime.start("payer", "go")
        for _ in range(2):
            pending = await held(runtime)
            assert "confidence is 30 percent" in pending.shown
            statement = runtime.approvals.statement(pending.record.key, "approve")
            await runtime.approvals.submit(pending.record.key, sign(statement, ANNA))
            async with asyncio.timeout(20):
                while any(item.record.key == pending.record.key for item in runtime.approvals.pending()):
                    await asyncio.sleep(0.02)
        assert await handle.result(20) == "paid 5; paid 6"
