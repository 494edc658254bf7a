"""Sealed details: who can open them, what a record says of them, and what is left after an erasure."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from perdure.core.audit import AuditRecord, encode_record
from perdure.core.canonical import canonical
from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance.merkle import inclusion_proof, leaf_hash, verify_inclusion
from perdure.governance.sealed import open_sealed, seal, sealed_digest, unwrap_key, wrap_key
from perdure.stores.sqlite import SqliteStore
from tests.governance.logs import AuditedLog

KEY, OTHER, MASTER = bytes(range(32)), bytes(32), b"m" * 32
NONCE = b"n" * 12


def test_only_the_key_opens() -> None:
    sealed = seal(KEY, b"+44 7700 900123", NONCE, b"r/1")
    assert open_sealed(KEY, sealed, b"r/1") == b"+44 7700 900123"
    assert b"7700" not in sealed
    assert sealed_digest(sealed) != sealed_digest(seal(KEY, b"+44 7700 900123", b"o" * 12, b"r/1"))
    for key, data, aad in (
        (OTHER, sealed, b"r/1"),
        (KEY, sealed, b"r/2"),
        (KEY, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"r/1"),
        (KEY, b"x" + sealed[1:], b"r/1"),
        (KEY, sealed[:20], b"r/1"),
        (KEY, b"", b"r/1"),
        (b"short", sealed, b"r/1"),
    ):
        with pytest.raises(AuditInvalidError):
            open_sealed(key, data, aad)
    for key, nonce in ((b"short", NONCE), (KEY, b"short")):
        with pytest.raises(InputInvalidError):
            seal(key, b"", nonce)


def test_known_vector() -> None:
    """AES-256-GCM, test case 15 of the submission of McGrew and Viega."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    text = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    )
    sealed = seal(key, text, bytes.fromhex("cafebabefacedbaddecaf888"))
    assert sealed[12:].hex() == (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
        "b094dac5d93471bdec1a502270e3cc6c"
    )


def test_wrapped_keys_belong_to_one_subject() -> None:
    wrapped = wrap_key(MASTER, KEY, "ann", NONCE)
    assert unwrap_key(MASTER, wrapped, "ann") == KEY
    for master, subject in ((OTHER, "ann"), (MASTER, "bob")):
        with pytest.raises(AuditInvalidError):
            unwrap_key(master, wrapped, subject)
    with pytest.raises(AuditInvalidError):
        open_sealed(MASTER, wrapped, b"ann")
    with pytest.raises(InputInvalidError):
        wrap_key(MASTER, b"short", "ann", NONCE)


async def test_erasing_a_key_erases_the_data_and_no_proof(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    store = SqliteStore(path)
    wrapped = wrap_key(MASTER, KEY, "ann", NONCE)
    sealed = seal(KEY, b"the details", b"d" * 12, b"r/0")

    def write(tx) -> None:
        tx.put_subject_key("ann", wrapped)
        for call in range(9):
            tx.audit(
                AuditRecord(kind="ended", at_ms=call, run="r", call=call), sealed if call == 0 else b"", "ann"
            )

    await store.transact(write)
    size, root = store.read(lambda tx: tx.audit_head())
    subject, found = store.read(lambda tx: tx.audit_sealed(0))
    key = unwrap_key(MASTER, store.read(lambda tx: tx.subject_key(subject)), subject)
    assert open_sealed(key, found, b"r/0") == b"the details"

    await store.transact(lambda tx: tx.drop_subject_key("ann"))
    assert store.read(lambda tx: (tx.subject_key("ann"), tx.audit_sealed(0))) == (None, ("", sealed))
    assert store.read(lambda tx: tx.audit_head()) == (size, root)
    for leaf in store.read(lambda tx: tx.audit_records()):
        proof = store.read(lambda tx, at=leaf.index: inclusion_proof(tx.audit_hash, at, size))
        assert verify_inclusion(leaf_hash(leaf.leaf), leaf.index, size, proof, root)
    assert store.read(lambda tx: tx.audit_records(limit=1))[0].record.sealed == sealed_digest(sealed)
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert wrapped not in left  # not in freed pages either, once the write-ahead log is taken over
    assert sealed in left


@pytest.mark.parametrize("is_erased", [True, False])
def test_an_erased_key_leaves_no_bytes_in_the_database(tmp_path: Path, is_erased: bool) -> None:
    log = AuditedLog(tmp_path / "perdure.db")
    log.connection.execute("PRAGMA secure_delete = OFF")  # some builds of SQLite have it on
    for number in range(20):
        log.tx.put_subject_key(f"subject {number}", wrap_key(MASTER, KEY, f"subject {number}", NONCE))
    wrapped = log.tx.subject_key("subject 7")
    if is_erased:
        log.tx.drop_subject_key("subject 7")
    else:
        log.connection.execute("DELETE FROM subject_keys WHERE subject = 'subject 7'")  # what would be left
    assert log.connection.execute("PRAGMA secure_delete").fetchone() == (0,)
    log.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert (wrapped in log.path.read_bytes()) is not is_erased
    log.close()


@pytest.mark.parametrize("record", [
    AuditRecord(kind="policy", at_ms=0),
    AuditRecord(kind="ended", at_ms=2**53 - 1, run="r", call=0, codes=("b", "a"), refs={"z": "1", "A": "2", "a.b": "ü"}),
    AuditRecord(kind="held", at_ms=1, name='quo"te \\ \x00\x1f\x7f\n\t\b\f\r / € 😀 \u2028', by="\ud7ff\ue000"),
])  # fmt: skip
def test_records_are_rfc_8785(record: AuditRecord) -> None:
    leaf = encode_record(record)
    assert leaf == canonical(json.loads(leaf)) == canonical(record)
    assert b"\n" not in leaf


@pytest.mark.parametrize("fields", [
    {"at_ms": 2**53}, {"at_ms": -1}, {"at_ms": 1.5}, {"at_ms": 1.0}, {"at_ms": True}, {"call": 2**53}, {"kind": "other"},
    {"name": 1.5}, {"refs": {"é": "x"}}, {"refs": {"a": 1}}, {"refs": {"a": 0.5}}, {"codes": (1,)}, {"name": "\ud800"},
    {"sealed": "x"}, {"verdict": "maybe"}, {"name": "x" * 70_000}, {"name": object()},
])  # fmt: skip
def test_what_is_no_record_is_refused(fields: dict) -> None:
    with pytest.raises(InputInvalidError):
        encode_record(AuditRecord(**{"kind": "ended", "at_ms": 1, **fields}))
