"""Checkpoints, cosignatures and the witness's decision, against the formats' own examples and against every refusal."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance import verify_file
from perdure.governance.checkpoints import (
    add_cosignatures,
    checkpoint,
    cosign,
    cosigned_at_s,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from perdure.governance.merkle import EMPTY_ROOT, consistency_proof, leaf_hash
from perdure.governance.notes import COSIGNS, VerifierKey, parse_note, sign_note, verify_note
from perdure.governance.witness import Cosigned, Refused, Submission, judge, parse_submission
from tests.governance.test_merkle import Log, leaves_of

LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
THIEF = Ed25519PrivateKey.from_private_bytes(b"t" * 32)
LOG = VerifierKey.of("perdure.example/log", LOG_KEY)
WITNESS = VerifierKey.of("witness.example/w1", WITNESS_KEY, COSIGNS)
ROOT = leaf_hash(b"root")

# The example of the C2SP signed-note specification.
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mF"
    "XmRKuwHjG1Yu72IneyaQM=\n"
)
# The example of the C2SP tlog-cosignature specification.
COSIGNED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_the_examples_of_the_specifications() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)
    assert key.text == EXAMPLE_KEY
    note = parse_note(EXAMPLE)
    assert note.text == EXAMPLE
    verify_note(note, key)
    assert verify_file.is_signed(key.public, note.body.encode(), note.signatures[0].data)
    with pytest.raises(AuditInvalidError):
        verify_note(parse_note(EXAMPLE.replace("example message", "example massage")), key)
    parsed = parse_note(COSIGNED)
    found = parse_checkpoint(parsed)
    assert (found.origin, found.size, found.extensions) == ("example.com/behind-the-sofa", 20852163, ())
    assert parsed.text == COSIGNED
    assert found.body == parsed.body
    assert int.from_bytes(parsed.signatures[1].data[:8], "big") == 1679315147


def test_rfc_8032_vectors() -> None:
    """Tests 1 and 3 of RFC 8032, 7.1, and what a verifier must refuse."""
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert verify_file.is_signed(public, b"", signature)
    other = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    more = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a"
    )
    assert verify_file.is_signed(other, bytes.fromhex("af82"), more)
    large = signature[:32] + (int.from_bytes(signature[32:], "little") + verify_file.Q).to_bytes(32, "little")
    for key, message, signed in (
        (public, b"x", signature), (other, b"", signature), (public, b"", more), (public, b"", large),
        (public, b"", signature[:-1]), (public[:-1], b"", signature), (public, b"", b""), (b"\xff" * 32, b"", signature),
        (public, b"", b"\xff" * 32 + signature[32:]),
    ):  # fmt: skip
        assert not verify_file.is_signed(key, message, signed)


def test_both_verifiers_agree() -> None:
    for number in range(20):
        private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        key = VerifierKey.of(f"log{number}", private)
        message = b"message %d" % number
        signature = private.sign(message)
        flipped = bytes([*signature[:number], signature[number] ^ 1, *signature[number + 1 :]])
        for signed in (signature, flipped):
            assert key.has_signed(message, signed) == verify_file.is_signed(key.public, message, signed)
        assert verify_file.read_key(key.text) == (key.name, key.key_id, key.public)


def test_checkpoints_are_signed_and_opened() -> None:
    made = checkpoint(LOG.name, 7, ROOT, 1_790_000_000_123)
    note = sign_checkpoint(made, LOG_KEY)
    assert open_checkpoint(note, LOG) == made
    assert open_checkpoint(note, LOG).at_ms == 1_790_000_000_123
    assert parse_checkpoint(sign_checkpoint(checkpoint(LOG.name, 7, ROOT), LOG_KEY)).at_ms is None
    empty = checkpoint(LOG.name, 0, EMPTY_ROOT)
    assert open_checkpoint(sign_checkpoint(empty, LOG_KEY), LOG) == empty


def test_other_keys_and_changed_checkpoints_are_refused() -> None:
    made = checkpoint(LOG.name, 7, ROOT, 5)
    note = sign_checkpoint(made, LOG_KEY)
    thief = sign_checkpoint(made, THIEF)
    both = parse_note(thief).signed_with(parse_note(note).signatures[0]).text
    assert open_checkpoint(both, LOG) == made  # signatures of unknown keys count for nothing
    renamed = sign_checkpoint(checkpoint("other.example/log", 7, ROOT), LOG_KEY)
    for wrong in (
        thief, renamed, note.replace("\n7\n", "\n8\n"), note.replace("at_ms 5", "at_ms 6"),
        note.replace("at_ms 5\n", ""), sign_note("hello\n", LOG.name, LOG_KEY).text,
    ):  # fmt: skip
        with pytest.raises(AuditInvalidError):
            open_checkpoint(wrong, LOG)
    foreign = sign_note(checkpoint("other.example/log", 7, ROOT).body, LOG.name, LOG_KEY).text
    with pytest.raises(AuditInvalidError, match="is of `other.example/log`"):
        open_checkpoint(foreign, LOG)  # the right key and name, and still another log
    assert verify_file.signed_by(verify_file.read_head(foreign), verify_file.read_key(LOG.text))
    with pytest.raises(AuditInvalidError, match="another key of that name"):
        open_checkpoint(thief, LOG)


@pytest.mark.parametrize("wrong", [
    "", "\n", "a\n", "a\n\n", "a\n\nb\n", "a\n1\nAAAA\n\n— x YWJjZGVm\n", "a\n01\n{root}\n\n— x YWJjZGVm\n",
    "a\n-1\n{root}\n\n— x YWJjZGVm\n", "a\n1\n{root}\n\n— x YWJj\n", "a\n1\n{root}\n\n— x+y YWJjZGVm\n",
    "a\n1\n{root}\n\n- x YWJjZGVm\n", "a\n1\n{root}\n\n— x YWJjZGVm", "a\n1\n{root}\n\n— x YWJjZGVm\n\x00", "\n1\n{root}\n\n— x YWJjZGVm\n",
    "a\n1\n\n{root}\n\n— x YWJjZGVm\n", "a\n0\n{root}\n\n— x YWJjZGVm\n", "a\r\n1\n{root}\n\n— x YWJjZGVm\n", "a\n١\n{root}\n\n— x YWJjZGVm\n",
    "a\n99999999999999999999\n{root}\n\n— x YWJjZGVm\n", "a\n1\n{root}\n\n" + "— x YWJjZGVm\n" * 65,
    "a\n1\n{root}\n" + "x" * 70_000 + "\n\n— x YWJjZGVm\n", "a\n1\n{root}\n\n— x YWJjZGVn=\n",
])  # fmt: skip
def test_what_is_no_checkpoint_is_refused(wrong: str) -> None:
    with pytest.raises(AuditInvalidError):
        parse_checkpoint(wrong.replace("{root}", base64.b64encode(ROOT).decode()))


@pytest.mark.parametrize(
    "wrong",
    ["", "a", "a+b", "a+b+c", EXAMPLE_KEY[:-2], EXAMPLE_KEY.replace("530d", "530e"), "a+00000000+AQ=="],
)
def test_what_is_no_key_is_refused(wrong: str) -> None:
    with pytest.raises(InputInvalidError):
        VerifierKey.parse(wrong)
    with pytest.raises(ValueError):
        verify_file.read_key(wrong)


def test_names_and_sizes_are_checked_before_signing() -> None:
    for origin, size, root in (
        ("a b", 1, ROOT),
        ("a+b", 1, ROOT),
        ("", 1, ROOT),
        ("a", -1, ROOT),
        ("a", 0, ROOT),
        ("a", 1, b"x"),
    ):
        with pytest.raises(InputInvalidError):
            checkpoint(origin, size, root)
    for body in ("no newline", "tab\t\n"):
        with pytest.raises(InputInvalidError):
            sign_note(body, "a", LOG_KEY)


def test_cosignatures() -> None:
    note = sign_checkpoint(checkpoint(LOG.name, 7, ROOT), LOG_KEY)
    parsed = parse_note(note)
    line = cosign(parsed.body, WITNESS.name, WITNESS_KEY, 1_790_000_000)
    cosigned = add_cosignatures(note, [line], [WITNESS])
    assert cosigned_at_s(cosigned, WITNESS) == 1_790_000_000
    assert open_checkpoint(cosigned, LOG).size == 7
    assert verify_file.cosigned_by(verify_file.read_head(cosigned), verify_file.read_key(WITNESS.text)) == ""
    # What is not of a known witness, or not for this checkpoint, is left out.
    stranger = cosign(parsed.body, "stranger", THIEF, 5)
    forged = cosign(parsed.body, WITNESS.name, THIEF, 5)
    forged = type(forged)(forged.name, WITNESS.key_id, forged.data)
    elsewhere = cosign(sign_checkpoint(checkpoint(LOG.name, 8, ROOT), LOG_KEY), WITNESS.name, WITNESS_KEY, 5)
    assert add_cosignatures(note, [stranger, forged, elsewhere], [WITNESS]) == note
    later = type(line)(line.name, line.key_id, (1_800_000_000).to_bytes(8, "big") + line.data[8:])
    for wrong in (forged, elsewhere, later, type(line)(line.name, line.key_id, line.data[:-1])):
        with pytest.raises(AuditInvalidError):
            cosigned_at_s(parsed.signed_with(wrong), WITNESS)
    with pytest.raises(AuditInvalidError):
        cosigned_at_s(note, WITNESS)
    plain = type(line)(WITNESS.name, WITNESS.key_id, WITNESS_KEY.sign(parsed.body.encode()))
    for text in (cosigned, parsed.signed_with(plain).text):
        with pytest.raises(AuditInvalidError):
            verify_note(parse_note(text), WITNESS)  # a cosigning key signs no notes


# -- the witness's decision
class Asking:
    """A log of 20 records, another that forks from it after 6, and a witness that knows the first."""

    def __init__(self) -> None:
        self.log = Log(leaves_of(20))
        self.fork = Log([*leaves_of(6), *(b"forged %d" % number for number in range(14))])
        self.seen: dict[str, str] = {}
        self.now_s = 100

    def note(
        self, size: int, log: Log | None = None, key: Ed25519PrivateKey = LOG_KEY, origin: str = LOG.name
    ) -> str:
        return sign_checkpoint(checkpoint(origin, size, (log or self.log).roots[size]), key)

    def ask(
        self, old: int, size: int, log: Log | None = None, *, note: str = "", proof=None
    ) -> Cosigned | Refused:
        log = log or self.log
        if proof is None:
            proof = consistency_proof(log, old, size) if old <= size else ()
        return self.send(Submission(old, proof, note or self.note(size, log)).text)

    def send(self, text: str) -> Cosigned | Refused:
        self.now_s += 1
        known = {LOG.name: [LOG]}
        answer = judge(
            text, logs=known, seen=self.seen, name=WITNESS.name, private=WITNESS_KEY, now_s=self.now_s
        )
        if isinstance(answer, Cosigned):
            self.seen[answer.checkpoint.origin] = answer.note
        return answer


def test_a_witness_cosigns_what_extends() -> None:
    asking = Asking()
    for old, size in ((0, 0), (0, 3), (3, 3), (3, 8), (8, 20)):
        answer = asking.ask(old, size)
        assert isinstance(answer, Cosigned), answer
        assert cosigned_at_s(answer.note, WITNESS) == asking.now_s
        assert open_checkpoint(answer.note, LOG).size == size
        assert answer.line in answer.note


def test_a_witness_refuses_fork_truncation_and_rollback() -> None:
    asking = Asking()
    assert isinstance(asking.ask(0, 10), Cosigned)
    before = dict(asking.seen)
    cases = {
        "fork of the same size": (asking.ask(10, 10, asking.fork), 422, "fork"),
        "fork that goes on": (asking.ask(10, 20, asking.fork), 422, "fork"),
        "no proof": (asking.ask(10, 20, proof=()), 422, "fork"),
        "another proof": (asking.ask(10, 20, proof=consistency_proof(asking.log, 9, 20)), 422, "fork"),
        "a proof too many": (asking.ask(10, 10, proof=(ROOT,)), 422, "fork"),
        "truncated": (asking.ask(10, 7), 400, "rollback"),
        "rolled back": (asking.ask(5, 7), 409, "stale"),
        "begun anew": (asking.ask(0, 7), 409, "stale"),
        "not seen yet": (asking.ask(11, 20), 409, "stale"),
    }
    for case, (answer, status, code) in cases.items():
        assert isinstance(answer, Refused), case
        assert (answer.status, answer.code) == (status, code), case
        assert answer.size == (10 if status == 409 else None), case
    assert asking.seen == before
    assert isinstance(asking.ask(10, 20), Cosigned)


def test_a_witness_refuses_whom_it_does_not_know() -> None:
    asking = Asking()
    stranger = asking.ask(0, 3, note=asking.note(3, origin="other.example/log"))
    assert isinstance(stranger, Refused)
    assert (stranger.status, stranger.code) == (404, "origin-unknown")
    stolen = asking.ask(0, 3, note=asking.note(3, key=THIEF))
    assert isinstance(stolen, Refused)
    assert (stolen.status, stolen.code) == (403, "signature")
    changed = asking.ask(0, 3, note=asking.note(3).replace("\n3\n", "\n4\n"))
    assert isinstance(changed, Refused)
    assert changed.status == 403
    first = asking.ask(0, 3, proof=(ROOT,))
    assert isinstance(first, Refused)
    assert (first.status, first.code) == (422, "fork")


@pytest.mark.parametrize("wrong", [
    "", "old\n\n", "old 01\n\n{note}", "old -1\n\n{note}", "old 0\n{note}", "new 0\n\n{note}", "old 0\nAAAA\n\n{note}",
    "old 0\n" + f"{base64.b64encode(ROOT).decode()}\n" * 64 + "\n{note}", "old 0\n\nnothing\n", " old 0\n\n{note}",
])  # fmt: skip
def test_malformed_submissions(wrong: str) -> None:
    asking = Asking()
    answer = asking.send(wrong.replace("{note}", asking.note(3)))
    assert isinstance(answer, Refused)
    assert (answer.status, answer.code) == (400, "malformed")


def test_submissions_come_back() -> None:
    asking = Asking()
    made = Submission(6, consistency_proof(asking.log, 6, 20), asking.note(20))
    assert parse_submission(made.text) == made
