"""Sandbox hosts: real host processes, real certificates; peers that lie, stall, flood or die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from perdure.core.errors import DefinitionError, InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome
from perdure.runtime.walls import ConfiguredWalls, SandboxRules
from perdure.sandboxes import host_client, host_link, host_server
from perdure.sandboxes.host_client import HostAddress, SandboxHosts
from perdure.sandboxes.host_keys import context, enrol
from perdure.sandboxes.host_link import HEAD, PROTOCOL, VERSION, Kind, Link, LinkError, Size
from perdure.sandboxes.host_server import Greeting, Order, SandboxHost
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.conformance.sandboxes import CASES, LIMITS

SLOW = "import time; time.sleep(60)"


class At:
    """A clock that stands."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms


def now() -> At:
    import time

    return At(time.time_ns() // 1_000_000)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name, role in (("alpha", "host"), ("beta", "host"), ("runtime", "client"), ("stranger", "client")):
        enrol(folder, name, role, clock=now())
    return folder


def tls(keys: Path, name: str, role: str = "client") -> ssl.SSLContext:
    return context(role, keys / f"{name}.pem", keys / f"{name}.key", keys / "authority.pem")


@dataclass
class Running:
    process: asyncio.subprocess.Process
    port: int
    keys: Path

    def client(self, *others: HostAddress, name: str = "alpha", first: bool = True) -> SandboxHosts:
        own = HostAddress(name, "127.0.0.1", self.port)
        return SandboxHosts(
            [own, *others] if first else [*others, own], tls(self.keys, "runtime"), limits=LIMITS
        )


@contextlib.asynccontextmanager
async def host(keys: Path, folder: Path, name: str = "alpha") -> AsyncIterator[Running]:
    """A host in a process of its own, started as one is."""
    limits = msgspec.to_builtins(
        SandboxLimits(wall_ms=60_000, cpu_ms=20_000, processes=64, memory_bytes=256 * MIB)
    )
    lines = "\n".join(f"{key} = {value}" for key, value in limits.items())
    (folder / f"{name}.toml").write_text(
        f"[sandbox.limits]\n{lines}\n[sandbox.options.namespace]\nspare = 1\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perdure.cli", "worker", "--role", "sandbox", "--client", "runtime", "--listen", "127.0.0.1:0",
        "--certificate", keys / f"{name}.pem", "--key", keys / f"{name}.key", "--authority", keys / "authority.pem",
        "--config", folder / f"{name}.toml", "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        if not line:
            said = (await process.stderr.read()).decode()
            if "sandbox-unavailable" in said:
                pytest.skip(f"no namespaces here: {said}")
            raise AssertionError(said)
        yield Running(process, int(json.loads(line)["listening"].rpartition(":")[2]), keys)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.communicate(), 20)


@pytest.fixture
async def running(keys: Path, tmp_path: Path) -> AsyncIterator[Running]:
    async with host(keys, tmp_path) as found:
        yield found


@pytest.fixture
async def sandboxes(running: Running) -> AsyncIterator[SandboxHosts]:
    made = running.client()
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(sandboxes: SandboxHosts, case: Callable) -> None:
    """The case of the limits takes about ten seconds."""
    await case(sandboxes)


async def test_it_says_where_it_was(sandboxes: SandboxHosts) -> None:
    found = await sandboxes.run(SandboxJob(code="print(1)"))
    assert (found.tier, found.detail, found.stdout) == ("namespace", "host alpha", b"1\n")
    assert "seccomp" in sandboxes.parts["host alpha"]


# -- doors
def knock(port: int) -> str:
    return f"""
import socket
s = socket.create_connection(("127.0.0.1", {port}))
s.sendall(b"hello "); s.shutdown(socket.SHUT_WR)
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())
"""


async def test_doors_come_back(sandboxes: SandboxHosts) -> None:
    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read()
        writer.write(said + b"world")
        await writer.drain()
        writer.close()

    for _ in range(3):
        found = await sandboxes.run(SandboxJob(code=knock(8080)), doors={8080: door})
        assert (found.stdout, found.stderr) == (b"hello world\n", b"")


async def test_many_megabytes_both_ways_through_many_doors(sandboxes: SandboxHosts) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    code = """
import hashlib, os, socket, threading
def one(number, results):
    s = socket.create_connection(("127.0.0.1", 8080 + number % 2))
    data = os.urandom(2_000_000)
    def send():
        s.sendall(data); s.shutdown(socket.SHUT_WR)
    t = threading.Thread(target=send); t.start()
    got = b"".join(iter(lambda: s.recv(65536), b""))
    t.join(); results[number] = got == data
results = {}
ts = [threading.Thread(target=one, args=(n, results)) for n in range(6)]
[t.start() for t in ts]; [t.join() for t in ts]
print(sorted(results.items()) == [(n, True) for n in range(6)])
for n in range(150):
    s = socket.create_connection(("127.0.0.1", 8080)); s.sendall(b"x"); assert s.recv(1) == b"x"; s.close()
print("and many in a row")
"""
    found = await sandboxes.run(SandboxJob(code=code), doors={8080: echo, 8081: echo})
    assert found.stdout == b"True\nand many in a row\n", found


async def test_a_door_that_nobody_reads_holds_only_its_window(sandboxes: SandboxHosts) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    code = """
import socket
s = socket.create_connection(("127.0.0.1", 8080)); s.settimeout(1); sent = 0
try:
    while True: sent += s.send(b"x" * 65536)
except TimeoutError: print(sent < 32_000_000)
"""
    found = await sandboxes.run(SandboxJob(code=code), doors={8080: deaf})
    assert found.stdout == b"True\n", found


async def test_what_passes_doors_is_limited(sandboxes: SandboxHosts) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    code = "import socket\ns = socket.create_connection(('127.0.0.1', 8080))\nwhile s.recv(65536): pass"
    limits = msgspec.structs.replace(LIMITS, network_bytes=MIB)
    found = await sandboxes.run(SandboxJob(code=code), limits, doors={8080: flood})
    assert found.ending == "network"


# -- endings
async def test_killed_in_the_middle(running: Running) -> None:
    sandboxes = running.client()
    task = asyncio.create_task(sandboxes.run(SandboxJob(code=SLOW)))
    await asyncio.sleep(1)
    assert not task.done()
    running.process.kill()
    found = await asyncio.wait_for(task, 10)
    assert (found.ending, found.exit_code, found.tier, found.detail) == (
        "lost",
        None,
        "namespace",
        "host alpha",
    )
    with pytest.raises(SandboxUnavailableError, match="alpha cannot be reached"):
        await sandboxes.run(SandboxJob(code="print(1)"))
    await sandboxes.close()


def sleepers() -> int:
    """Processes of ours with a certain mark in a sandbox."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and b"31.4159" in Path(f"/proc/{name}/cmdline").read_bytes():
                count += 1
    return count


@pytest.mark.parametrize("how", ["cancelled", "killed"])
async def test_the_job_of_a_client_that_is_gone_is_stopped(running: Running, how: str) -> None:
    before = sleepers()
    if how == "cancelled":
        sandboxes = running.client()
        task = asyncio.create_task(sandboxes.run(SandboxJob(argv=("/usr/bin/sleep", "31.4159"))))
    else:
        code = f"""
import asyncio
from pathlib import Path
from perdure.core.sandbox import SandboxJob
from perdure.sandboxes.host_client import HostAddress, SandboxHosts
from perdure.sandboxes.host_keys import context
keys = Path({str(running.keys)!r})
tls = context("client", keys / "runtime.pem", keys / "runtime.key", keys / "authority.pem")
sandboxes = SandboxHosts([HostAddress("alpha", "127.0.0.1", {running.port})], tls)
asyncio.run(sandboxes.run(SandboxJob(argv=("/usr/bin/sleep", "31.4159"))))
"""
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code.replace("31.4159", "31.415" + "9")
        )
    async with asyncio.timeout(20):
        while sleepers() <= before + (how == "killed"):  # the client's own command line has the mark too
            await asyncio.sleep(0.05)
    if how == "cancelled":
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sandboxes.close()
    else:
        client.kill()
        await client.wait()
    async with asyncio.timeout(10):
        while sleepers() > before:
            await asyncio.sleep(0.05)


async def test_the_next_host_takes_it(running: Running) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = HostAddress("beta", "127.0.0.1", nobody.getsockname()[1])
        sandboxes = running.client(gone, first=False)
        await sandboxes.open()
        assert sandboxes.parts["host beta"].startswith("missing: cannot be reached")
        for _ in range(4):
            assert (await sandboxes.run(SandboxJob(code="print(1)"))).detail == "host alpha"
        await sandboxes.close()


async def test_a_kept_connection_that_died_is_no_failure(keys: Path, tmp_path: Path) -> None:
    async with host(keys, tmp_path) as first:
        sandboxes = first.client()
        await sandboxes.open()
        first.process.kill()
        await first.process.wait()
        async with host(keys, tmp_path, "beta") as second:
            sandboxes._hosts.append(host_client._Host(HostAddress("beta", "127.0.0.1", second.port)))
            assert (await sandboxes.run(SandboxJob(code="print(1)"))).detail == "host beta"
            await sandboxes.close()


async def test_a_host_that_has_no_room_sends_elsewhere(keys: Path, walls: NamespaceSandboxes) -> None:
    async with inner(keys, walls, at_once=1) as port:
        sandboxes = SandboxHosts(
            [HostAddress("alpha", "127.0.0.1", port)], tls(keys, "runtime"), limits=LIMITS
        )
        task = asyncio.create_task(sandboxes.run(SandboxJob(code=SLOW)))
        await asyncio.sleep(0.5)
        with pytest.raises(SandboxUnavailableError, match="busy"):
            await sandboxes.run(SandboxJob(code="print(1)"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.3)
        assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
        await sandboxes.close()


async def test_a_weaker_wall_is_not_taken(running: Running) -> None:
    sandboxes = SandboxHosts(
        [HostAddress("alpha", "127.0.0.1", running.port)], tls(running.keys, "runtime"), tier="microvm"
    )
    with pytest.raises(SandboxUnavailableError, match="its wall is `namespace` and `microvm` is asked for"):
        await sandboxes.open()
    await sandboxes.close()


# -- who may
@pytest.fixture
async def walls() -> AsyncIterator[NamespaceSandboxes]:
    made = NamespaceSandboxes(LIMITS, spare=1)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def inner(keys: Path, walls: NamespaceSandboxes, **options: int) -> AsyncIterator[int]:
    """A host in this process, for what is seen from inside."""
    made = SandboxHost(walls, LIMITS, tls(keys, "alpha", "host"), clients=("runtime",), **options)
    port = await made.listen("127.0.0.1", 0)
    try:
        yield port
    finally:
        await made.close()


async def refused(keys: Path, port: int, who: ssl.SSLContext, name: str = "alpha") -> str:
    sandboxes = SandboxHosts([HostAddress(name, "127.0.0.1", port)], who)
    with pytest.raises(SandboxUnavailableError) as caught:
        await sandboxes.run(SandboxJob(code="print(1)"))
    await sandboxes.close()
    return str(caught.value)


async def test_who_is_not_let_in(running: Running, tmp_path: Path) -> None:
    keys, port = running.keys, running.port
    await refused(keys, port, tls(keys, "stranger"))  # of the same authority, and not named
    await refused(keys, port, tls(keys, "alpha"))  # a host does not act as a client
    nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nothing.load_verify_locations(keys / "authority.pem")
    nothing.set_alpn_protocols([PROTOCOL])
    await refused(keys, port, nothing)
    other = tmp_path / "other"
    enrol(other, "runtime", "client", clock=now())
    mixed = context("client", other / "runtime.pem", other / "runtime.key", keys / "authority.pem")
    await refused(keys, port, mixed)
    assert "certificate" in await refused(keys, port, tls(other, "runtime"))
    old = tls(keys, "runtime")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    await refused(keys, port, old)
    sandboxes = running.client()  # and who may, still may
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
    await sandboxes.close()


async def test_expired_certificates(
    keys: Path, tmp_path: Path, walls: NamespaceSandboxes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    import shutil

    folder = tmp_path / "late"
    shutil.copytree(keys, folder)
    past = At(now().now_ms() - 10 * 86_400_000)
    enrol(folder, "late-client", "client", clock=past, days=5)
    enrol(folder, "late-host", "host", clock=past, days=5)
    made = SandboxHost(walls, LIMITS, tls(folder, "alpha", "host"), clients=("late-client",))
    port = await made.listen("127.0.0.1", 0)
    assert "does it know this client" in await refused(folder, port, tls(folder, "late-client"))
    assert "certificate has expired" in caplog.text
    await made.close()
    made = SandboxHost(walls, LIMITS, tls(folder, "late-host", "host"), clients=("runtime",))
    port = await made.listen("127.0.0.1", 0)
    assert "expired" in await refused(folder, port, tls(folder, "runtime"), "late-host")
    await made.close()


async def test_a_host_with_another_name_or_authority_is_not_believed(
    running: Running, tmp_path: Path, walls: NamespaceSandboxes
) -> None:
    keys = running.keys
    assert "Hostname mismatch" in await refused(keys, running.port, tls(keys, "runtime"), "beta")
    other = tmp_path / "other"
    enrol(other, "alpha", "host", clock=now())
    made = SandboxHost(walls, LIMITS, tls(other, "alpha", "host"), clients=("runtime",))
    port = await made.listen("127.0.0.1", 0)
    assert "certificate" in await refused(keys, port, tls(keys, "runtime"))
    await made.close()

    def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    await refused(keys, server.sockets[0].getsockname()[1], tls(keys, "runtime"))  # plain text
    server.close()


async def test_plain_text_is_not_read(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    hello = msgspec.json.encode(Greeting(VERSION))
    writer.write(HEAD.pack(len(hello), Kind.HELLO, 0) + hello)
    with contextlib.suppress(ConnectionError):
        assert b"tier" not in await asyncio.wait_for(reader.read(), 15)
    writer.close()


def test_files_are_for_their_owner_only(keys: Path, tmp_path: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    with pytest.raises(InputInvalidError, match="is there"):
        enrol(keys, "alpha", "host", clock=now())
    for name in ("Alpha", "../x", "", "a.b", "authority", "-a"):
        with pytest.raises(InputInvalidError, match="no name"):
            enrol(tmp_path, name, "host", clock=now())
    with pytest.raises(InputInvalidError, match="days"):
        enrol(tmp_path, "x", "host", clock=now(), days=10_000)
    enrol(tmp_path / "own", "x", "client", clock=now())
    (tmp_path / "own" / "x.key").chmod(0o644)
    with pytest.raises(SandboxUnavailableError, match="read by others"):
        tls(tmp_path / "own", "x")
    with pytest.raises(SandboxUnavailableError, match="enrol"):
        context("client", tmp_path / "no.pem", tmp_path / "own" / "authority.key", tmp_path / "no")


def test_addresses() -> None:
    assert HostAddress.parse("alpha@[::1]:7411") == HostAddress("alpha", "::1", 7411)
    for text in ("alpha", "alpha@x", "@x:1", "a@x:0", "a@x:99999", "a@:1"):
        with pytest.raises(InputInvalidError, match="NAME@ADDRESS:PORT"):
            HostAddress.parse(text)


# -- bad clients
async def raw(keys: Path, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls(keys, "runtime"), server_hostname="alpha")


def frame(kind: int, data: bytes = b"", channel: int = 0, size: int | None = None) -> bytes:
    return struct.pack("!IBI", len(data) if size is None else size, kind, channel) + data


HELLO = frame(Kind.HELLO, b'{"version":1}')


def job(size: int) -> bytes:
    return frame(Kind.JOB, json.dumps({"size": size}).encode())


BAD = {
    "a huge frame": frame(Kind.HELLO, size=0xFFFFFFFF),
    "a frame a little too long": frame(Kind.HELLO, b"x" * 65_537),
    "an unknown kind": frame(99),
    "no greeting": job(10),
    "a greeting that is no JSON": frame(Kind.HELLO, b"\xff\xfe"),
    "a greeting with more": frame(Kind.HELLO, b'{"version":1,"more":1}'),
    "another answer": HELLO + frame(Kind.OUTCOME, b'{"size":1}'),
    "a job that is no number": HELLO + frame(Kind.JOB, b'{"size":"1"}'),
    "a body without a job": HELLO + frame(Kind.BODY, b"x"),
    "a body that is too long": HELLO + job(10) + frame(Kind.BODY, b"x" * 11),
    "an empty body": HELLO + job(10) + frame(Kind.BODY),
    "a start without a body": HELLO + job(10) + frame(Kind.GO),
    "a door of the client's": HELLO + frame(Kind.OPEN, b"\0\0\0\1", channel=1),
    "bytes on no channel": HELLO + frame(Kind.DATA, b"x", channel=7),
    "a ping with bytes": HELLO + frame(Kind.PING, b"x"),
    "http": b"POST /run HTTP/1.1\r\nHost: alpha\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_frames_end_their_connection_and_nothing_else(
    keys: Path, walls: NamespaceSandboxes, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with inner(keys, walls) as port:
        reader, writer = await raw(keys, port)
        writer.write(BAD[name])
        with contextlib.suppress(ConnectionError):
            said = await asyncio.wait_for(reader.read(), 5)
            assert len(said) < 2_000
        writer.transport.abort()
        sandboxes = SandboxHosts(
            [HostAddress("alpha", "127.0.0.1", port)], tls(keys, "runtime"), limits=LIMITS
        )
        assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
        await sandboxes.close()
    assert "failed" not in caplog.text


async def take(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    while True:
        size, kind, _ = HEAD.unpack(await asyncio.wait_for(reader.readexactly(HEAD.size), 10))
        data = await reader.readexactly(size)
        if kind != Kind.PING:
            return kind, data


async def test_refusals_keep_the_connection(keys: Path, walls: NamespaceSandboxes) -> None:
    async with inner(keys, walls) as port:
        reader, writer = await raw(keys, port)
        writer.write(HELLO)
        assert (await take(reader))[0] == Kind.HELLO

        async def given(body: bytes) -> tuple[int, bytes]:
            writer.write(job(len(body)))
            assert (await take(reader))[0] == Kind.ACCEPT
            for place in range(0, len(body), 60_000):
                writer.write(frame(Kind.BODY, body[place : place + 60_000]))
            writer.write(frame(Kind.GO))
            return await take(reader)

        writer.write(job(1 << 40))
        kind, data = await take(reader)
        assert kind == Kind.REFUSED and b"is the limit of this host" in data
        assert (await given(b"\xff\xff"))[0] == Kind.REFUSED
        good = SandboxJob(code="print(1)")
        order = msgspec.to_builtins(Order(good, LIMITS))
        lifted = {**order, "limits": {**order["limits"], "memory_bytes": -1}}
        kind, data = await given(msgspec.msgpack.encode(lifted))
        assert kind == Kind.REFUSED and b"above zero" in data
        outside = {**order, "job": {**order["job"], "files": [{"name": "../../x", "data": b"x"}]}}
        kind, data = await given(msgspec.msgpack.encode(outside))
        assert kind == Kind.REFUSED and b"input-invalid" in data
        kind, data = await given(msgspec.msgpack.encode({**order, "doors": list(range(2_000, 2_100))}))
        assert kind == Kind.REFUSED
        kind, _ = await given(msgspec.msgpack.encode(order))
        assert kind == Kind.OUTCOME
        writer.transport.abort()


async def test_without_the_word_nothing_is_executed(keys: Path, tmp_path: Path) -> None:
    class Counting(NamespaceSandboxes):
        jobs = 0

        async def run(self, *arguments: object, **options: object) -> SandboxOutcome:
            Counting.jobs += 1
            raise SandboxUnavailableError("none")

    made = SandboxHost(Counting(LIMITS), LIMITS, tls(keys, "alpha", "host"), clients=("runtime",))
    port = await made.listen("127.0.0.1", 0)
    body = msgspec.msgpack.encode(Order(SandboxJob(code="print(1)"), LIMITS))
    reader, writer = await raw(keys, port)
    writer.write(HELLO + job(len(body)) + frame(Kind.BODY, body))
    await take(reader)
    await take(reader)
    writer.transport.abort()
    await asyncio.sleep(0.3)
    assert Counting.jobs == 0
    sandboxes = SandboxHosts([HostAddress("alpha", "127.0.0.1", port)], tls(keys, "runtime"))
    with pytest.raises(SandboxUnavailableError, match="sandbox-unavailable"):
        await sandboxes.run(SandboxJob(code="print(1)"))
    assert Counting.jobs == 1
    await sandboxes.close()
    await made.close()


async def test_slow_strangers_keep_nobody_out(
    keys: Path, walls: NamespaceSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_server, "STRANGERS_MAX", 4)
    async with inner(keys, walls) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in slow:
            writer.write(b"\x16")
        sandboxes = SandboxHosts(
            [HostAddress("alpha", "127.0.0.1", port)], tls(keys, "runtime"), limits=LIMITS
        )
        assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
        await sandboxes.close()
        for _, writer in slow:
            writer.transport.abort()


async def test_slow_loris(keys: Path, walls: NamespaceSandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In TLS, before the greeting, and within a frame: each ends by itself."""
    monkeypatch.setattr(host_server, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(host_link, "SILENCE_S", 0.7)
    async with inner(keys, walls) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 3)
        writer.transport.abort()
        for begun in (b"", HELLO[:3], HELLO + b"\0"):
            reader, writer = await raw(keys, port)
            writer.write(begun)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 3)
            writer.transport.abort()


