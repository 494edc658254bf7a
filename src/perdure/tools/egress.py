"""The one way out of a sandbox: a proxy that judges each request, resolves names itself, puts credentials in, and notes everything.

Plain HTTP and HTTPS by CONNECT. Each connection serves one request and is closed: nothing that comes behind it is ever read as another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from perdure.core.egress import EgressHost, EgressNote, EgressRules
from perdure.core.errors import AddressRefusedError, PerdureError
from perdure.ports import Secrets
from perdure.tools.addresses import Resolve, check_url, resolve
from perdure.tools.egress_head import HEAD_BYTES_MAX, Head, HeadError, read_head, server_name
from perdure.tools.egress_mask import UNMASKABLE, Mask

HEAD_S = 10.0  # until a head, or the first bytes of a tunnel, is whole
CONNECT_S = 10.0
IDLE_S = 60.0  # nothing either way
TOTAL_S = 600.0  # of one connection
ATTEMPTS_MAX = (
    1_000  # of one use of a sandbox: each is a record or two, which code could otherwise write without end
)
READ_BYTES = 65_536
REFERENCE = re.compile(r"\{(secret://[^{}]+)\}")
Note = Callable[[EgressNote], Awaitable[None]]
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class _RefusedError(Exception):
    """It does not go out; becomes an answer of 403."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.is_noted = False


