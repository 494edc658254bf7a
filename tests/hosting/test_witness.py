"""A witness as a real process on loopback: it cosigns, it refuses, and it remembers through kills."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from perdure.core.errors import DefinitionError, UnavailableError
from perdure.governance.checkpoints import cosigned_at_s, parse_checkpoint
from perdure.governance.merkle import consistency_proof
from perdure.governance.witness import Refused, Submission
from perdure.hosting.programs import free_port
from perdure.hosting.witness import WitnessState
from perdure.hosting.witness_client import ask_witness
from tests.governance.logs import LOG, ORIGIN, THIEF, WITNESS, WITNESS_KEY, AuditedLog, verify


class Running:
    """The process, and a log that asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        (folder / "witness.pem").write_bytes(
            WITNESS_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (folder / "log.key").write_text(LOG.text)
        self.client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=10
        )
        self.log = AuditedLog(folder / "perdure.db")

    def command(self, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "perdure.cli", "audit", "witness", "--state", str(self.folder / "state.json"), "--key",
            str(self.folder / "witness.pem"), "--name", WITNESS.name, "--log", str(self.folder / "log.key"), "--listen",
            f"127.0.0.1:{self.port}", *more,
        ]  # fmt: skip

    async def start(self, *more: str) -> None:
        self.process = subprocess.Popen(self.command(*more), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.strip() == WITNESS.text  # it says by which key it goes
        for _ in range(200):
            try:
                await self.client.get("/none/checkpoint")
                return
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
        raise AssertionError("the witness does not answer")

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    async def ask(self, log: AuditedLog | None = None, note: str = "") -> str | Refused:
        log = log or self.log
        note = note or log.tx.latest_checkpoint()
        size = parse_checkpoint(note).size
        return await ask_witness(
            self.client, note, lambda old: consistency_proof(log.tx.audit_hash, old, size), WITNESS
        )

    async def latest(self) -> httpx2.Response:
        return await self.client.get(f"/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    await made.start("--new")
    yield made
    if made.process is not None:
        made.kill()
    made.log.close()
    await made.client.aclose()


async def test_it_cosigns_what_extends_and_refuses_the_rest(running: Running, tmp_path: Path) -> None:
    log = running.log
    assert (await running.latest()).status_code == 404
    log.write(5)
    log.checkpoint()
    older = log.copy(tmp_path / "older.db")
    for _ in range(3):
        log.write(7)
        cosigned = await running.ask(note=log.checkpoint())
        assert isinstance(cosigned, str), cosigned
        assert cosigned_at_s(cosigned, WITNESS) > 1_600_000_000
        log.tx.put_checkpoint(cosigned)
    assert (await running.latest()).text == cosigned
    found = verify(tmp_path / "check", log.export(), cosigned, witness=WITNESS.text)
    assert (found["status"], found["findings"]) == (0, [])

    rolled_back = await running.ask(older)
    assert isinstance(rolled_back, Refused)
    assert (rolled_back.status, rolled_back.code, rolled_back.size) == (409, "rollback", 26)
    older.write(40, word="lies")
    forked = await running.ask(older, older.checkpoint())
    assert isinstance(forked, Refused)
    assert (forked.status, forked.code) == (422, "fork")
    stolen = await running.ask(note=log.checkpoint(THIEF))
    assert isinstance(stolen, Refused)
    assert (stolen.status, stolen.code) == (403, "signature")
    # What the witness holds tells the auditor what the log's own files do not.
    found = verify(
        tmp_path / "check", older.export(), older.checkpoint(), seen=((await running.latest()).text,)
    )
    assert "fork" in found["codes"]
    older.close()


async def test_the_protocol(running: Running) -> None:
    log = running.log
    log.write(4)
    first = log.checkpoint()
    post = running.client.post
    answer = await post("/add-checkpoint", content=Submission(0, (), first).text.encode())
    assert answer.status_code == 200
    assert answer.text.startswith(f"— {WITNESS.name} ")
    assert answer.text.endswith("\n")
    stale = await post("/add-checkpoint", content=Submission(0, (), first).text.encode())
    assert (stale.status_code, stale.text, stale.headers["content-type"]) == (409, "4\n", "text/x.tlog.size")
    log.write(1)
    second = log.checkpoint()
    bad = await post("/add-checkpoint", content=Submission(4, (b"x" * 32,), second).text.encode())
    assert bad.status_code == 422
    for body, status in ((b"", 400), (b"\xff", 400), (b"x" * 200_000, 400), (b"old 4\n\nhello\n", 400)):
        assert (await post("/add-checkpoint", content=body)).status_code == status
    unknown = Submission(0, (), first.replace(ORIGIN, "other.example/log")).text.encode()
    assert (await post("/add-checkpoint", content=unknown)).status_code == 404
    assert (await running.client.get("/add-checkpoint")).status_code == 405
    # Many at once: every answer is for a tree that extends all that were answered before.
    proof = consistency_proof(log.tx.audit_hash, 4, 5)
    body = Submission(4, proof, second).text.encode()
    statuses = sorted(
        item.status_code
        for item in await asyncio.gather(*(post("/add-checkpoint", content=body) for _ in range(8)))
    )
    assert statuses == [200, *[409] * 7]


async def test_it_remembers_through_a_kill_and_does_not_start_without_its_state(running: Running) -> None:
    running.log.write(3)
    assert isinstance(await running.ask(note=running.log.checkpoint()), str)
    held = subprocess.run(running.command(), capture_output=True, text=True, timeout=60)
    assert held.returncode == 2
    assert "another process" in held.stderr
    running.kill()
    again = subprocess.run(running.command("--new"), capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    await running.start()
    other = AuditedLog(running.folder / "other.db")
    other.write(9, word="lies")
    refused = await running.ask(other, other.checkpoint())
    assert isinstance(refused, Refused)
    assert refused.code == "fork"
    other.close()
    running.kill()
    with pytest.raises(UnavailableError):
        await running.ask()
    (running.folder / "state.json").write_text('{"a": "nonsense"}')
    damaged = subprocess.run(running.command(), capture_output=True, text=True, timeout=60)
    assert damaged.returncode == 2
    (running.folder / "state.json").unlink()
    lost = subprocess.run(running.command(), capture_output=True, text=True, timeout=60)
    assert lost.returncode == 2
    assert "must not go on" in lost.stderr


def test_the_state_is_one_files(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with pytest.raises(DefinitionError):
        WitnessState(path)
    state = WitnessState(path, is_new=True)
    with pytest.raises(DefinitionError):
        WitnessState(path)
    state.close()
    again = WitnessState(path)
    assert again.notes == {}
    again.close()
