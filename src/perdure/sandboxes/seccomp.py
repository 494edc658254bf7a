"""The system call filter of a sandbox, compiled to classic BPF (seccomp(2), linux/filter.h). Default deny.

Refused calls fail with ``EPERM`` rather than kill: programs probe for features, and a clear error is better than a corpse. A call for another
architecture kills, for it can only be an attack on the filter.
"""

from __future__ import annotations

import platform
import struct

from perdure.core.errors import UnavailableError
from perdure.sandboxes.syscalls import AUDIT_ARCH, JUDGED, NEW, NUMBERS, OLD_MAX, REFUSED

KILL, ERRNO, ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
LOAD, RETURN, EQUAL, AT_LEAST, ABOVE, ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x25, 0x45
NUMBER, ARCHITECTURE, FIRST, SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; low halves of arguments
X32 = 0x4000_0000
# CLONE_NEW*: no namespaces of their own, not even ones that look harmless.
NAMESPACES = (
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x80
)
DOMAINS = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; AF_VSOCK would leave the network namespace
INJECT = (0x5412, 0x541C)  # ioctls TIOCSTI and TIOCLINUX put text into somebody's terminal
PERSONALITIES = (0, 0xFFFF_FFFF)  # the usual one, and the question which it is


def program(machine: str = "") -> bytes:
    """The filter as an array of ``struct sock_filter``.

    Args:
        machine: the architecture as ``uname -m`` says it; by default this one.

    Raises:
        UnavailableError: there is no table for that architecture.
    """
    machine = machine or platform.machine()
    numbers = NUMBERS.get(machine)
    if numbers is None:
        raise UnavailableError(
            f"no system call filter for `{machine}`; there is one for {', '.join(NUMBERS)}"
        )
    lines = [_load(ARCHITECTURE), _jump(EQUAL, AUDIT_ARCH[machine], 1, 0), _return(KILL), _load(NUMBER)]
    if machine == "x86_64":
        lines += [_jump(AT_LEAST, X32, 0, 1), _return(KILL)]
    for name, judged in (
        (
            "clone3",
            [_return(ERRNO | ENOSYS)],
        ),  # its flags are in memory, where no filter sees them: libc then uses clone
        ("clone", [_load(FIRST), _jump(ANY_BIT, NAMESPACES, 0, 1), _return(ERRNO | EPERM), _return(ALLOW)]),
        ("socket", _one_of(FIRST, DOMAINS, ERRNO | EAFNOSUPPORT)),
        ("socketpair", _one_of(FIRST, DOMAINS, ERRNO | EAFNOSUPPORT)),
        ("ioctl", _none_of(SECOND, INJECT)),
        ("personality", _one_of(FIRST, PERSONALITIES, ERRNO | EPERM)),
    ):
        lines += [_jump(EQUAL, numbers[name], 0, len(judged)), *judged]
    for low, high in _ranges(_allowed(machine)):
        lines += [_jump(AT_LEAST, low, 0, 2), _jump(ABOVE, high, 1, 0), _return(ALLOW)]
    return b"".join([*lines, _return(ERRNO | EPERM)])


def _allowed(machine: str) -> list[int]:
    numbers = NUMBERS[machine]
    refused = {numbers[name] for name in (*REFUSED, *JUDGED) if name in numbers}
    newer = {numbers[name] for name in NEW if name in numbers}
    return sorted(({*range(OLD_MAX[machine] + 1)} | newer) - refused)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _one_of(offset: int, values: tuple[int, ...], otherwise: int) -> list[bytes]:
    """Allowed for these values of an argument only."""
    jumps = [_jump(EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
    return [_load(offset), *jumps, _return(otherwise), _return(ALLOW)]


def _none_of(offset: int, values: tuple[int, ...]) -> list[bytes]:
    """Allowed but for these values of an argument."""
    jumps = [_jump(EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
    return [_load(offset), *jumps, _return(ALLOW), _return(ERRNO | EPERM)]


def _load(offset: int) -> bytes:
    return _instruction(LOAD, 0, 0, offset)


def _return(value: int) -> bytes:
    return _instruction(RETURN, 0, 0, value)


def _jump(kind: int, value: int, yes: int, no: int) -> bytes:
    return _instruction(kind, yes, no, value)


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)