class EgressProxy:
    """The proxy of one use of a sandbox: its :meth:`serve` is a door.

    Args:
        rules: what may be reached.
        note: takes a note of each attempt, before anything goes out; one that cannot be taken is a refusal.
        secrets: resolves credentials at the moment of use.
        resolver: resolves names.
        trust: verifies servers, where the proxy itself speaks TLS.
    """

    def __init__(
        self,
        rules: EgressRules,
        note: Note,
        *,
        secrets: Secrets | None = None,
        resolver: Resolve = resolve,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._note = note
        self._secrets = secrets
        self._resolver = resolver
        self._trust = trust
        self._attempts = 0

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """One connection out of a sandbox, to its end."""
        noted = EgressNote(host="", port=0, method="", verdict="deny")
        self._attempts += 1
        attempt = self._attempts
        try:
            async with asyncio.timeout(TOTAL_S):
                try:
                    async with asyncio.timeout(HEAD_S):
                        head = read_head(await reader.readuntil(b"\r\n\r\n"))
                except asyncio.LimitOverrunError as error:
                    raise _RefusedError(
                        "egress-malformed", f"the head is longer than {HEAD_BYTES_MAX} bytes"
                    ) from error
                noted = replace_note(noted, host=head.host, port=head.port, method=head.method)
                if attempt > ATTEMPTS_MAX:
                    raise _RefusedError(
                        "egress-attempts",
                        f"one use makes at most {ATTEMPTS_MAX} requests; ask for less, or in another use",
                    )
                await self._judged(head, reader, writer, noted)
        except HeadError as error:
            await self._refuse(writer, noted, _RefusedError("egress-malformed", str(error)), attempt)
        except _RefusedError as refusal:
            await self._refuse(writer, noted, refusal, attempt)
        except (OSError, TimeoutError, EOFError):
            pass  # whoever asked has gone, or never came to the point
        finally:
            writer.close()

    async def _judged(self, head: Head, reader: Reader, writer: Writer, noted: EgressNote) -> None:
        rule = self._rule(head)
        address = await self._address(head, rule)
        noted = replace_note(noted, address=address, verdict="allow")
        try:
            await self._note(noted)
        except PerdureError as error:
            raise _RefusedError(
                "egress-unrecorded", "the attempt could not be recorded, so it was not made"
            ) from error
        counted = [0, 0]
        code = "egress-cut"  # unless it comes to an end of its own
        try:
            if head.method == "CONNECT":
                await self._tunnel(head, address, reader, writer, counted)
            else:
                await self._request(head, rule, address, reader, writer, counted)
            code = "ended"
        except _RefusedError as refusal:
            code, refusal.is_noted = refusal.code, True
            raise
        except HeadError as error:
            malformed = _RefusedError("egress-malformed", str(error))
            code, malformed.is_noted = malformed.code, True
            raise malformed from error
        except (OSError, TimeoutError, EOFError):
            code = "egress-broken"
            raise
        finally:
            with contextlib.suppress(PerdureError):
                await self._note(
                    replace_note(noted, verdict="ended", code=code, sent=counted[0], received=counted[1])
                )

    def _rule(self, head: Head) -> EgressHost:
        rule = self._rules.find(head.host, head.port)
        if rule is None:
            known = ", ".join(sorted({each.host for each in self._rules.allow})[:20]) or "none"
            raise _RefusedError(
                "egress-host",
                f"`{head.host}:{head.port}` is not among the hosts that may be reached: {known}",
            )
        if head.method == "CONNECT":
            if rule.tls or rule.methods or rule.paths or rule.header:
                raise _RefusedError(
                    "egress-tunnel",
                    f"requests for `{head.host}` must be seen: send them as `http://{head.host}/...`; the proxy speaks TLS for you",
                )
            return rule
        if rule.methods and head.method not in rule.methods:
            raise _RefusedError(
                "egress-method",
                f"`{head.host}` may be asked with {', '.join(rule.methods)}, found {head.method}",
            )
        if not rule.takes(head.path):
            raise _RefusedError(
                "egress-path", f"of `{head.host}` these paths may be asked for: {', '.join(rule.paths)}"
            )
        return rule

    async def _address(self, head: Head, rule: EgressHost) -> str:
        allowed = [f"{head.host}:{self._port(head, rule)}"] if rule.private else []
        try:
            url = f"http://{head.host}:{self._port(head, rule)}/"
            return (await check_url(url, allow=allowed, resolver=self._resolver)).address
        except AddressRefusedError as error:
            raise _RefusedError(
                "egress-address", f"`{head.host}` leads to an address that is not public"
            ) from error
        except PerdureError as error:
            raise _RefusedError("egress-name", error.message) from error

    @staticmethod
    def _port(head: Head, rule: EgressHost) -> int:
        """A request for port 80 that goes out by TLS goes to 443."""
        return 443 if rule.tls and head.port == 80 else head.port

    # -- tunnels
    async def _tunnel(
        self, head: Head, address: str, reader: Reader, writer: Writer, counted: list[int]
    ) -> None:
        far = await _open(address, head.port)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            hello = bytearray()
            async with asyncio.timeout(HEAD_S):
                while (name := server_name(bytes(hello))) is None:
                    data = await reader.read(READ_BYTES)
                    if not data:
                        raise ConnectionResetError
                    hello += data
            if name != head.host:
                raise _RefusedError(
                    "egress-name", f"the tunnel is for `{head.host}` and asks for another server"
                )
            far[1].write(bytes(hello))
            counted[0] += len(hello)
            await _both((reader, writer), far, counted)
        finally:
            far[1].close()

    # -- requests
    async def _request(
        self, head: Head, rule: EgressHost, address: str, reader: Reader, writer: Writer, counted: list[int]
    ) -> None:
        secret, value = self._credential(rule)
        trust = None
        if rule.tls:
            trust = self._trust or ssl.create_default_context()
        far = await _open(address, self._port(head, rule), trust, head.host)
        try:
            path = head.path
            lines = [f"{head.method} {path} HTTP/1.1".encode(), *_headers(head, rule.header)]
            if value:
                lines += [rule.header.encode() + b": " + value.encode(), b"accept-encoding: identity"]
            far[1].write(b"\r\n".join([*lines, b"connection: close", b"", b""]))
            async for part in _body(head, reader):
                far[1].write(part)
                counted[0] += len(part)
                await far[1].drain()
            await far[1].drain()
            mask = Mask(secret)
            while True:
                async with asyncio.timeout(IDLE_S):
                    data = await far[0].read(READ_BYTES)
                counted[1] += len(data)
                writer.write(mask.feed(data) if data else mask.end())
                await writer.drain()
                if not data:
                    return
        finally:
            far[1].close()

    def _credential(self, rule: EgressHost) -> tuple[str, str]:
        """The secret, and what the header says."""
        if not rule.header:
            return "", ""
        if self._secrets is None:
            raise _RefusedError("egress-secret", f"the credential for `{rule.host}` cannot be had")
        found = REFERENCE.search(rule.secret)
        reference = found[1] if found else rule.secret
        try:
            secret = self._secrets.resolve(reference)
        except PerdureError as error:
            raise _RefusedError("egress-secret", f"the credential for `{rule.host}` cannot be had") from error
        if any(c in secret for c in "\r\n\0"):
            raise _RefusedError("egress-secret", f"the credential for `{rule.host}` is no value of a header")
        return secret, rule.secret.replace(found[0], secret) if found else secret

    async def _refuse(self, writer: Writer, noted: EgressNote, refusal: _RefusedError, attempt: int) -> None:
        if not refusal.is_noted and attempt <= ATTEMPTS_MAX + 1:  # the last one says that there were more
            with contextlib.suppress(PerdureError):
                await self._note(replace_note(noted, code=refusal.code))
        body = msgspec.json.encode({"error": {"code": refusal.code, "message": str(refusal)}})
        head = f"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            writer.write(head.encode() + body)
            await writer.drain()


def replace_note(note: EgressNote, **changes: object) -> EgressNote:
    """The note with these fields changed."""
    return msgspec.structs.replace(note, **changes)


def _headers(head: Head, own: str) -> list[bytes]:
    """The lines that go on; those that a server could take for the proxy's own, such as ``x_key`` for ``x-key``, do not."""
    drop = {own.lower().replace("_", "-").encode(), *UNMASKABLE} if own else set()
    return [name + b": " + text for name, text in head.headers if name.replace(b"_", b"-") not in drop]


async def _open(
    address: str, port: int, trust: ssl.SSLContext | None = None, name: str = ""
) -> tuple[Reader, Writer]:
    try:
        async with asyncio.timeout(CONNECT_S):
            return await asyncio.open_connection(
                address, port, ssl=trust, server_hostname=name if trust else None
            )
    except ssl.SSLError as error:
        raise _RefusedError(
            "egress-tls", f"`{name}` could not prove who it is: {error.reason or error}"
        ) from error
    except (OSError, TimeoutError) as error:
        raise _RefusedError("egress-unreached", f"nothing answers at port {port} of the host") from error


async def _body(head: Head, reader: Reader) -> AsyncIterator[bytes]:
    """The body of a request, and not a byte more; of a chunked one the chunks as they should be written."""
    if head.length is not None:
        left = head.length
        while left:
            async with asyncio.timeout(IDLE_S):
                data = await reader.read(min(left, READ_BYTES))
            if not data:
                raise ConnectionResetError
            left -= len(data)
            yield data
        return
    while True:
        async with asyncio.timeout(IDLE_S):
            line = await _line(reader)
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}\r\n", line):
            raise HeadError("a chunk has no plain size")
        size = int(line, 16)
        yield f"{size:x}\r\n".encode()
        if not size:
            if await reader.readexactly(2) != b"\r\n":
                raise HeadError("a body has trailers")
            yield b"\r\n"
            return
        while size:
            async with asyncio.timeout(IDLE_S):
                data = await reader.read(min(size, READ_BYTES))
            if not data:
                raise ConnectionResetError
            size -= len(data)
            yield data
        if await reader.readexactly(2) != b"\r\n":
            raise HeadError("a chunk does not end where it says")
        yield b"\r\n"


async def _line(reader: Reader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as error:
        raise HeadError("a chunk has no plain size") from error


async def _both(near: tuple[Reader, Writer], far: tuple[Reader, Writer], counted: list[int]) -> None:
    """Pass bytes both ways until one side ends; each direction may be idle while the other is not."""

    async def passed(source: Reader, target: Writer, which: int) -> None:
        while data := await source.read(READ_BYTES):
            counted[which] += len(data)
            target.write(data)
            await target.drain()

    ways = [
        asyncio.ensure_future(passed(near[0], far[1], 0)),
        asyncio.ensure_future(passed(far[0], near[1], 1)),
    ]
    try:
        before = -1
        while not any(way.done() for way in ways):
            await asyncio.wait(ways, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            if sum(counted) == before:
                return
            before = sum(counted)
        await asyncio.wait(ways, timeout=1)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
