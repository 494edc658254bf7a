"""The MCP client against servers that are processes here, most of them bad."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.core.errors import (
    DefinitionError,
    ToolDoubtfulError,
    ToolFailedError,
    ToolUnreachableError,
)
from perdure.core.tools import ToolOutput, ToolUse
from perdure.ports import Tool, Toolset
from perdure.tools import mcp_stdio
from perdure.tools.mcp_client import McpToolset

BAD = str(Path(__file__).parent / "bad.py")


@asynccontextmanager
async def toolset(how: str, *more: str, **settings: Any) -> AsyncIterator[McpToolset]:
    found = McpToolset("bad", command=[sys.executable, BAD, how, *more], ours=os.environ, **settings)
    try:
        yield found
    finally:
        await found.close()


async def use(tools: McpToolset, name: str = "go", **arguments: Any) -> ToolOutput:
    await tools.open()
    tool = next(tool for tool in await tools.tools() if tool.spec.name == name)
    return await tool.call(ToolUse(run="r", key="r/1", arguments=arguments))


async def test_it_lists_and_uses_tools() -> None:
    async with toolset("good", timeout_ms=5_000) as tools:
        port: Toolset = tools
        await port.open()
        listed: dict[str, Tool] = {tool.spec.name: tool for tool in await port.tools()}
        assert list(listed) == ["go", "look", "put"]
        assert {(name, tool.spec.recovery, tool.spec.effect) for name, tool in listed.items()} == {
            ("go", "opaque", "irreversible"),
            ("look", "pure", "read"),
            ("put", "idempotent", "irreversible"),
        }
        assert listed["go"].spec.source == "mcp:bad"
        assert listed["go"].spec.timeout_ms == 5_000
        output = await listed["go"].call(ToolUse(run="r", key="r/7", arguments={"a": 1}))
        first, second = output.content
        assert json.loads(first["text"]) == {"key": "r/7", "arguments": {"a": 1}}
        assert output.value == first["text"] + "\nand more"
        assert not output.is_error


async def test_hints_can_be_distrusted_and_declarations_given() -> None:
    tighten = {"look": {"effect": "reversible", "timeout_ms": 9}, "*": {"recovery": "queryable"}}
    async with toolset("good", trust_hints=False, tighten=tighten) as tools:
        await tools.open()
        specs = {tool.spec.name: tool.spec for tool in await tools.tools()}
        assert (specs["look"].recovery, specs["look"].effect, specs["look"].timeout_ms) == (
            "opaque",
            "reversible",
            9,
        )
        assert (specs["put"].recovery, specs["put"].effect) == ("queryable", "irreversible")
    with pytest.raises(DefinitionError, match="`speed`"):
        McpToolset("x", command=["x"], tighten={"a": {"speed": 1}})
    with pytest.raises(DefinitionError, match="either `command` or `url`"):
        McpToolset("x")


async def test_a_server_that_cannot_be_started() -> None:
    missing = McpToolset("gone", command=["/no/such/program"], ours=os.environ)
    with pytest.raises(ToolUnreachableError, match="cannot be started"):
        await missing.open()
    await missing.close()
    async with toolset("stillborn") as tools:
        with pytest.raises(ToolUnreachableError, match="exit code 7; its last words: no configuration"):
            await tools.open()


async def test_a_server_that_never_says_anything() -> None:
    async with toolset("mute", start_timeout_ms=300) as tools:
        with pytest.raises(ToolUnreachableError, match="did not answer within 300 ms"):
            await tools.open()


async def test_a_server_that_dies_leaves_doubt_and_is_started_again(tmp_path: Path) -> None:
    async with toolset("die") as tools:
        with pytest.raises(ToolDoubtfulError, match="exit code 3; its last words: out of luck"):
            await use(tools)
    async with toolset("once", str(tmp_path / "died")) as tools:
        with pytest.raises(ToolDoubtfulError, match="exit code 4"):
            await use(tools)
        assert "and more" in (await use(tools)).value


@pytest.mark.parametrize(
    ("how", "said"), [("flood", "line of more than"), ("noise", "more than 1000 lines that are no messages")]
)
async def test_a_server_that_floods_its_stdout(how: str, said: str) -> None:
    async with toolset(how) as tools:
        with pytest.raises(ToolDoubtfulError, match=said):
            await use(tools)


async def test_a_server_that_prints_banners_is_forgiven() -> None:
    async with toolset("chatty") as tools:
        assert "and more" in (await use(tools)).value
        assert tools._link is not None
        assert tools._link.pipe is not None
        assert tools._link.pipe.garbage_lines == 50
        assert len(tools._link.pipe.why()) < 10_000


async def test_no_answer_in_time_is_doubt() -> None:
    async with toolset("silent", timeout_ms=200) as tools:
        with pytest.raises(ToolDoubtfulError, match="did not answer within 200 ms"):
            await use(tools)


async def test_a_server_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_stdio, "WRITE_S", 0.3)
    async with toolset("deaf", timeout_ms=5_000) as tools:
        await tools.open()
        tool = (await tools.tools())[0]
        # The first is read and never answered; the second stays in the pipe.
        uses = [
            tool.call(ToolUse(run="r", key=f"r/{n}", arguments={"text": "x" * 1_000_000})) for n in (1, 2)
        ]
        for error in await asyncio.gather(*uses, return_exceptions=True):
            assert isinstance(error, ToolDoubtfulError)
            assert "did not read its stdin" in str(error)


async def test_answers_that_are_none() -> None:
    async with toolset("wrong") as tools:
        with pytest.raises(ToolDoubtfulError):
            await use(tools)
    async with toolset("refuse") as tools:
        with pytest.raises(ToolFailedError, match="refused: unknown tool"):
            await use(tools)
    async with toolset("error") as tools:
        output = await use(tools)
        assert output.is_error
        assert output.value == "no such order"


@pytest.mark.parametrize("how", ["elicit", "sample"])
async def test_nobody_answers_for_a_human(how: str) -> None:
    async with toolset(how) as tools:
        told = json.loads((await use(tools)).value)
        assert told["id"] == "ask-1"
        assert "not supported" in told["error"]["message"]
        assert "result" not in told


async def test_a_server_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    async with toolset(
        "env", env={"TOKEN": "secret://t"}, resolve=lambda text: text.replace("secret://t", "s3")
    ) as tools:
        environment = (await use(tools)).value
    assert environment["TOKEN"] == "s3"
    assert "OPENAI_API_KEY" not in environment
    assert set(environment) <= {"PATH", "HOME", "LANG", "TOKEN", "LC_CTYPE"}


async def test_what_a_server_started_ends_with_it() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with toolset("child") as tools:
        handle = os.pidfd_open(int((await use(tools)).value))
        loop.add_reader(handle, ended.set)
        assert not ended.is_set()
    async with asyncio.timeout(5):
        await ended.wait()
    loop.remove_reader(handle)
    os.close(handle)


async def test_a_server_that_does_not_want_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_stdio, "END_S", 0.2)
    async with toolset("stubborn") as tools:
        await tools.open()
        assert tools._link is not None
        assert tools._link.pipe is not None
        process = tools._link.pipe._process
    assert process is not None
    assert process.returncode == -9


async def test_uses_that_are_cancelled_leave_a_usable_server() -> None:
    async with toolset("silent", timeout_ms=60_000) as tools:
        await tools.open()
        tool = (await tools.tools())[0]
        work = asyncio.create_task(tool.call(ToolUse(run="r", key="r/1", arguments={})))
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert len(await tools.tools()) == 3
