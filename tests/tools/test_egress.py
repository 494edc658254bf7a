"""The one way out of a sandbox: what it lets through, what it refuses, what it says of it. Real sockets, real TLS."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.egress import EgressHost, EgressNote, EgressRules
from perdure.core.errors import DefinitionError, SecretUnknownError, StoreUnavailableError
from perdure.tools.egress import EgressProxy
from perdure.tools.egress_head import HeadError, read_head, server_name

SECRET = "s3cr3t-value"


class OneSecret:
    """Knows one."""

    def resolve(self, reference: str) -> str:
        if reference != "secret://api":
            raise SecretUnknownError(f"nothing is called {reference}")
        return SECRET

    def known_values(self) -> tuple[str, ...]:
        return (SECRET,)


@dataclass
class Far:
    """A server that keeps what it was sent."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    said: bytes = b"fine"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            body = await reader.readexactly(length) if length else b""
            if b"chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            self.bodies.append(body)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(self.said) + self.said)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def far(trust: ssl.SSLContext | None = None) -> AsyncIterator[Far]:
    made = Far()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=trust)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@dataclass
class Proxy:
    """A proxy on a port, and what it has noted."""

    port: int
    notes: list[EgressNote]

    async def ask(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        async with asyncio.timeout(20):
            found = await reader.read()
        writer.close()
        return found

    async def code(self, data: bytes) -> str:
        said = await self.ask(data)
        assert said.startswith(b"HTTP/1.1 403 "), said
        return str(json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"])


@asynccontextmanager
async def proxied(
    *hosts: EgressHost, trust: ssl.SSLContext | None = None, resolver: object = here, note: object = None
) -> AsyncIterator[Proxy]:
    notes: list[EgressNote] = []

    async def keep(said: EgressNote) -> None:
        notes.append(said)

    rules = EgressRules(allow=hosts)
    proxy = EgressProxy(rules, note or keep, secrets=OneSecret(), resolver=resolver, trust=trust)  # type: ignore[arg-type]
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield Proxy(server.sockets[0].getsockname()[1], notes)
    finally:
        server.close()


def rule(port: int, **more: object) -> EgressHost:
    return EgressHost(**{"host": "api.example.org", "ports": (port,), "private": True, **more})  # type: ignore[arg-type]


def get(port: int, path: str = "/x", *, host: str = "api.example.org", headers: str = "") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}\r\n".encode()


@pytest.fixture
def certified(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server `api.example.org` shows, and what trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api.example.org")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.example.org")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate = tmp_path / "cert.pem"
    certificate.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
    return server, client


# -- what goes through
async def test_a_request_goes_out_and_is_noted_before_and_after() -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        said = await proxy.ask(
            get(
                there.port,
                "/x?y=1",
                headers="Accept: */*\r\nProxy-Connection: keep-alive\r\nX-Hop: 1\r\nConnection: x-hop\r\n",
            )
        )
        assert said.endswith(b"fine")
        [head] = there.heads
        assert head.startswith(b"GET /x?y=1 HTTP/1.1\r\nhost: api.example.org:")
        assert b"accept: */*" in head and b"connection: close" in head
        assert b"proxy" not in head and b"x-hop" not in head
        before, after = proxy.notes
        assert (before.verdict, before.address, before.method) == ("allow", "127.0.0.1", "GET")
        assert (after.verdict, after.code) == ("ended", "ended")
        assert after.received > 0


async def test_bodies_go_through_whole() -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        head = f"POST http://api.example.org:{there.port}/ HTTP/1.1\r\nHost: api.example.org:{there.port}\r\n"
        await proxy.ask(f"{head}Content-Length: 5\r\n\r\nhello".encode())
        await proxy.ask(
            f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".encode()
        )
        assert there.bodies == [b"hello", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"]
        assert [note.sent for note in proxy.notes if note.verdict == "ended"][0] == 5


async def test_a_credential_is_put_in_and_taken_out_of_what_comes_back() -> None:
    credential = rule(0, ports=(80,))
    async with far() as there:
        credential = rule(there.port, header="Authorization", secret="Bearer {secret://api}")
        async with proxied(credential) as proxy:
            there.said = f"you sent {SECRET}, yes {SECRET}".encode()
            said = await proxy.ask(get(there.port, headers="Authorization: Bearer mine\r\n"))
            assert f"authorization: bearer {SECRET}".encode() in there.heads[0].lower()
            assert b"mine" not in there.heads[0]
            assert SECRET.encode() not in said
            assert said.endswith(b"you sent ************, yes ************")


async def test_http_inside_goes_out_by_tls_with_the_server_verified(
    certified: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = certified
    async with far(server) as there:
        secure = rule(there.port, tls=True, header="X-Key", secret="secret://api")
        async with proxied(secure, trust=client) as proxy:
            assert (await proxy.ask(get(there.port))).endswith(b"fine")
            assert f"X-Key: {SECRET}".encode() in there.heads[0]
        async with proxied(secure) as proxy:  # nobody has vouched for it
            assert await proxy.code(get(there.port)) == "egress-tls"
            assert len(there.heads) == 1
            assert (
                await proxy.code(b"CONNECT api.example.org:%d HTTP/1.1\r\n\r\n" % there.port)
                == "egress-tunnel"
            )


async def test_a_tunnel_is_tls_to_whom_it_was_asked_for(
    certified: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = certified
    async with far(server) as there, proxied(rule(there.port)) as proxy:
        for name, is_fine in (("api.example.org", True), ("other.example.org", False)):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(
                b"CONNECT api.example.org:%d HTTP/1.1\r\nHost: api.example.org:%d\r\n\r\n"
                % (there.port, there.port)
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            try:
                await writer.start_tls(client, server_hostname=name)
            except (ssl.SSLError, ConnectionError):
                assert not is_fine
                continue
            assert is_fine
            writer.write(b"GET / HTTP/1.1\r\nhost: api.example.org\r\n\r\n")
            assert (await reader.read()).endswith(b"fine")
            writer.close()
        assert len(there.heads) == 1
        assert "egress-name" in [note.code for note in proxy.notes]


async def test_a_tunnel_carries_nothing_else() -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        ask = b"CONNECT api.example.org:%d HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n" % there.port
        said = await proxy.ask(ask)
        assert b"egress-malformed" in said
        assert there.heads == []


# -- what does not
@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("other.example.org", "egress-host"), ("api.example.org.evil.example", "egress-host"), ("xapi.example.org", "egress-host"),
        ("127.0.0.1", "egress-host"), ("169.254.169.254", "egress-host"), ("localhost", "egress-host"),
    ],
)  # fmt: skip
async def test_other_hosts(host: str, code: str) -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        assert await proxy.code(get(there.port, host=host)) == code
        assert there.heads == []
        assert [note.verdict for note in proxy.notes] == ["deny"]


async def test_other_ports_methods_and_paths() -> None:
    async with far() as there, proxied(rule(there.port, methods=("GET",), paths=("/v1/",))) as proxy:
        assert await proxy.code(get(there.port + 1)) == "egress-host"
        post = (
            get(there.port, "/v1/x")
            .replace(b"GET", b"POST")
            .replace(b"\r\n\r\n", b"\r\ncontent-length: 0\r\n\r\n")
        )
        assert await proxy.code(post) == "egress-method"
        for path in ("/v2/x", "/v1/../v2", "/v1/%2e%2e/v2", "/v1/..%2fv2", "//v1/x", "/V1/x"):
            assert await proxy.code(get(there.port, path)) == "egress-path", path
        assert (await proxy.ask(get(there.port, "/v1/x"))).endswith(b"fine")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "100.64.0.1",
        "0.0.0.0",
    ],
)
async def test_names_that_lead_inside(address: str) -> None:
    async def inside(host: str, port: int) -> list[str]:
        return [address]

    async with proxied(EgressHost(host="api.example.org"), resolver=inside) as proxy:
        assert (
            await proxy.code(b"GET http://api.example.org/ HTTP/1.1\r\nhost: api.example.org\r\n\r\n")
            == "egress-address"
        )
        assert await proxy.code(b"CONNECT api.example.org:443 HTTP/1.1\r\n\r\n") == "egress-address"


async def test_one_private_address_among_public_ones_is_enough() -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    async with proxied(EgressHost(host="api.example.org"), resolver=mixed) as proxy:
        assert (
            await proxy.code(b"GET http://api.example.org/ HTTP/1.1\r\nhost: api.example.org\r\n\r\n")
            == "egress-address"
        )


async def test_a_name_is_resolved_once() -> None:
    asked = 0

    async def changing(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        return ["127.0.0.1"] if asked == 1 else ["10.0.0.1"]

    async with far() as there, proxied(rule(there.port), resolver=changing) as proxy:
        assert (await proxy.ask(get(there.port))).endswith(b"fine")
        assert asked == 1


async def test_a_second_request_behind_the_first_is_never_one() -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        smuggled = get(there.port) + get(there.port, host="169.254.169.254") + get(there.port)
        assert (await proxy.ask(smuggled)).count(b"HTTP/1.1 200") == 1
        assert len(there.heads) == 1
        assert there.heads[0].count(b"GET") == 1


async def test_what_cannot_be_noted_is_not_done() -> None:
    async def full(said: EgressNote) -> None:
        raise StoreUnavailableError("the disk is full")

    async with far() as there, proxied(rule(there.port), note=full) as proxy:
        assert await proxy.code(get(there.port)) == "egress-unrecorded"
        assert there.heads == []


async def test_a_credential_that_is_missing() -> None:
    async with far() as there, proxied(rule(there.port, header="X-Key", secret="secret://other")) as proxy:
        assert await proxy.code(get(there.port)) == "egress-secret"
        assert there.heads == []


BAD = {
    "two lengths": "Content-Length: 1\r\nContent-Length: 2\r\n",
    "length and chunks": "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
    "another coding": "Transfer-Encoding: gzip, chunked\r\n",
    "folded": "X: 1\r\n 2\r\n",
    "space before the colon": "X : 1\r\n",
    "another host": "Host: evil.example\r\n",
    "no number": "Content-Length: +1\r\n",
    "control": "X: \x01\r\n",
    "bare return": "X: 1\rY: 2\r\n",
}


@pytest.mark.parametrize("name", BAD)
async def test_heads_that_could_be_read_in_two_ways(name: str) -> None:
    async with far() as there, proxied(rule(there.port)) as proxy:
        assert await proxy.code(get(there.port, headers=BAD[name])) == "egress-malformed"
        assert there.heads == []


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1", "GET https://api.example.org/ HTTP/1.1", "GET http://user@api.example.org/ HTTP/1.1", "GET http://api.example.org\\@evil/ HTTP/1.1",
        "GET http://[::1]/ HTTP/1.1", "GET  http://api.example.org/ HTTP/1.1", "GET http://api.example.org/ HTTP/2", "CONNECT api.example.org HTTP/1.1",
        "GET http://api.example.org:99999/ HTTP/1.1", "GET ftp://api.example.org/ HTTP/1.1", "GET http:///x HTTP/1.1",
    ],
)  # fmt: skip
def test_lines_that_are_no_request(line: str) -> None:
    with pytest.raises(HeadError):
        read_head(f"{line}\r\nHost: api.example.org\r\n\r\n".encode())


