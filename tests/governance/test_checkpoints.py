"""Signed heads and witnesses, sealed details."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.audit import AuditRecord
from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError
from perdure.governance import sealed, verify_file
from perdure.governance.checkpoints import (
    Head,
    Signer,
    is_signed,
    read_note,
    read_verifier,
    verifier_key,
    witness,
)
from perdure.governance.merkle import consistency, root
from tests.governance.test_merkle import Nodes, leaves

LOG = Signer("perdure.log/test", bytes(range(32)))
WITNESS = Signer("witness.example", bytes(range(1, 33)))
MALLORY = Signer("perdure.log/test", bytes(range(2, 34)))


def head(size: int, items: list[bytes] | None = None) -> Head:
    nodes = Nodes(items or leaves(size))
    return Head(LOG.name, size, root(size, nodes))


def test_a_note_is_what_c2sp_says() -> None:
    note = LOG.sign(head(3))
    lines = note.split("\n")
    assert (lines[0], lines[1], lines[3], lines[5]) == ("perdure.log/test", "3", "", "")
    assert lines[4].startswith("\u2014 perdure.log/test ")
    assert read_note(note)[0] == head(3)
    assert is_signed(note, LOG.name, LOG.public)
    assert not is_signed(note, LOG.name, MALLORY.public)
    assert not is_signed(note.replace("\n3\n", "\n4\n"), LOG.name, LOG.public)
    assert read_verifier(LOG.verifier) == (LOG.name, LOG.public)
    # The example of C2SP signed-note: name, id and key.
    known = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    name, public = read_verifier(known)
    assert verifier_key(name, public) == known
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    data = base64.b64decode(signature)
    assert verify_file.is_signed_by(public, text.encode(), data[4:])
    assert not verify_file.is_signed_by(public, text.encode() + b" ", data[4:])


@pytest.mark.parametrize(
    "note",
    ["", "a\n1\nAAAA\n\n", "a\n-1\n" + base64.b64encode(bytes(32)).decode() + "\n\n", "a\n01\n" + base64.b64encode(bytes(32)).decode() + "\n\n", "x" * 20_000],
)  # fmt: skip
def test_what_is_no_note(note: str) -> None:
    with pytest.raises(InputInvalidError):
        read_note(note)


def test_a_witness_signs_only_what_continues() -> None:
    first, signed = witness(None, LOG.sign(head(5)), [], name=LOG.name, public=LOG.public, signer=WITNESS)
    assert is_signed(signed, LOG.name, LOG.public)
    assert is_signed(signed, WITNESS.name, WITNESS.public)
    nodes = Nodes(leaves(9))
    second, _ = witness(
        first, LOG.sign(head(9)), consistency(5, 9, nodes), name=LOG.name, public=LOG.public, signer=WITNESS
    )
    assert second.size == 9
    forged = leaves(12)
    forged[2] = b"rewritten"
    cases = [
        (LOG.sign(head(12, forged)), consistency(9, 12, Nodes(forged)), "rewritten"),
        (LOG.sign(head(7)), [], "cut from 9 to 7"),
        (LOG.sign(head(9, forged[:9])), [], "rewritten"),
        (MALLORY.sign(head(12)), consistency(9, 12, Nodes(leaves(12))), "not signed"),
        (Signer("other", bytes(32)).sign(Head("other", 12, head(12).root)), [], "not signed"),
    ]
    for note, proof, match in cases:
        with pytest.raises(InputInvalidError, match=match):
            witness(second, note, proof, name=LOG.name, public=LOG.public, signer=WITNESS)


@given(st.binary(max_size=200))
def test_the_verifier_without_dependencies_agrees_with_the_library(message: bytes) -> None:
    signature = LOG.sign_bytes(message)
    assert verify_file.is_signed_by(LOG.public, message, signature)
    assert not verify_file.is_signed_by(LOG.public, message + b"x", signature)
    assert not verify_file.is_signed_by(MALLORY.public, message, signature)
    assert not verify_file.is_signed_by(LOG.public, message, signature[:63] + bytes([signature[63] ^ 1]))


def test_a_signature_with_a_large_s_is_refused() -> None:
    signature = LOG.sign_bytes(b"m")
    s = int.from_bytes(signature[32:], "little") + verify_file.L
    assert not verify_file.is_signed_by(LOG.public, b"m", signature[:32] + s.to_bytes(32, "little"))


def test_sealed_details() -> None:
    key, nonce = bytes(range(32)), bytes(12)
    data = sealed.seal(key, b"IBAN", nonce)
    assert sealed.unseal(key, data) == b"IBAN"
    assert b"IBAN" not in data
    for wrong in (data[:-1], data[:5], b"", data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(InputInvalidError):
            sealed.unseal(key, wrong)
    with pytest.raises(InputInvalidError):
        sealed.unseal(bytes(32), data)


@given(
    st.builds(
        AuditRecord,
        kind=st.just("ended"),
        at_ms=st.integers(0, 2**50),
        name=st.text(max_size=20),
        codes=st.tuples(st.text(max_size=5)),
        note=st.text(max_size=30),
    )
)
def test_a_record_is_canonical_json(record: AuditRecord) -> None:
    import msgspec

    assert record.encode() == canonical(msgspec.to_builtins(record))
