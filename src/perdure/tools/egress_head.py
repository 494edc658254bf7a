"""Heads of HTTP/1.1 requests, read strictly (RFC 9112): what two readers could understand differently is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 100
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
TARGET = re.compile(rb"[\x21-\x7e]+")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
DIGITS = re.compile(rb"[0-9]{1,15}")
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te", b"trailer", b"upgrade", b"expect"}
)  # fmt: skip
SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding"})


class HeadError(Exception):
    """A head that is not served; the text says why. It does not leave this room: it becomes a refusal."""


@dataclass(frozen=True, slots=True)
class Head:
    """One request.

    Attributes:
        method: in capitals.
        host: in lower case, without a dot at its end.
        port: where to.
        path: path and query as they were sent; empty for a tunnel.
        headers: names in lower case, without those that are for the proxy alone.
        length: of the body; ``None`` for a chunked one.
    """

    method: str
    host: str
    port: int
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None


def read_head(data: bytes) -> Head:
    """Read a head up to and with its empty line.

    Raises:
        HeadError: it is not what a proxy is sent, or could be understood in two ways.
    """
    if not data.endswith(b"\r\n\r\n") or b"\0" in data:
        raise HeadError("a head ends with an empty line")
    first, *lines = data[:-4].split(b"\r\n")
    if len(lines) > HEADERS_MAX:
        raise HeadError(f"it has more than {HEADERS_MAX} headers")
    words = first.split(b" ")
    if len(words) != 3 or not TOKEN.fullmatch(words[0]) or not TARGET.fullmatch(words[1]):
        raise HeadError("its first line is no request")
    if words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HeadError("it is not HTTP/1.1")
    headers = [_header(line) for line in lines]
    names = [name for name, _ in headers]
    if doubled := [name for name in SINGLE if names.count(name) > 1]:
        raise HeadError(f"it has `{doubled[0].decode()}` more than once")
    found = dict(headers)
    method = words[0].decode()
    host, port, path = _tunnel(words[1]) if method == "CONNECT" else _absolute(words[1])
    _check_host(found.get(b"host"), host, port, is_tunnel=method == "CONNECT")
    length = _length(found, method)
    dropped = HOP_BY_HOP | {word.strip().lower() for word in found.get(b"connection", b"").split(b",")}
    kept = tuple((name, value) for name, value in headers if name not in dropped or name in SINGLE)
    return Head(method, host, port, path, kept, length)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
        raise HeadError("a header is not `name: value` on one line")
    return name.lower(), value


def _tunnel(target: bytes) -> tuple[str, int, str]:
    host, colon, port = target.rpartition(b":")
    if not colon or not DIGITS.fullmatch(port):
        raise HeadError("a tunnel is asked for as `host:port`")
    return _host(host.decode()), int(port), ""


def _absolute(target: bytes) -> tuple[str, int, str]:
    text = target.decode()
    if not text.lower().startswith("http://"):
        raise HeadError(
            "a proxy is asked for the whole address, beginning with `http://`; https goes by CONNECT"
        )
    parts = urlsplit(text)
    if "@" in parts.netloc or "\\" in text or "#" in text:
        raise HeadError("the address has a user, a backslash or a fragment")
    try:
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise HeadError("the address has a port that is none") from error
    rest = text[7 + len(parts.netloc) :]
    if not rest.startswith("/"):
        rest = "/" + rest
    return _host(host), port, rest


def _host(text: str) -> str:
    host = text.lower().rstrip(".")
    if not host or len(host) > 253 or not re.fullmatch(r"[a-z0-9._-]+", host):
        raise HeadError("the host is no name; addresses of version 6 are not reached through a proxy")
    return host


def _check_host(given: bytes | None, host: str, port: int, *, is_tunnel: bool) -> None:
    if given is None:
        if is_tunnel:
            return
        raise HeadError("it has no `host`")
    text = given.decode("latin-1").lower()
    name, colon, number = text.rpartition(":")
    if not colon:
        name, number = text, str(443 if is_tunnel else 80)
    if name.rstrip(".") != host or number != str(port):
        raise HeadError("its `host` is another one than its address")


def _length(found: dict[bytes, bytes], method: str) -> int | None:
    coding, length = found.get(b"transfer-encoding"), found.get(b"content-length")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked" or method == "CONNECT":
            raise HeadError("its body has two ends, or a coding other than `chunked`")
        return None
    if length is None:
        return 0
    if not DIGITS.fullmatch(length):
        raise HeadError("its `content-length` is no number")
    return int(length)


def server_name(data: bytes) -> str | None:
    """The name that a TLS ClientHello asks for (RFC 8446, RFC 6066); ``None`` while there is not enough of it.

    Raises:
        HeadError: this is no ClientHello, or it names nobody.
    """
    if len(data) < 5:
        return None
    if data[0] != 0x16 or data[1] != 3:
        raise HeadError("a tunnel carries TLS and nothing else")
    size = int.from_bytes(data[3:5])
    if size > 16_384 or len(data) < 5 + size:
        if size > 16_384:
            raise HeadError("the first record of the tunnel is too long")
        return None
    hello = data[5 : 5 + size]
    try:
        return _named(hello)
    except IndexError as error:
        raise HeadError("the ClientHello in the tunnel is not whole") from error


def _named(hello: bytes) -> str:
    if hello[0] != 1 or int.from_bytes(hello[1:4]) + 4 > len(hello):
        raise HeadError("the tunnel begins with no whole ClientHello")
    at = 4 + 2 + 32
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2])  # cipher suites
    at += 1 + hello[at]  # compression
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    if end > len(hello):
        raise HeadError("the ClientHello in the tunnel is not whole")
    names: list[str] = []
    while at + 4 <= end:
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        body = hello[at + 4 : at + 4 + size]
        if kind == 0:
            if len(body) < 5 or body[2] != 0 or int.from_bytes(body[3:5]) + 5 != len(body):
                raise HeadError("the ClientHello in the tunnel names more than one server")
            names.append(body[5:].decode("ascii", errors="replace").lower().rstrip("."))
        at += 4 + size
    if len(names) != 1:
        raise HeadError("the ClientHello in the tunnel names no server (SNI), or two")
    return names[0]