@given(st.binary(max_size=200))
def test_any_head_is_read_or_refused(data: bytes) -> None:
    for whole in (data, b"GET http://a.example/ HTTP/1.1\r\nhost: a.example\r\n" + data + b"\r\n\r\n"):
        try:
            head = read_head(whole)
        except HeadError:
            continue
        assert head.host == "a.example"


@given(st.binary(max_size=200))
def test_any_first_bytes_of_a_tunnel_are_read_or_refused(data: bytes) -> None:
    for whole in (
        data,
        b"\x16\x03\x01" + len(data).to_bytes(2) + data,
        b"\x16\x03\x01" + (len(data) + 1).to_bytes(2) + b"\x01" + data,
    ):
        try:
            name = server_name(whole)
        except HeadError:
            continue
        assert name is None or isinstance(name, str)


UP = [
    "..",
    ".",
    "%2e%2e",
    "%2E.",
    "..;",
    "..;x=1",
    "..%3b",
    "%252e%252e",
    ". .",
    "..%20",
    "..%00",
    "%c0%ae%c0%ae",
    "..%09",
    "..%5c",
]


@given(
    st.lists(st.sampled_from([*UP, "a", "b.c"]), min_size=1, max_size=4),
    st.sampled_from(["/", "//", "%2f", "\\", "%5C"]),
)
def test_no_path_leads_out_of_where_it_may_be(parts: list[str], join: str) -> None:
    path = "/v1/" + join.join(parts)
    is_harmless = set(parts) <= {"a", "b.c"} and (join == "/" or len(parts) == 1)
    assert EgressHost(host="a.example", paths=("/v1/",)).takes(path) == is_harmless
    assert EgressHost(host="a.example").takes(path)


