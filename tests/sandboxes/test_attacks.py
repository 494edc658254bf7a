"""Bad programs in a real sandbox: none of them reaches anything."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxJob
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.conformance.sandbox_attacks import ATTACKS, PRELUDE

ABSTRACT = f"perdure-test-{os.getpid()}"


@pytest.fixture
async def sandboxes() -> AsyncIterator[NamespaceSandboxes]:
    made = NamespaceSandboxes(spare=1)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    await made.close()


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_gets_nowhere(
    sandboxes: NamespaceSandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    marker = tmp_path / "marker"
    marker.write_text("a file of the host")
    monkeypatch.setenv("HOST_SECRET", "host-secret")
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + ABSTRACT)
        abstract.listen()
        env = {"HOST_FILE": str(marker), "HOST_PORT": str(port.getsockname()[1]), "HOST_ABSTRACT": ABSTRACT}
        found = await sandboxes.run(SandboxJob(code=PRELUDE + ATTACKS[name], env=env))
    assert b"ESCAPED" not in found.stdout, found
    assert (found.ending, found.exit_code, found.stderr) == ("ended", 0, b""), found
    assert marker.read_text() == "a file of the host"
