"""What a witness does (C2SP tlog-witness): cosign a checkpoint only if it extends the last one that it cosigned.

A log that forks, forgets or goes back cannot get its next checkpoint cosigned, because no consistency proof exists. This is
the decision and the text of the protocol; the process is ``hosting.witness``, who asks it ``hosting.witness_client``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.core.errors import AuditInvalidError
from perdure.governance.checkpoints import (
    Checkpoint,
    cosign,
    open_checkpoint,
    parse_checkpoint,
    read_hash,
    read_size,
)
from perdure.governance.merkle import PROOF_HASHES_MAX, Proof, verify_consistency
from perdure.governance.notes import VerifierKey, parse_note


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint with the proof that it extends the tree of ``old`` records."""

    old: int
    proof: Proof
    note: str

    @property
    def text(self) -> str:
        """As the protocol sends it."""
        lines = [f"old {self.old}", *(base64.b64encode(item).decode() for item in self.proof)]
        return "".join(f"{line}\n" for line in lines) + f"\n{self.note}"


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The witness's answer: its signature line, and the note to be kept before anybody gets the line."""

    line: str
    note: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Refused:
    """The witness's refusal.

    Attributes:
        status: the HTTP status that the protocol gives it.
        code: ``malformed``, ``origin-unknown``, ``signature``, ``rollback``, ``stale``, ``fork``.
        message: what was found.
        size: for ``stale``, the size that the witness cosigned last.
    """

    status: int
    code: str
    message: str
    size: int | None = None


def parse_submission(text: str) -> Submission:
    """A submission from its text.

    Raises:
        AuditInvalidError: it is none.
    """
    head, gap, note = text.partition("\n\n")
    first, *lines = head.split("\n")
    old = read_size(first.removeprefix("old ")) if first.startswith("old ") else None
    proof = tuple(read_hash(line) for line in lines)
    if not gap or old is None or len(proof) > PROOF_HASHES_MAX:
        raise AuditInvalidError(
            "the submission is malformed: expected `old SIZE`, hashes, an empty line, a note"
        )
    found = tuple(item for item in proof if item is not None)
    if len(found) != len(proof):
        raise AuditInvalidError("the submission is malformed: a line of the proof is no hash")
    return Submission(old, found, note)


def judge(
    text: str,
    *,
    logs: Mapping[str, Sequence[VerifierKey]],
    seen: Mapping[str, str],
    name: str,
    private: Ed25519PrivateKey,
    now_s: int,
) -> Cosigned | Refused:
    """Cosign what was submitted, or say why not.

    The answer counts only if nothing was cosigned for the log since ``seen`` was read: the caller holds a lock, and makes the
    new note durable before it hands out the line.

    Args:
        text: the submission.
        logs: the keys of the logs that the witness knows, by origin, in the order in which they followed each other.
        seen: the notes that it cosigned last, by origin.
        name: the witness's name.
        private: the witness's key, used for nothing else.
        now_s: the time, in seconds since 1970.
    """
    try:
        asked = parse_submission(text)
        note = parse_note(asked.note)
        new = parse_checkpoint(note)
    except AuditInvalidError as error:
        return Refused(400, "malformed", error.message)
    keys = logs.get(new.origin)
    if not keys:
        return Refused(404, "origin-unknown", f"no log of the origin `{new.origin}` is known here")
    before = seen.get(new.origin)
    # A key that another one has followed does not come back.
    known = keys if before is None else keys[_signer(before, keys) :]
    try:
        key = known[_signer(asked.note, known)]
        open_checkpoint(asked.note, key)
    except AuditInvalidError as error:
        return Refused(403, "signature", error.message)
    last = None if before is None else parse_checkpoint(before)
    refusal = _objection(asked, new, last)
    if refusal is not None:
        return refusal
    signature = cosign(note.body, name, private, now_s)
    ours = note.by(key)
    kept = type(note)(note.body, ours).signed_with(signature)  # of others nothing is vouched for
    return Cosigned(signature.line, kept.text, new)


def _signer(note: str, keys: Sequence[VerifierKey]) -> int:
    """The place of the last of the keys that the note says it is signed with; 0 if it names none of them."""
    parsed = parse_note(note)
    return max((place for place, key in enumerate(keys) if parsed.by(key)), default=0)


def _objection(asked: Submission, new: Checkpoint, last: Checkpoint | None) -> Refused | None:
    """Why the new checkpoint is no extension of the last one; ``None`` if it is."""
    known = 0 if last is None else last.size
    if asked.old > new.size:
        return Refused(
            400, "rollback", f"the checkpoint has {new.size} records and claims to extend {asked.old}"
        )
    if asked.old != known:
        return Refused(409, "stale", f"the last checkpoint cosigned here has {known} records", known)
    if last is None:
        if asked.proof:
            return Refused(422, "fork", "a first checkpoint needs no proof, but one was sent")
        return None
    if not verify_consistency(last.size, last.root, new.size, new.root, asked.proof):
        message = (
            f"the checkpoint of {new.size} records does not extend the one of {last.size} that was cosigned"
        )
        return Refused(422, "fork", message)
    return None