@pytest.mark.parametrize(
    ("path", "is_taken"),
    [("/v1/x?next=/../%2f", True), ("/v1/caf%C3%A9", True), ("/v1/a;b=1/c..d/...x", True), ("/v1", False), ("/%76%31/x", False), ("/", False)],
)  # fmt: skip
def test_paths_that_are_what_they_say(path: str, is_taken: bool) -> None:
    assert EgressHost(host="a.example", paths=("/v1/",)).takes(path) == is_taken


@given(
    st.sampled_from(["a.example", "b.a.example", "c.b.a.example", "xa.example", "a.example.org"]),
    st.integers(1, 65_535),
)
def test_hosts_below_a_name(host: str, port: int) -> None:
    star = EgressHost(host="*.a.example", ports=(443,))
    assert star.covers(host, port) == (host in ("b.a.example", "c.b.a.example") and port == 443)


@pytest.mark.parametrize(
    "made",
    [
        {"host": ""},
        {"host": "*"},
        {"host": "*.*.example"},
        {"host": "A.example"},
        {"host": "a", "ports": ()},
        {"host": "a", "header": "X"},
        {"host": "a", "paths": ("x",)},
        {"host": ".."},
        {"host": "a..b"},
        {"host": "a.example."},
        {"host": f"{'a' * 64}.example"},
        {"host": "a", "methods": ("get",)},
        {"host": "a", "header": "X\r\nEvil: 1", "secret": "secret://a"},
        {"host": "a", "header": "Content-Length", "secret": "secret://a"},
        {"host": "a", "header": "Host", "secret": "secret://a"},
        {"host": "a", "header": "X", "secret": "plain"},
        {"host": "a", "header": "X", "secret": "a\r\nb{secret://a}"},
    ],
)
def test_rules_that_cannot_work(made: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        EgressHost(**made)  # type: ignore[arg-type]
