"""Witnesses as real processes beside a real runtime: they cosign, they are away, they refuse; actions never wait for them."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure import Runtime
from perdure.core.errors import DefinitionError, InputInvalidError, UnavailableError
from perdure.governance.checkpoints import checkpoint, cosign, parse_checkpoint, sign_checkpoint
from perdure.governance.notes import COSIGNS, Signature, VerifierKey, parse_note
from perdure.hosting.programs import free_port
from perdure.runtime import witnessing
from perdure.runtime.auditing import Audit
from perdure.runtime.config import world_from
from perdure.runtime.rulebook import Rules
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.witnessing import WitnessRule
from tests.runtime.test_auditing import check, clerk, rehash
from tests.runtime.witness_process import WitnessProcess


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WitnessProcess]]:
    """Makes witnesses of the log in ``data``."""
    made: list[WitnessProcess] = []
    monkeypatch.setattr(witnessing, "RETRY_S", 0.05)
    monkeypatch.setattr(witnessing, "RETRY_S_MAX", 0.2)

    def make(name: str = "w1") -> WitnessProcess:
        found = WitnessProcess(tmp_path / name, f"witness.example/{name}")
        made.append(found)
        return found

    yield make
    for found in made:
        found.kill()


async def worked(path: Path, rules: Rules | None = None, names: Any = ("a",)) -> None:
    """One run, to its end."""
    async with Runtime.open(path, agents=[clerk], rules=rules) as runtime:
        await (await runtime.start("clerk", {"names": list(names)})).result()


async def asked(path: Path, work: Callable[[Audit], Any]) -> Any:
    async with Runtime.open(path, agents=[clerk], beside=True) as runtime:
        found = work(runtime.audit)
        return await found if asyncio.iscoroutine(found) else found


async def log_key(path: Path) -> str:
    found: str = await asked(path, lambda audit: audit.verifier())
    return found


async def until(runtime: Runtime, state: str) -> Any:
    async with asyncio.timeout(10):
        while (found := runtime.audit.status().witnesses[0]).state != state:
            await asyncio.sleep(0.02)
    return found


async def test_heads_are_cosigned_and_verified(processes: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    key = await log_key(data)
    one, two = (processes(name).start(key) for name in ("w1", "w2"))
    rules = Rules(witnesses=(one.rule, two.rule))
    for names in ("ab", "cd"):
        await worked(data, rules, names)
    found = await asked(data, lambda audit: audit.verify(witnesses=[one.key, two.key]))
    assert (found.problems, found.cosigned) == ([], found.size)
    assert found.witnesses == {one.name: found.size, two.name: found.size}
    status = await asked(data, lambda audit: audit.status())
    assert [(item.state, item.size) for item in status.witnesses] == [("cosigned", found.size)] * 2
    # The same for whoever has only the export.
    other = processes("w3").start(key)
    lines, note = await asked(data, lambda audit: (list(audit.export()), audit._runtime.store.read(lambda tx: tx.latest_checkpoint())))  # fmt: skip
    for name, content in (("log.jsonl", b"".join(lines)), ("note.txt", note.encode()), ("key", key.encode()), ("one", one.key.encode())):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    assert check(tmp_path, "log.jsonl", "note.txt", "key", "--witness", "one").returncode == 0
    (tmp_path / "three").write_text(other.key)
    files = ("log.jsonl", "note.txt", "key", "--witness", "one", "--witness", "three")
    assert check(tmp_path, *files).returncode == 1
    assert check(tmp_path, *files, "--quorum", "1").returncode == 0
    assert check(tmp_path, *files, "--quorum", "3").returncode == 2
    # One that never cosigned is missing; with a quorum of two of three it may be.
    found = await asked(data, lambda audit: audit.verify(witnesses=[one.key, two.key, other.key]))
    assert found.problems == ["no head of the log is cosigned by 3 of 3 witnesses"]
    found = await asked(data, lambda audit: audit.verify(witnesses=[one.key, two.key, other.key], quorum=2))
    assert (found.problems, found.cosigned) == ([], found.size)
    assert found.witnesses[other.name] == 0
    for wrong in (
        {"quorum": 2, "witnesses": [one.key]},
        {"quorum": 0, "witnesses": [one.key]},
        {"witnesses": [key]},
    ):
        with pytest.raises(InputInvalidError):
            await asked(data, lambda audit, wrong=wrong: audit.verify(**wrong))


async def test_a_cosignature_that_somebody_wrote_into_the_database_is_none(
    processes: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    witness = processes().start(await log_key(data))
    await worked(data)
    forger = Ed25519PrivateKey.generate()
    true = VerifierKey.parse(witness.key)
    async with Runtime.open(data, agents=[clerk], beside=True) as runtime:
        note = parse_note(await runtime.audit.checkpoint())
        line = cosign(note.body, witness.name, forger, 1_790_000_000)
        forged = note.signed_with(Signature(true.name, true.key_id, line.data)).text
        await runtime.store.transact(lambda tx: tx.put_checkpoint(forged))
        found = runtime.audit.verify(witnesses=[witness.key])
        assert [item for item in found.problems if "does not fit" in item]
    async with Runtime.open(data, agents=[clerk], rules=Rules(witnesses=(witness.rule,))) as runtime:
        await until(
            runtime, "cosigned"
        )  # it is asked nevertheless, and its own takes the place of the forged one
    assert (await asked(data, lambda audit: audit.verify(witnesses=[witness.key]))).problems == []


async def test_actions_do_not_wait_for_a_witness_that_is_away(
    processes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    witness = processes().start(await log_key(data))
    witness.kill()
    hung: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hung.append(writer)  # it takes connections and says nothing: the worst way to be away

    server = await asyncio.start_server(silent, "127.0.0.1", witness.port)
    async with Runtime.open(data, agents=[clerk], rules=Rules(witnesses=(witness.rule,))) as runtime:
        begun = time.monotonic()
        for _ in range(5):
            await (await runtime.start("clerk", {"names": ["a", "b"]})).result()
        assert time.monotonic() - begun < 4  # a witness has 5 s to answer
        await runtime.audit.checkpoint()
        async with asyncio.timeout(10):
            while not hung:
                await asyncio.sleep(0.02)
        with caplog.at_level(logging.WARNING, "perdure.audit"):
            server.close()
            for writer in hung:
                writer.close()
            status = await until(runtime, "away")
            assert "did not answer" in status.why
            await asyncio.sleep(0.3)  # several more times in vain
            await asyncio.to_thread(witness.start, new=False)
            assert (await until(runtime, "cosigned")).size > 5
    told = [item.message for item in caplog.records if item.name == "perdure.audit"]
    assert ["asked again later" in text for text in told] == [True, False], (
        "once when it went, once when it came"
    )
    assert (await asked(data, lambda audit: audit.verify(witnesses=[witness.key]))).problems == []


async def refused(data: Path, rules: Rules, caplog: pytest.LogCaptureFixture) -> tuple[str, list[Any]]:
    """Work on until the witness has refused; its code, and the records about it."""
    with caplog.at_level(logging.ERROR, "perdure.audit"):
        async with Runtime.open(data, agents=[clerk], rules=rules) as runtime:
            await (await runtime.start("clerk", {"names": ["lies"]})).result()
            await runtime.audit.checkpoint()
            status = await until(runtime, "refused")
            await (await runtime.start("clerk", {"names": ["more lies"]})).result()
            await runtime.audit.checkpoint()
            await asyncio.sleep(0.3)  # it is asked again, and refuses again
            leaves = runtime.store.read(lambda tx: tx.audit_records())
    loud = [item.message for item in caplog.records if item.levelname == "ERROR"]
    caplog.clear()
    assert len(loud) == 1, loud
    assert "refuses the head of the audit log" in loud[0]
    return status.code, [leaf.record for leaf in leaves if leaf.record.kind == "witness"]


async def test_a_log_that_went_back_or_another_way_is_refused_loudly(
    processes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    witness = processes().start(await log_key(data))
    rules = Rules(witnesses=(witness.rule,))
    await worked(data, rules, "a")
    shutil.copytree(data, tmp_path / "older")
    await worked(data, rules, "bcdefgh")
    witness.kill()  # what it has seen is on the disk
    witness.start(new=False)
    shutil.copytree(tmp_path / "older", tmp_path / "forked")
    code, records = await refused(tmp_path / "older", rules, caplog)
    assert code == "rollback"
    assert [(item.name, item.codes, item.refs["status"]) for item in records] == [
        (witness.name, ("rollback",), "409")
    ]
    await worked(tmp_path / "forked", names=["x"] * 20)
    code, records = await refused(tmp_path / "forked", rules, caplog)
    assert (code, len(records), records[0].codes) == ("fork", 1, ("fork",))
    # The true log goes on, and the state of the refused one is told to whoever looks.
    await worked(data, rules, "z")
    assert (await asked(data, lambda audit: audit.status())).witnesses[0].state == "cosigned"
    assert (await asked(tmp_path / "forked", lambda audit: audit.status())).witnesses[0].state == "refused"


async def test_a_witness_that_does_not_know_the_log(
    processes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    witness = processes().start(await log_key(tmp_path / "other"))
    code, records = await refused(data, Rules(witnesses=(witness.rule,)), caplog)
    assert (code, len(records)) == ("origin-unknown", 1)


async def test_a_tail_that_was_cut_off_with_the_logs_own_key_is_seen_by_asking_the_witness(
    processes: Any, tmp_path: Path
) -> None:
    """Who has database and key can make a log that is whole in itself; the witness remembers."""
    data = tmp_path / "data"
    witness = processes().start(await log_key(data))
    rules = Rules(witnesses=(witness.rule,))
    await worked(data, rules, "ab")
    await worked(data, rules, "cd")
    with closing(sqlite3.connect(data / "perdure.db", isolation_level=None)) as connection:
        sizes = [row[0] for row in connection.execute("SELECT size FROM audit_checkpoints ORDER BY size")]
        cut = sizes[-1] - 2
        connection.execute("DELETE FROM audit_checkpoints WHERE size > ?", (cut,))
        connection.execute("DELETE FROM audit_leaves WHERE place >= ?", (cut,))
        size, root = rehash(connection)
        secret = json.loads((data / "audit.key").read_text())
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret["log"]))
        made = checkpoint((await log_key(data)).partition("+")[0], size, root, 1)
        connection.execute(
            "INSERT INTO audit_checkpoints (size, body, note) VALUES (?, ?, ?)",
            (size, made.body, sign_checkpoint(made, private)),
        )

    def problems(found: Any) -> list[str]:
        return [item for item in found.problems if "ledger" not in item]

    assert problems(await asked(data, lambda audit: audit.verify())) == []
    latest = await asked(data, lambda audit: audit.ask(witness.url))
    assert parse_checkpoint(latest).size == sizes[-1]
    found = await asked(data, lambda audit: audit.verify(known=[latest], witnesses=[witness.key]))
    assert any("were signed and the file ends after" in item for item in found.problems), found.problems
    with pytest.raises(UnavailableError):
        await asked(data, lambda audit: audit.ask(f"http://127.0.0.1:{free_port()}"))


def test_witnesses_come_from_the_configuration(tmp_path: Path) -> None:
    def read(text: str) -> Any:
        (tmp_path / "perdure.toml").write_text(text)
        return world_from(tmp_path / "perdure.toml", {}, LocalSecrets.default(tmp_path)).rules.witnesses

    private = Ed25519PrivateKey.generate()
    key = VerifierKey.of("witness.example/w1", private, COSIGNS).text
    table = (
        f'[[governance.witness]]\nname = "witness.example/w1"\nurl = "https://w1.example"\nkey = "{key}"\n'
    )
    assert read(table) == (WitnessRule(name="witness.example/w1", url="https://w1.example", key=key),)
    log = VerifierKey.of("witness.example/w1", private).text
    for wrong in (
        table + table,
        table.replace("https", "ftp"),
        table.replace('name = "witness.example/w1"', 'name = "w2"'),
        table.replace(key, "nonsense"),
        table.replace(key, log),
        table + "more = 1\n",
        "[governance]\nwitness = 1\n",
    ):
        with pytest.raises(DefinitionError):
            read(wrong)
