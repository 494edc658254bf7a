"""Micro-VMs keep the promises of the port, start from one state and are no copies of each other, and nothing in them reaches the host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.ports import Sandboxes
from perdure.sandboxes.microvm import MicrovmSandboxes
from perdure.testing.conformance.sandboxes import CASES, LIMITS
from tests.sandboxes.tools import tools

FETCH = """
import socket
connection = socket.create_connection(("127.0.0.1", 8080))
connection.sendall(b"hello")
connection.shutdown(socket.SHUT_WR)
print(b"".join(iter(lambda: connection.recv(9999), b"")).decode())
"""
# A guest may do to itself what it likes; these would reach the host.
REACHING_OUT = (
    "host-passwords", "host-home", "host-files", "host-variables", "inherited-descriptors", "metadata", "host-loopback", "internet",
    "name-service", "abstract-sockets", "interfaces", "symlink-out", "walk-up", "signals", "parent-variables", "first-process-variables",
    "shared-memory", "kernel-memory", "virtual-machine-sockets",
)  # fmt: skip


@pytest.fixture(scope="module")
def image() -> Path:
    return tools()


async def opened(image: Path, limits: SandboxLimits = LIMITS, spare: int = 0) -> MicrovmSandboxes:
    made = MicrovmSandboxes(limits, spare=spare, image=image / "image", tools=image)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no micro-VMs here: {error}")
    return made


@pytest.fixture
async def sandboxes(image: Path) -> AsyncIterator[MicrovmSandboxes]:
    made = await opened(image)
    yield made
    await made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(sandboxes: MicrovmSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)
