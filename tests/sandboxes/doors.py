"""What doors must do, whatever the sandbox is. Cases take sandboxes that are open."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.errors import InputInvalidError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.ports import Sandboxes

FETCH = """
import socket
connection = socket.create_connection(("127.0.0.1", 8080))
connection.sendall(b"hello")
connection.shutdown(socket.SHUT_WR)
print(b"".join(iter(lambda: connection.recv(9999), b"")).decode())
"""


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()


async def a_door_leads_to_whom_it_was_given(sandboxes: Sandboxes) -> None:
    found = await sandboxes.run(SandboxJob(code=FETCH), doors={8080: _shout})
    assert found.stdout == b"HELLO\n", found
    without = await sandboxes.run(SandboxJob(code=FETCH))
    assert b"ConnectionRefusedError" in without.stderr
    other = await sandboxes.run(SandboxJob(code=FETCH), doors={8081: _shout})
    assert b"ConnectionRefusedError" in other.stderr


async def many_connections_through_two_doors(sandboxes: Sandboxes) -> None:
    async def name(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"other")
        writer.close()

    code = FETCH + "\n" + "\n".join([FETCH.replace("8080", "8090"), FETCH] * 30)
    found = await sandboxes.run(SandboxJob(code=code), doors={8080: _shout, 8090: name})
    assert found.stdout.split() == [b"HELLO", *[b"other", b"HELLO"] * 30], found


async def much_passes_both_ways(sandboxes: Sandboxes) -> None:
    code = """
import socket, threading
connection = socket.create_connection(("127.0.0.1", 8080))
sender = threading.Thread(target=lambda: (connection.sendall(b"x" * 1_000_000), connection.shutdown(socket.SHUT_WR)))
sender.start()
print(len(b"".join(iter(lambda: connection.recv(99999), b""))))
"""
    found = await sandboxes.run(SandboxJob(code=code), doors={8080: _shout})
    assert found.stdout == b"1000000\n", found


async def a_door_that_fails_hurts_nobody_else(sandboxes: Sandboxes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("broken")

    code = (
        f"try:\n    {FETCH.strip().replace(chr(10), chr(10) + '    ')}\nexcept OSError as e: print('closed')"
    )
    found = await sandboxes.run(SandboxJob(code=code), doors={8080: broken})
    assert found.stdout in (b"\n", b"closed\n"), found


async def bytes_are_counted(sandboxes: Sandboxes) -> None:
    code = """
import socket
connection = socket.create_connection(("127.0.0.1", 8080))
while True: connection.sendall(b"x" * 65536)
"""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    limits = SandboxLimits(network_bytes=2 * MIB)
    found = await sandboxes.run(SandboxJob(code=code), limits, doors={8080: take})
    assert found.ending == "network", found


async def no_door_where_none_can_be(sandboxes: Sandboxes) -> None:
    for port in (80, 0, 70_000):
        with pytest.raises(InputInvalidError):
            await sandboxes.run(SandboxJob(code=FETCH), doors={port: _shout})


CASES = (
    a_door_leads_to_whom_it_was_given,
    many_connections_through_two_doors,
    much_passes_both_ways,
    a_door_that_fails_hurts_nobody_else,
    bytes_are_counted,
    no_door_where_none_can_be,
)