async def test_one_client_has_so_many_connections(
    keys: Path, walls: NamespaceSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_server, "OF_ONE_CLIENT_MAX", 2)
    async with inner(keys, walls) as port:
        held = []
        for _ in range(2):
            reader, writer = await raw(keys, port)
            writer.write(HELLO)
            assert (await take(reader))[0] == Kind.HELLO
            held.append(writer)
        reader, writer = await raw(keys, port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 3) == b""
        for each in (*held, writer):
            each.transport.abort()


# -- bad hosts
@contextlib.asynccontextmanager
async def lying(keys: Path, act: Callable) -> AsyncIterator[SandboxHosts]:
    """A host with a good certificate that behaves badly after the job began."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await take(reader)
            writer.write(frame(Kind.HELLO, b'{"version":1,"tier":"namespace","parts":{}}'))
            await take(reader)
            writer.write(frame(Kind.ACCEPT))
            while (await take(reader))[0] != Kind.GO:
                pass
            await act(reader, writer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls(keys, "alpha", "host"))
    made = SandboxHosts(
        [HostAddress("alpha", "127.0.0.1", server.sockets[0].getsockname()[1])],
        tls(keys, "runtime"),
        limits=LIMITS,
    )
    try:
        yield made
    finally:
        await made.close()
        server.close()


def outcome(**changed: object) -> bytes:
    made = SandboxOutcome(
        ending="ended",
        exit_code=0,
        stdout=b"",
        stderr=b"",
        cpu_ms=0.0,
        memory_peak_bytes=0,
        wall_ms=1.0,
        tier="namespace",
    )
    data = msgspec.msgpack.encode({**msgspec.structs.asdict(made), **changed})
    return frame(Kind.OUTCOME, json.dumps({"size": len(data)}).encode()) + frame(Kind.BODY, data)


LIES = {
    "a huge frame": frame(Kind.BODY, size=0xFFFFFFFF),
    "a huge outcome": frame(Kind.OUTCOME, b'{"size":1099511627776}'),
    "a negative outcome": frame(Kind.OUTCOME, b'{"size":-1}'),
    "another wall": outcome(tier="microvm"),
    "more output than may be": outcome(stdout=b"x" * 60_000, stderr=b"").replace(b"ended", b"endet"),
    "an ending that is none": outcome(ending="fine"),
    "a file that leads out": outcome(files=[{"name": "../../etc/cron.d/x", "data": b"x"}]),
    "too many files": outcome(files=[{"name": f"f{n}", "data": b""} for n in range(2_001)]),
    "a door that is not there": frame(Kind.OPEN, b"\0\0\0\1", channel=1),
    "bytes on no channel beyond the limit": frame(Kind.DATA, b"x" * 65_000, channel=3) * 2_000,
    "accepted again": frame(Kind.ACCEPT),
    "nothing more": b"",
}


@pytest.mark.parametrize("name", LIES)
async def test_a_host_that_lies_is_lost(keys: Path, name: str) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LIES[name])
        if not LIES[name]:
            writer.transport.abort()

    async with lying(keys, act) as sandboxes:
        found = await asyncio.wait_for(sandboxes.run(SandboxJob(code="print(1)", collects=True)), 20)
        assert (found.ending, found.files, found.stdout) == ("lost", (), b""), found


async def test_a_host_that_opens_too_many_channels(keys: Path) -> None:
    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(1, 200):
            writer.write(frame(Kind.OPEN, b"\0\0\x1f\x90", channel=number))

    async with lying(keys, act) as sandboxes:
        found = await sandboxes.run(SandboxJob(code="print(1)"), doors={8080: door})
        assert (found.ending, b"may not be" in found.stderr) == ("lost", True)


async def test_a_host_that_sends_beyond_the_window(keys: Path) -> None:
    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(Kind.OPEN, b"\0\0\x1f\x90", channel=1))
        for _ in range(50):
            writer.write(frame(Kind.DATA, b"x" * 65_000, channel=1))

    async with lying(keys, act) as sandboxes:
        found = await sandboxes.run(SandboxJob(code="print(1)"), doors={8080: door})
        assert (found.ending, b"than may" in found.stderr) == ("lost", True)


async def test_a_host_that_falls_silent(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_link, "SILENCE_S", 1.0)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with lying(keys, act) as sandboxes:
        found = await sandboxes.run(SandboxJob(code="print(1)"))
        assert (found.ending, b"silent" in found.stderr) == ("lost", True)


async def test_a_host_that_is_stopped_does_not_hold_us(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        host_link, "SILENCE_S", 6.0
    )  # longer than the beat: a host that works is never silent
    sandboxes = running.client()
    task = asyncio.create_task(sandboxes.run(SandboxJob(code=SLOW)))
    await asyncio.sleep(1)
    running.process.send_signal(signal.SIGSTOP)
    try:
        assert (await asyncio.wait_for(task, 15)).ending == "lost"
    finally:
        running.process.send_signal(signal.SIGCONT)
    await sandboxes.close()


async def test_a_host_that_answers_for_ever_is_cut_at_the_wall_time(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_client, "GRACE_S", 0.3)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(frame(Kind.PING))
            await asyncio.sleep(0.1)

    async with lying(keys, act) as sandboxes:
        found = await sandboxes.run(SandboxJob(code="print(1)"), msgspec.structs.replace(LIMITS, wall_ms=500))
        assert found.ending == "wall-time"


async def test_links_refuse_credit_that_was_not_used() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    link = Link(reader, writer)
    link.carried_max = 1 << 30
    await link.open_channel(1)
    _, other = await asyncio.open_connection(sock=theirs)
    other.write(frame(Kind.CREDIT, b"\0\0\0\1", channel=1))
    await asyncio.wait_for(link.gone.wait(), 5)
    with pytest.raises(LinkError, match="credit"):
        await link.tell(Kind.JOB, Size(1))
    await link.close()
    other.transport.abort()


async def test_files_go_and_come(sandboxes: SandboxHosts) -> None:
    data = os.urandom(3_000_000)
    found = await sandboxes.run(
        SandboxJob(argv=("/bin/cp", "a", "b"), files=(SandboxFile(name="a", data=data),), collects=True)
    )
    assert [(file.name, file.data == data) for file in found.files] == [("a", True), ("b", True)]


async def test_as_it_is_configured(running: Running) -> None:
    files = {name: str(running.keys / f"{name}.pem") for name in ("runtime", "authority")}
    options = {
        "hosts": [f"alpha@127.0.0.1:{running.port}"], "certificate": files["runtime"], "authority": files["authority"],
        "key": str(running.keys / "runtime.key"),
    }  # fmt: skip
    walls = ConfiguredWalls(SandboxRules(limits=LIMITS, options={"namespace": options}))
    sandboxes = await walls.at_least("namespace")
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).detail == "host alpha"
    await walls.close()
    walls = ConfiguredWalls(SandboxRules(options={"namespace": {"hosts": options["hosts"]}}))
    with pytest.raises(DefinitionError, match="certificate"):
        await walls.at_least()


def test_enrolment_at_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perdure.cli", "sandbox", "enrol", "alpha", "--role", "host", "--json"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for name in ("certificate", "key", "authority"):
        assert stat.S_IMODE((tmp_path / json.loads(made.stdout)[name]).stat().st_mode) == 0o600
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "is there" in again.stderr


async def test_closing_stops_what_runs(running: Running) -> None:
    before = sleepers()
    sandboxes = running.client()
    task = asyncio.create_task(sandboxes.run(SandboxJob(argv=("/usr/bin/sleep", "31.4159"))))
    async with asyncio.timeout(10):
        while sleepers() <= before:
            await asyncio.sleep(0.05)
    await sandboxes.close()
    assert (await task).ending == "lost"
    async with asyncio.timeout(10):
        while sleepers() > before:
            await asyncio.sleep(0.05)


async def test_a_host_that_is_killed_leaves_no_job_behind(running: Running) -> None:
    before = sleepers()
    sandboxes = running.client()
    task = asyncio.create_task(sandboxes.run(SandboxJob(argv=("/usr/bin/sleep", "31.4159"))))
    async with asyncio.timeout(10):
        while sleepers() <= before:
            await asyncio.sleep(0.05)
    running.process.kill()
    assert (await asyncio.wait_for(task, 10)).ending == "lost"
    async with asyncio.timeout(10):
        while sleepers() > before:
            await asyncio.sleep(0.05)
    await sandboxes.close()
