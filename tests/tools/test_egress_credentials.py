"""Code in a sandbox tries to read the credential that the proxy puts in: packed, in parts, encoded, split, or by a look-alike of the header."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.tools.egress_mask import Mask
from tests.tools.test_egress import SECRET, get, proxied, rule

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def whole(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n" % (more, len(body)) + body


async def echo(head: bytes, writer: asyncio.StreamWriter) -> None:
    """Sends the head back as real servers would: packed if that is asked for, a part of it if that is."""
    asked = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
    body = head
    if b"range" in asked:
        start = body.index(SECRET.encode()) + 3
        body = body[start : start + 40]
    if b"gzip" in asked.get(b"accept-encoding", b""):
        writer.write(whole(gzip.compress(body), b"content-encoding: gzip\r\n"))
        return
    writer.write(whole(body))


@pytest.mark.parametrize(
    "headers",
    ["", "Accept-Encoding: gzip\r\n", "Accept_Encoding: gzip\r\nAccept-Encoding: gzip, br\r\n", "Range: bytes=3-9\r\n", "If-Range: x\r\nRange: bytes=0-1\r\n"],
)  # fmt: skip
async def test_the_sandbox_cannot_choose_a_form_in_which_it_is_not_found(headers: str) -> None:
    async with answering(echo) as port, proxied(rule(port, header="X-Key", secret="secret://api")) as proxy:
        said = await proxy.ask(get(port, headers=headers))
        body = said.partition(b"\r\n\r\n")[2]
        assert not body.startswith(b"\x1f\x8b")
        assert b"x-key: ************" in body.lower()
        assert SECRET[3:].encode() not in body


async def test_what_looks_like_the_header_is_dropped() -> None:
    async with answering(echo) as port, proxied(rule(port, header="X-Key", secret="secret://api")) as proxy:
        said = await proxy.ask(get(port, headers="X_Key: mine\r\nx-key: mine\r\nX-Other: kept\r\n"))
        assert b"mine" not in said
        assert b"x-other: kept" in said


async def test_without_a_credential_an_answer_may_be_packed() -> None:
    async with answering(echo) as port, proxied(rule(port)) as proxy:
        said = await proxy.ask(get(port, headers="Accept-Encoding: gzip\r\n"))
        assert gzip.decompress(said.partition(b"\r\n\r\n")[2]).startswith(b"GET /x ")


@pytest.mark.parametrize(
    "form", [base64.b64encode(b"user:" + SECRET.encode()), SECRET.encode().hex().encode(), SECRET.encode().hex().upper().encode()]
)  # fmt: skip
async def test_other_forms_of_it_are_masked_too(form: bytes) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"<" + form + b">"))

    async with answering(answer) as port, proxied(rule(port, header="X-Key", secret="secret://api")) as proxy:
        body = (await proxy.ask(get(port))).partition(b"\r\n\r\n")[2]
        assert len(body) == len(form) + 2
        assert body.count(b"*") >= 10
        assert form not in body


async def test_an_answer_is_not_held_back_while_the_server_keeps_the_connection() -> None:
    gone = asyncio.Event()

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello"))
        await writer.drain()
        await gone.wait()

    async with answering(answer) as port, proxied(rule(port, header="X-Key", secret="secret://api")) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(get(port))
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"hello")).endswith(b"hello")
        gone.set()
        writer.close()


@given(st.binary(max_size=30), st.binary(max_size=30), st.lists(st.integers(1, 5), max_size=40))
def test_however_it_is_split_it_is_masked_and_nothing_else_changes(
    before: bytes, after: bytes, sizes: list[int]
) -> None:
    data = before + SECRET.encode() + after
    mask, out, at = Mask(SECRET), b"", 0
    for size in sizes:
        out += mask.feed(data[at : at + size])
        at += size
    out += mask.feed(data[at:]) + mask.end()
    assert out == data.replace(SECRET.encode(), b"*" * len(SECRET))
