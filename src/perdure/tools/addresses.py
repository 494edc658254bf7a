"""Which addresses agents may reach: public ones, and those that an operator allows. Checked after resolution, then pinned.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address: a name that
answers differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from perdure.core.errors import AddressRefusedError, ToolUnreachableError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
SCHEMES = {"http": 80, "https": 443}
HOST_CHARACTERS_MAX = 253
CARRIER_NAT = ipaddress.ip_network("100.64.0.0/10")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
ISATAP = (
    0x5EFE,
    0x0200_5EFE,
)  # the third quarter of an address of version 6 whose last one is an address of version 4
# What `ipaddress` takes for global although nobody on the internet has it: site-local, 6to4 relays, documentation.
NOWHERE = tuple(ipaddress.ip_network(text) for text in ("fec0::/10", "192.88.99.0/24", "3fff::/20"))


@dataclass(frozen=True, slots=True)
class Target:
    """A checked place to connect to."""

    scheme: str
    host: str
    port: int
    address: str


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system.

    Raises:
        ToolUnreachableError: it has none.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ToolUnreachableError(
            f"`{host}` cannot be resolved: {error.strerror or error}", host=host
        ) from error
    except UnicodeError as error:  # a label that is empty or has more than 63 characters
        raise ToolUnreachableError(f"`{host}` is no name that can be resolved", host=host) from error
    return list(dict.fromkeys(str(item[4][0]) for item in found))


async def check_url(url: str, *, allow: Collection[str] = (), resolver: Resolve = resolve) -> Target:
    """Where a URL may be fetched from.

    Args:
        url: absolute, ``http`` or ``https``.
        allow: what may be reached although it is private: ``host:port``, ``address:port``, or networks such as
            ``10.1.0.0/16``.
        resolver: resolves names.

    Raises:
        AddressRefusedError: it has a user, another scheme, or leads to an address that is not public.
        ToolUnreachableError: the name does not exist.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise AddressRefusedError(f"`{url:.200}` must begin with `http://` or `https://`", url=url)
    try:
        host, port = (parts.hostname or "").rstrip("."), parts.port or SCHEMES[parts.scheme]
    except ValueError as error:
        raise AddressRefusedError(f"`{url:.200}` has a port that is none: {error}", url=url) from error
    if (
        not host
        or len(host) > HOST_CHARACTERS_MAX
        or "%" in host
        or "\\" in parts.netloc
        or "@" in parts.netloc
    ):
        raise AddressRefusedError(
            f"`{url:.200}` has no host that can be checked; leave users and zones out", url=url
        )
    addresses = _literal(host) or await resolver(host, port)
    if not addresses:
        raise ToolUnreachableError(f"`{host}` has no address", host=host)
    for text in addresses:
        reason = _refusal(ipaddress.ip_address(text.partition("%")[0]))
        if reason and not _is_allowed(host, text, port, allow):
            message = f"`{host}` leads to {text}, which is {reason}; allow `{host}:{port}` in the toolset if that is meant"
            raise AddressRefusedError(message, host=host, address=text)
    return Target(parts.scheme, host, port, addresses[0])


def _literal(host: str) -> list[str]:
    """The address that a host is written as, in any form that a system would take: decimal, octal, hexadecimal, short."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        return [socket.inet_ntoa(socket.inet_aton(host))]
    except OSError:
        return []


def _refusal(address: Address) -> str:
    """Why an address is not public; empty if it is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and (int(address) >> 32) & 0xFFFFFFFF in ISATAP:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _refusal(inner)
    kinds = (
        ("this machine", address.is_loopback),
        ("link-local", address.is_link_local),
        ("multicast", address.is_multicast),
        ("unspecified", address.is_unspecified),
        ("shared by a carrier", address.version == 4 and address in CARRIER_NAT),
        ("private", address.is_private),
        ("reserved", address.is_reserved or any(address in network for network in NOWHERE)),
        ("not global", not address.is_global),
    )
    return next((name for name, is_it in kinds if is_it), "")


def _is_allowed(host: str, address: str, port: int, allow: Collection[str]) -> bool:
    for item in allow:
        if "/" in item:
            if ipaddress.ip_address(address) in ipaddress.ip_network(item, strict=False):
                return True
        elif item.lower() in (f"{host}:{port}".lower(), f"{address}:{port}"):
            return True
    return False
