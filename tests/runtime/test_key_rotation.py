"""The key of the audit log is rotated on real data directories: verifiers follow, key swaps stay detected."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure import Runtime
from perdure.core.audit import AuditRecord, encode_record
from perdure.core.errors import DataDirInvalidError, UsageError
from perdure.governance.checkpoints import checkpoint, open_checkpoint, parse_checkpoint, sign_checkpoint
from perdure.governance.exports import open_envelope
from perdure.governance.key_chain import key_record
from perdure.governance.notes import VerifierKey, parse_note
from perdure.runtime.auditing import Audit
from perdure.runtime.log_keys import CHAIN, PUBLIC, Chain, LogKeys, chain_of
from perdure.runtime.rulebook import Rules
from perdure.runtime.verifying import Verified
from tests.runtime.test_auditing import check, clerk, rehash
from tests.runtime.test_witnesses import processes, until  # noqa: F401 - a fixture

THIEF = Ed25519PrivateKey.from_private_bytes(b"t" * 32)


async def worked(path: Path, *names: str) -> str:
    async with Runtime.open(path, agents=[clerk]) as runtime:
        handle = await runtime.start("clerk", {"names": list(names)})
        await handle.result()
        return handle.id


async def asked(path: Path, work: Callable[[Audit], Any]) -> Any:
    async with Runtime.open(path, agents=[clerk], beside=True) as runtime:
        found = work(runtime.audit)
        return await found if asyncio.iscoroutine(found) else found


async def verified(path: Path, **options: Any) -> Verified:
    found: Verified = await asked(path, lambda audit: audit.verify(**options))
    return found


def seed(path: Path) -> str:
    return str(json.loads((path / "audit.key").read_text())["log"])


@pytest.fixture
async def rotated(tmp_path: Path) -> Path:
    """A log with three keys, each of which has signed heads."""
    path = tmp_path / "data"
    await worked(path, "a")
    for name in "bc":
        await asked(path, lambda audit: audit.rotate_key(by="anna", reason="it is March"))
        await worked(path, name)
    return path


async def test_who_has_the_first_key_follows_to_the_others(rotated: Path, tmp_path: Path) -> None:
    first = (rotated / PUBLIC).read_text().strip()
    found = await verified(rotated)
    assert (found.problems, found.signed) == ([], found.size)
    assert (await verified(rotated, key=first)).problems == []
    assert first == await asked(rotated, lambda audit: audit.verifier())
    current = await asked(rotated, lambda audit: audit.verifier(current=True))
    assert current != first
    notes = await asked(rotated, lambda audit: audit._runtime.store.read(lambda tx: tx.checkpoints()))
    signers = {item.key_id.hex() for note in notes for item in parse_note(note).signatures}
    assert len(signers) == 3
    open_checkpoint(notes[-1], VerifierKey.parse(current))
    # Whoever has only the export, and whoever has one proof.
    lines = await asked(rotated, lambda audit: list(audit.export()))
    for name, data in (("log.jsonl", b"".join(lines)), ("note", notes[-1].encode()), ("first", first.encode()), ("now", current.encode())):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    done = check(tmp_path, "log.jsonl", "note", "first")
    assert done.returncode == 0, done.stdout
    assert check(tmp_path, "log.jsonl", "note", "now").returncode == 1, "it is the first key that is given"
    async with Runtime.open(rotated, agents=[clerk], beside=True) as runtime:
        run = runtime.runs(agent="clerk")[0].id
        bundle = await runtime.audit.prove(f"{run}/1")
        [envelope] = runtime.audit.export("dsse")
    open_envelope(envelope, VerifierKey.parse(current))
    (tmp_path / "proof.json").write_bytes(bundle)
    assert check(tmp_path, "--proof", "proof.json", "first").returncode == 0
    for change in ({"keys": []}, {"keys": json.loads(bundle)["keys"][1:]}):
        (tmp_path / "proof.json").write_text(json.dumps({**json.loads(bundle), **change}))
        assert check(tmp_path, "--proof", "proof.json", "first").returncode == 1


async def test_the_old_key_is_gone_and_the_details_are_not(rotated: Path, tmp_path: Path) -> None:
    path = tmp_path / "fresh"
    run = await worked(path, "a")
    before = seed(path)
    await asked(path, lambda audit: audit.rotate_key(by="anna"))
    assert before not in (path / "audit.key").read_text()
    assert (path / "audit.key").stat().st_mode & 0o077 == 0
    leaves = await asked(path, lambda audit: audit.records(run=run))
    assert json.loads(await asked(path, lambda audit: audit.details(leaves[0].index))) == {"to": "a"}
    records = await asked(path, lambda audit: audit._runtime.store.read(lambda tx: tx.audit_records()))
    [record] = [leaf.record for leaf in records if leaf.record.kind == "key"]
    assert (record.by, record.refs["key"]) == (
        "anna",
        await asked(path, lambda audit: audit.verifier(current=True)),
    )


async def test_a_process_that_was_open_before_signs_with_the_new_key(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path, agents=[clerk]) as runtime:
        await (await runtime.start("clerk", {"names": ["a"]})).result()
        old = await runtime.audit.checkpoint()
        async with Runtime.open(tmp_path, agents=[clerk], beside=True) as other:
            new = VerifierKey.parse(await other.audit.rotate_key(by="anna"))
        await (await runtime.start("clerk", {"names": ["b"]})).result()
        note = await runtime.audit.checkpoint()
        assert parse_checkpoint(note).size > parse_checkpoint(old).size + 1
        assert [item.key_id for item in parse_note(note).signatures] == [new.key_id]
        assert runtime.audit.verify().problems == []


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_rotation_that_was_cut_short_goes_on(tmp_path: Path, is_named: bool) -> None:
    """Killed before the record, or after it: the key in force is in the file."""
    await worked(tmp_path, "a")
    async with Runtime.open(tmp_path, agents=[clerk], beside=True) as runtime:
        keys = runtime.audit._keys()
        with pytest.raises(KeyboardInterrupt), keys.rotating(runtime.store.read(chain_of)) as new:
            if is_named:
                index = runtime.store.read(lambda tx: tx.audit_head()[0])
                record = key_record(index, keys.signer(Chain()), new, at_ms=1, by="anna")
                chain = Chain(new.text, (index,))
                await runtime.store.transact(
                    lambda tx: (
                        tx.audit(record),
                        tx.set_fact(CHAIN, json.dumps({"key": chain.key, "records": [index]})),
                    )
                )
            raise KeyboardInterrupt
    await worked(tmp_path, "b")
    assert (await verified(tmp_path)).problems == []
    current = await asked(tmp_path, lambda audit: audit.verifier(current=True))
    assert (current == new.text) is is_named
    await asked(tmp_path, lambda audit: audit.rotate_key(by="anna"))
    await worked(tmp_path, "c")
    assert (await verified(tmp_path)).problems == []
    assert "next" not in json.loads((tmp_path / "audit.key").read_text())


async def test_two_rotations_at_once_are_one(tmp_path: Path) -> None:
    await worked(tmp_path, "a")
    async with Runtime.open(tmp_path, agents=[clerk], beside=True) as runtime:
        found = await asyncio.gather(
            *(runtime.audit.rotate_key(by="anna") for _ in range(3)), return_exceptions=True
        )
        assert sum(isinstance(item, str) for item in found) == 1
        assert sum(isinstance(item, UsageError) for item in found) == 2
        assert runtime.audit.verify().problems == []


async def test_a_file_that_does_not_belong_to_the_database(rotated: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(rotated, other)
    await asked(rotated, lambda audit: audit.rotate_key(by="anna"))
    shutil.copy(rotated / "audit.key", other / "audit.key")
    with pytest.raises(DataDirInvalidError, match="restore the file"):
        await asked(other, lambda audit: audit.verifier(current=True))
    assert (await verified(other)).problems == [], "looking needs no private key"


# -- attacks: who can write the database, and has a key of their own, or one that was rotated away
def resign(connection: sqlite3.Connection, origin: str, private: Ed25519PrivateKey) -> None:
    """Make everything fit again, and sign it."""
    size, root = rehash(connection)
    made = checkpoint(origin, size, root, 1)
    connection.execute(
        "INSERT OR REPLACE INTO audit_checkpoints (size, body, note) VALUES (?, ?, ?)",
        (size, made.body, sign_checkpoint(made, private)),
    )


def append(connection: sqlite3.Connection, record: AuditRecord) -> None:
    place = connection.execute("SELECT max(place) + 1 FROM audit_leaves").fetchone()[0]
    connection.execute(
        "INSERT INTO audit_leaves VALUES (?, ?, ?, '', NULL)", (place, encode_record(record), b"")
    )


def swap_without_a_word(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:  # noqa: ARG001
    append(connection, AuditRecord(kind="configuration", at_ms=1))
    resign(connection, origin, THIEF)


def swap_and_name_it_oneself(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:  # noqa: ARG001
    place = connection.execute("SELECT max(place) + 1 FROM audit_leaves").fetchone()[0]
    append(connection, key_record(place, THIEF, VerifierKey.of(origin, THIEF), at_ms=1, by="eve"))
    resign(connection, origin, THIEF)


def name_it_for_another_place(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:
    append(connection, key_record(3, old, VerifierKey.of(origin, THIEF), at_ms=1, by="eve"))
    resign(connection, origin, THIEF)


def name_it_for_another_log(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:
    place = connection.execute("SELECT max(place) + 1 FROM audit_leaves").fetchone()[0]
    append(connection, key_record(place, old, VerifierKey.of("other.example", THIEF), at_ms=1, by="eve"))
    resign(connection, origin, THIEF)


def change_the_key_that_is_named(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:  # noqa: ARG001
    place, leaf = connection.execute(
        'SELECT place, leaf FROM audit_leaves WHERE instr(leaf, \'"kind":"key"\') ORDER BY place DESC'
    ).fetchone()
    said = json.loads(leaf)
    said["refs"]["key"] = VerifierKey.of(origin, THIEF).text
    changed = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    connection.execute("UPDATE audit_leaves SET leaf = ? WHERE place = ?", (changed, place))
    connection.execute("DELETE FROM audit_checkpoints WHERE size > ?", (place,))
    resign(connection, origin, THIEF)


def go_on_with_the_old_key(connection: sqlite3.Connection, origin: str, old: Ed25519PrivateKey) -> None:
    append(connection, AuditRecord(kind="configuration", at_ms=1))
    resign(connection, origin, old)


ATTACKS = [
    swap_without_a_word,
    swap_and_name_it_oneself,
    name_it_for_another_place,
    name_it_for_another_log,
    change_the_key_that_is_named,
    go_on_with_the_old_key,
]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_key_that_the_old_one_did_not_name_is_refused(tmp_path: Path, attack: Any) -> None:
    data = tmp_path / "data"
    await worked(data, "a")
    first = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed(data)))
    await asked(data, lambda audit: audit.rotate_key(by="anna"))
    await worked(data, "b")
    assert (await verified(data)).problems == []
    # The thief has the key in force too where the attack is about what it signs; the old one where it is rotated away.
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed(data)))
    old = first if attack is go_on_with_the_old_key else private
    origin = (data / PUBLIC).read_text().partition("+")[0]
    with closing(sqlite3.connect(data / "perdure.db", isolation_level=None)) as connection:
        attack(connection, origin, old)
    found = await verified(data)
    assert any("signed by" in item or "names a key" in item for item in found.problems), found.problems


async def test_a_witness_takes_the_new_key_when_it_is_given_and_not_the_old_one_again(
    processes: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    first = await asked(data, lambda audit: audit.verifier())
    witness = processes().start(first)
    async with Runtime.open(data, agents=[clerk], rules=Rules(witnesses=(witness.rule,))) as runtime:
        await (await runtime.start("clerk", {"names": ["a"]})).result()
        await runtime.audit.checkpoint()
        await until(runtime, "cosigned")
        shutil.copytree(data, tmp_path / "older")
        new = await runtime.audit.rotate_key(by="anna")
        await (await runtime.start("clerk", {"names": ["b"]})).result()
        await runtime.audit.checkpoint()
        status = await until(runtime, "refused")
        assert status.code == "signature"
        witness.kill()
        await asyncio.to_thread(witness.start, first, new, new=False)
        await until(runtime, "cosigned")
    found = await verified(data, witnesses=[witness.key])
    assert (found.problems, found.cosigned) == ([], found.size)
    # Who kept the key that was rotated away cannot have anything cosigned any more, not even what extends the log.
    async with Runtime.open(data, agents=[clerk], beside=True) as runtime:
        size, root = runtime.store.read(lambda tx: tx.audit_head())
        keys = LogKeys(tmp_path / "older", runtime.audit._keys().origin)
        from perdure.governance.witness import Refused
        from perdure.hosting.witness_client import ask_witness, witness_client

        note = sign_checkpoint(checkpoint(keys.origin, size, root, 1), keys.signer(Chain()))
        async with witness_client(witness.url) as client:
            refused = await ask_witness(client, note, lambda _: (), VerifierKey.parse(witness.key), old=size)
        assert isinstance(refused, Refused)
        assert refused.code == "signature"
