"""How attempts end, and that each end is told as what it was; limits; clients as they are."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import sys
from pathlib import Path

import httpx2
import pytest

from perdure.tools import egress
from perdure.tools.egress_head import HeadError, server_name
from tests.tools.test_egress import Proxy, certified, far, get, proxied, rule  # noqa: F401 - a fixture
from tests.tools.test_egress_credentials import answering


async def ended(proxy: Proxy) -> list[tuple[str, str]]:
    """What was noted, once the second note is there."""
    async with asyncio.timeout(5):
        while not any(note.verdict == "ended" for note in proxy.notes):
            await asyncio.sleep(0.01)
    return [(note.verdict, note.code) for note in proxy.notes]


def posted(port: int, body: bytes) -> bytes:
    head = f"POST http://api.example.org:{port}/ HTTP/1.1\r\nHost: api.example.org:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "body",
    [b"0" * 200_000, b"5;x=y\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX", b"0\r\nX: 1\r\n\r\n", b"-1\r\n\r\n"],
)
async def test_a_body_that_is_none_is_refused_and_noted_twice(body: bytes) -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        assert await proxy.code(posted(there.port, body)) == "egress-malformed"
        assert await ended(proxy) == [("allow", ""), ("ended", "egress-malformed")]


@pytest.mark.parametrize("body", [b"", b"5", b"5\r\nhe", b"5\r\nhello"])
async def test_a_body_that_is_cut_short_did_not_end_well(body: bytes) -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(posted(there.port, body))
        writer.write_eof()
        assert await ended(proxy) == [("allow", ""), ("ended", "egress-broken")]
        assert there.bodies == []
        writer.close()


async def test_a_connection_that_is_cut_is_noted_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "TOTAL_S", 0.2)
    gone = asyncio.Event()

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        await gone.wait()

    async with answering(answer) as port, proxied(rule(port)) as proxy:
        assert await proxy.ask(get(port)) == b""
        assert await ended(proxy) == [("allow", ""), ("ended", "egress-cut")]
        gone.set()


async def test_nobody_there_is_two_notes() -> None:
    async with far() as there:
        port = there.port
    async with proxied(rule(port)) as proxy:
        assert await proxy.code(get(port)) == "egress-unreached"
        assert await ended(proxy) == [("allow", ""), ("ended", "egress-unreached")]


async def test_a_name_that_cannot_be_is_refused_and_noted() -> None:
    from perdure.tools.addresses import resolve

    async with proxied(rule(80, host="*.example.org"), resolver=resolve) as proxy:
        assert await proxy.code(get(80, host="a..example.org")) == "egress-name"
        assert [note.verdict for note in proxy.notes] == ["deny"]


async def test_code_cannot_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "ATTEMPTS_MAX", 5)
    async with far() as there, proxied(rule(there.port)) as proxy:
        for _ in range(5):
            assert await proxy.code(get(there.port, host="other.example")) == "egress-host"
        for ask in (get(there.port), get(there.port), b"nonsense\r\n\r\n", get(there.port)):
            assert await proxy.code(ask) in ("egress-attempts", "egress-malformed")
        assert there.heads == []
        assert [note.code for note in proxy.notes] == [*["egress-host"] * 5, "egress-attempts"]


def hello(*names: bytes) -> bytes:
    """A ClientHello with these server names, each in an extension of its own."""
    extensions = b"".join(
        b"\0\0"
        + (len(name) + 5).to_bytes(2)
        + (len(name) + 3).to_bytes(2)
        + b"\0"
        + len(name).to_bytes(2)
        + name
        for name in names
    )
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2) + extensions
    return b"\x16\3\1" + (len(body) + 4).to_bytes(2) + b"\1" + len(body).to_bytes(3) + body


def test_a_hello_names_one_server() -> None:
    assert server_name(hello(b"api.example.org")) == "api.example.org"
    for wrong in (hello(), hello(b"api.example.org", b"evil.example"), hello(b"a.example", b"a.example")):
        with pytest.raises(HeadError):
            server_name(wrong)


# -- clients as they are
async def ran(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    return out.decode()


URLLIB = """
import ssl, sys, urllib.error, urllib.request
proxy, url, ca = sys.argv[1:]
way = urllib.request.ProxyHandler({"http": proxy, "https": proxy})
trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca))
try:
    print(urllib.request.build_opener(way, trust).open(url, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("client", ["httpx2", "urllib", "curl"])
async def test_clients(
    client: str,
    scheme: str,
    certified: tuple[ssl.SSLContext, ssl.SSLContext],  # noqa: F811
    tmp_path: Path,
) -> None:
    if client == "curl" and not shutil.which("curl", path="/usr/bin:/bin"):
        pytest.skip("there is no curl on this machine")
    server, trust = certified
    ca = str(tmp_path / "cert.pem")

    async with far(server if scheme == "https" else None) as there, proxied(rule(there.port)) as proxy:
        url, way = f"{scheme}://api.example.org:{there.port}/x", f"http://127.0.0.1:{proxy.port}"
        if client == "httpx2":
            async with httpx2.AsyncClient(proxy=way, verify=trust, trust_env=False) as session:
                said = (await session.get(url)).text
        elif client == "urllib":
            said = await ran(sys.executable, "-c", URLLIB, way, url, ca)
        else:
            said = await ran("curl", "-s", "--max-time", "10", "--proxy", way, "--cacert", ca, url)
        assert said.strip() == "fine"
        assert (await ended(proxy))[-1] == ("ended", "ended")
        assert proxy.notes[0].method == ("CONNECT" if scheme == "https" else "GET")


async def test_a_client_can_read_why_not() -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        url, way = f"http://other.example.org:{there.port}/", f"http://127.0.0.1:{proxy.port}"
        async with httpx2.AsyncClient(proxy=way, trust_env=False) as session:
            said = await session.get(url)
        assert said.status_code == 403
        assert said.json()["error"]["code"] == "egress-host"
        assert "api.example.org" in said.json()["error"]["message"]
