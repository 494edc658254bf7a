"""A protocol test: our side of Firecracker's API, against a server that checks requests as its specification says.

No registry ships Firecracker, so it is not in these tests; where it is missing, the tier says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB
from perdure.sandboxes import firecracker
from perdure.sandboxes.firecracker import Api, FirecrackerSandboxes, connected

# From firecracker.yaml: what each request may and must have, and in which state of the machine it is allowed.
SPECIFICATION: dict[tuple[str, str], tuple[dict[str, type], set[str], str]] = {
    ("PUT", "/machine-config"): (
        {"vcpu_count": int, "mem_size_mib": int, "smt": bool, "track_dirty_pages": bool, "huge_pages": str, "cpu_template": str},
        {"vcpu_count", "mem_size_mib"}, "new",
    ),
    ("PUT", "/boot-source"): ({"kernel_image_path": str, "initrd_path": str, "boot_args": str}, {"kernel_image_path"}, "new"),
    ("PUT", "/vsock"): ({"guest_cid": int, "uds_path": str, "vsock_id": str}, {"guest_cid", "uds_path"}, "new"),
    ("PUT", "/actions"): ({"action_type": str}, {"action_type"}, "new"),
    ("PATCH", "/vm"): ({"state": str}, {"state"}, "running"),
    ("PUT", "/snapshot/create"): (
        {"mem_file_path": str, "snapshot_path": str, "snapshot_type": str}, {"mem_file_path", "snapshot_path"}, "paused",
    ),
    ("PUT", "/snapshot/load"): (
        {"snapshot_path": str, "mem_backend": dict, "mem_file_path": str, "resume_vm": bool, "track_dirty_pages": bool}, {"snapshot_path"}, "new",
    ),
}  # fmt: skip


class Server:
    """Answers as Firecracker does: 204, or 400 with what was wrong."""

    def __init__(self) -> None:
        self.state = "new"
        self.taken: list[tuple[str, str, dict[str, Any]]] = []
        self.faults: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            method, path, size, kind = head
            body = json.loads(await reader.readexactly(size))
            fault = "" if kind == "application/json" else f"content type {kind}"
            fault = fault or self.judged(method, path, body)
            self.taken.append((method, path, body))
            if fault:
                self.faults.append(fault)
                data = json.dumps({"fault_message": fault}).encode()
                writer.write(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    % len(data)
                    + data
                )
            else:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        writer.close()

    def judged(self, method: str, path: str, body: dict[str, Any]) -> str:
        if (method, path) not in SPECIFICATION:
            return f"no such request: {method} {path}"
        fields, needed, state = SPECIFICATION[method, path]
        if unknown := set(body) - set(fields):
            return f"unknown field {sorted(unknown)}"
        if missing := needed - set(body):
            return f"missing field {sorted(missing)}"
        if wrong := [name for name, value in body.items() if type(value) is not fields[name]]:
            return f"wrong type of {wrong}"
        if self.state != state:
            return f"the machine is {self.state}, and must be {state}"
        return self.moved(path, body)

    def moved(self, path: str, body: dict[str, Any]) -> str:
        if path == "/vsock" and body["guest_cid"] < 3:
            return "guest_cid is below 3"
        if path == "/machine-config" and not 1 <= body["vcpu_count"] <= 32:
            return "vcpu_count is not between 1 and 32"
        if path == "/actions":
            if body["action_type"] != "InstanceStart":
                return "not tested here"
            if {"/boot-source", "/machine-config", "/vsock"} - {item[1] for item in self.taken}:
                return "started before it was described"
            self.state = "running"
        if path == "/vm":
            if body["state"] not in ("Paused", "Resumed"):
                return "no such state"
            self.state = "paused" if body["state"] == "Paused" else "running"
        if path == "/snapshot/load":
            if ("mem_backend" in body) == ("mem_file_path" in body):
                return "exactly one of mem_backend and mem_file_path"
            backend = body.get("mem_backend", {})
            if set(backend) != {"backend_type", "backend_path"} or backend["backend_type"] not in (
                "File",
                "Uffd",
            ):
                return "mem_backend is wrong"
            self.state = "running" if body.get("resume_vm") else "paused"
        return ""


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, int, str] | None:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = lines[0].split(" ")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return method, path, int(fields.get("content-length", 0)), fields.get("content-type", "")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Server, Api]]:
    made = Server()
    listening = await asyncio.start_unix_server(made.serve, tmp_path / "api.sock")
    api = Api(tmp_path / "api.sock")
    yield made, api
    await api.close()
    listening.close()
    await listening.wait_closed()


async def test_a_machine_is_described_started_and_saved(server: tuple[Server, Api]) -> None:
    made, api = server
    await api.boot(Path("/image/kernel"), Path("/image/root.cpio"), 448 * MIB)
    assert made.state == "running"
    await api.save("memory", "state")
    assert made.state == "paused"
    assert made.faults == []
    told = {path: body for _, path, body in made.taken}
    assert told["/machine-config"] == {"vcpu_count": 1, "mem_size_mib": 448}
    assert "perdure.vsock" in told["/boot-source"]["boot_args"]
    assert not [path for path in told if path.startswith(("/network", "/drives"))]


async def test_a_clone_goes_on_from_a_snapshot(server: tuple[Server, Api]) -> None:
    made, api = server
    await api.load(Path("/kept/memory"), Path("/kept/state"))
    assert (made.state, made.faults) == ("running", [])
    assert made.taken[0][2]["mem_backend"] == {"backend_type": "File", "backend_path": "/kept/memory"}


async def test_a_refusal_says_what_was_refused(server: tuple[Server, Api]) -> None:
    made, api = server
    with pytest.raises(SandboxUnavailableError, match="must be running"):
        await api.save("memory", "state")
    made.state = "running"
    with pytest.raises(SandboxUnavailableError, match=r"PUT /snapshot/load \(400\).*must be new"):
        await api.load(Path("/kept/memory"), Path("/kept/state"))


async def test_nobody_who_answers_is_an_error(tmp_path: Path) -> None:
    api = Api(tmp_path / "nothing.sock")
    with pytest.raises(SandboxUnavailableError, match="does not answer"):
        await api.load(Path("/kept/memory"), Path("/kept/state"))
    await api.close()


async def test_the_guest_is_met_through_vsock(tmp_path: Path) -> None:
    """As vsock.md says: CONNECT and a port, OK and a number; cut while nobody listens inside."""
    tries = 0

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        assert await reader.readuntil(b"\n") == b"CONNECT 1024\n"
        if tries > 2:
            writer.write(b"OK 1073741824\nfrom the guest")
            await writer.drain()
        writer.close()

    listening = await asyncio.start_unix_server(device, tmp_path / "v.sock")
    reader, writer = await connected(tmp_path / "v.sock", 5)
    assert await reader.read() == b"from the guest"
    writer.close()
    assert tries == 3
    listening.close()
    await listening.wait_closed()
    with pytest.raises(SandboxUnavailableError, match="nobody in the micro-VM listened"):
        await connected(tmp_path / "nothing", 0.05)


async def test_without_the_program_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="firecracker is not here"):
        await FirecrackerSandboxes().open()


async def test_without_kvm_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "firecracker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(firecracker, "kvm_obstacle", lambda uid: ("there is no /dev/kvm", []))
    with pytest.raises(SandboxUnavailableError, match="needs KVM, and there is no /dev/kvm"):
        await FirecrackerSandboxes(program=program).open()
