"""Attacks on sandboxes with a kernel of their own: what would reach the host must fail, what a guest does to itself is its affair."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from perdure.core.sandbox import SandboxJob
from perdure.ports import Sandboxes
from perdure.testing.conformance.sandbox_attacks import ATTACKS, PRELUDE

SECRET = "host-secret"
FETCH = """
import socket
connection = socket.create_connection(("127.0.0.1", 8080))
connection.sendall(b"hello")
connection.shutdown(socket.SHUT_WR)
print(b"".join(iter(lambda: connection.recv(9999), b"")).decode())
"""


async def attack(sandboxes: Sandboxes, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> bytes:
    """What it says, beside a file, a port, a socket and a variable of the host that it must not reach."""
    marker = folder / "marker"
    marker.write_text("a file of the host")
    marker.chmod(0o666)
    monkeypatch.setenv("HOST_SECRET", SECRET)
    abstract_name = f"perdure-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + abstract_name)
        abstract.listen()
        for listener in (port, abstract):
            listener.setblocking(False)
        env = {
            "HOST_FILE": str(marker),
            "HOST_PORT": str(port.getsockname()[1]),
            "HOST_ABSTRACT": abstract_name,
        }
        found = await sandboxes.run(SandboxJob(code=PRELUDE + ATTACKS[name], env=env))
        for listener in (port, abstract):
            with pytest.raises(BlockingIOError):  # nobody has come
                listener.accept()
    assert marker.read_text() == "a file of the host"
    assert found.ending in ("ended", "lost", "signal"), found
    return found.stdout
