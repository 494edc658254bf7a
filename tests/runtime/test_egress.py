"""Sandboxed code that reaches hosts: which, for whom, and what the audit log has of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent
from perdure.core.egress import EgressHost, EgressRules
from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxLimits
from perdure.runtime.config import world_from
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.walls import SandboxRules
from perdure.sandboxes.namespace import NamespaceSandboxes

FETCH = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://localhost:%d/x", timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


@pytest.fixture(autouse=True)
async def _namespaces() -> None:
    sandboxes = NamespaceSandboxes(spare=0)
    try:
        await sandboxes.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    await sandboxes.close()


@agent("fetcher", tools=["sandbox-online", "sandbox"])
async def fetcher(run: Run, code: str, tool: str = "python_online") -> Any:
    await run.workspace.put("mark", "here")
    return await run.act(tool, code=code)


@agent("other", tools=["sandbox-online"])
async def other(run: Run, code: str) -> Any:
    return await run.act("python_online", code=code)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
    await writer.drain()
    writer.close()


async def test_who_may_reach_what(tmp_path: Path) -> None:
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rules = SandboxRules(
        egress={"fetcher": EgressRules(allow=(EgressHost(host="localhost", ports=(port,), private=True),))}
    )
    async with Runtime.open(tmp_path / "d", agents=[fetcher, other], sandboxes=rules) as runtime:
        one = await runtime.start("fetcher", {"code": FETCH % port + "print(open('mark').read())"})
        assert (await one.result(60))["stdout"] == "hello\nhere\n"
        two = await runtime.start("other", {"code": FETCH % port})
        assert "egress-host" in (await two.result(60))["stdout"]
        offline = await runtime.start("fetcher", {"code": FETCH % port, "tool": "python"})
        assert "hello" not in (await offline.result(60))["stdout"]
        said = [leaf.record for leaf in runtime.audit.records(run=one.id) if leaf.record.kind == "egress"]
        assert [(record.verdict, record.state, record.agent, record.name) for record in said] == [
            ("allow", "", "fetcher", f"localhost:{port}"), ("allow", "ended", "fetcher", f"localhost:{port}"),
        ]  # fmt: skip
        assert said[1].refs["received"] != "0"
        refused = [leaf.record for leaf in runtime.audit.records(run=two.id) if leaf.record.kind == "egress"]
        assert [(record.verdict, record.codes) for record in refused] == [("deny", ("egress-host",))]
    server.close()


async def test_bytes_are_counted_and_the_record_says_that_it_was_cut(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rules = SandboxRules(
        limits=SandboxLimits(network_bytes=MIB),
        egress={"*": EgressRules(allow=(EgressHost(host="localhost", ports=(port,), private=True),))},
    )
    async with Runtime.open(tmp_path / "d", agents=[other], sandboxes=rules) as runtime:
        run = await runtime.start("other", {"code": FETCH % port})
        assert (await run.result(60))["ending"] == "network"
        said = [leaf.record for leaf in runtime.audit.records(run=run.id) if leaf.record.kind == "egress"]
        assert [(record.state, record.codes) for record in said] == [("", ()), ("ended", ("egress-cut",))]
        assert int(said[1].refs["received"]) < 4 * MIB
    server.close()


def test_the_rules_are_read_from_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "perdure.toml"
    config.write_text(
        '[[sandbox.egress.fetcher.allow]]\nhost = "api.example.org"\ntls = true\nheader = "Authorization"\nsecret = "Bearer {secret://api}"\n'
    )
    world = world_from(config, {}, LocalSecrets.default(tmp_path))
    [rule] = world.sandboxes.egress["fetcher"].allow
    assert (rule.host, rule.tls, rule.ports) == ("api.example.org", True, (443, 80))
