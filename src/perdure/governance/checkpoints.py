"""Signed heads of the audit log: C2SP tlog-checkpoint in a C2SP signed note, with Ed25519."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.core.errors import InputInvalidError
from perdure.governance.merkle import is_consistent

ED25519 = b"\x01"  # the kind of key in a signed note
ID_BYTES = 4
HASH_BYTES = 32
NOTE_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a log: ``size`` leaves under ``root``."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The signed lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


class Signer:
    """Signs heads under a name.

    Args:
        name: of the log or the witness; without spaces and ``+``.
        seed: 32 secret bytes.
    """

    def __init__(self, name: str, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def verifier(self) -> str:
        """The public key as text: ``name+id+key``, as C2SP signed-note writes it."""
        return verifier_key(self.name, self.public)

    def signature(self, text: str) -> str:
        """A signature line."""
        data = key_id(self.name, self.public) + self._key.sign(text.encode())
        return f"\u2014 {self.name} {base64.b64encode(data).decode()}\n"

    def sign_bytes(self, data: bytes) -> bytes:
        """A bare Ed25519 signature."""
        return self._key.sign(data)

    def sign(self, head: Head) -> str:
        """A signed note."""
        return f"{head.text}\n{self.signature(head.text)}"


def key_id(name: str, public: bytes) -> bytes:
    """Four bytes that tell keys of one name apart."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:ID_BYTES]


def verifier_key(name: str, public: bytes) -> str:
    """A public key as text."""
    return f"{name}+{key_id(name, public).hex()}+{base64.b64encode(ED25519 + public).decode()}"


def read_verifier(text: str) -> tuple[str, bytes]:
    """Name and public key of a verifier key.

    Raises:
        InputInvalidError: it is none.
    """
    name, _, rest = text.strip().partition("+")
    hashed, _, encoded = rest.partition("+")
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise InputInvalidError("a verifier key is `name+id+key`") from error
    if data[:1] != ED25519 or len(data) != 1 + HASH_BYTES or key_id(name, data[1:]).hex() != hashed:
        raise InputInvalidError("a verifier key is `name+id+key`, and its id must fit")
    return name, data[1:]


def read_note(note: str) -> tuple[Head, list[tuple[str, bytes]]]:
    """A signed note: its head, and the name and data of each signature. Nothing is verified.

    Raises:
        InputInvalidError: it is none.
    """
    text, blank, signatures = note.partition("\n\n")
    lines = text.split("\n")
    try:
        if not blank or len(note) > NOTE_MAX or len(lines) < 3:
            raise ValueError
        if str(int(lines[1])) != lines[1] or int(lines[1]) < 0:
            raise ValueError
        head = Head(lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True))
        if head.text != f"{text}\n" or len(head.root) != HASH_BYTES:
            raise ValueError
        found = []
        for line in signatures.splitlines():
            dash, name, encoded = line.split(" ")
            if dash != "\u2014":
                raise ValueError
            found.append((name, base64.b64decode(encoded, validate=True)))
    except ValueError as error:
        raise InputInvalidError(
            "this is no checkpoint (origin, size, root, a blank line, signatures)"
        ) from error
    return head, found


def is_signed(note: str, name: str, public: bytes) -> bool:
    """Whether a note carries a good signature of a key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    head, signatures = read_note(note)
    for signer, data in signatures:
        if signer != name or data[:ID_BYTES] != key_id(name, public):
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(data[ID_BYTES:], head.text.encode())
        except InvalidSignature:
            return False
        return True
    return False


def witness(
    last: Head | None, note: str, proof: Sequence[bytes], *, name: str, public: bytes, signer: Signer
) -> tuple[Head, str]:
    """Co-sign a new head, if it continues the one that was co-signed last: the answer to rewriting, cutting and forking.

    Args:
        last: what this witness has co-signed last.
        note: the new checkpoint.
        proof: that the old tree is its beginning.
        name: the name of the log.
        public: the public key of the log.
        signer: the witness.

    Returns:
        The new head, to be remembered before the note is given out, and the note with one more signature.

    Raises:
        InputInvalidError: it is not signed by the log, or does not continue what was co-signed.
    """
    head, _ = read_note(note)
    if not is_signed(note, name, public):
        raise InputInvalidError(f"the checkpoint is not signed by `{name}`")
    if last is not None:
        if head.origin != last.origin:
            raise InputInvalidError(
                f"the checkpoint is of `{head.origin}`, this witness knows `{last.origin}`"
            )
        if head.size < last.size:
            raise InputInvalidError(f"the log was cut from {last.size} to {head.size} records")
        if not is_consistent(last.size, head.size, last.root, head.root, proof):
            raise InputInvalidError(
                f"the log does not continue the {last.size} records that were co-signed: it was rewritten"
            )
    return head, note + signer.signature(head.text)
