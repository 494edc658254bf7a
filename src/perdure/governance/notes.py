"""Signed notes (C2SP signed-note v1): a text, an empty line, and lines with signatures of named keys.

Only Ed25519 (RFC 8032): type 0x01 over the text itself, and type 0x04 for the timestamped cosignatures of witnesses (C2SP
tlog-cosignature).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from perdure.core.errors import AuditInvalidError, InputInvalidError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNS = 0x01  # signature type of an Ed25519 signature over a note's text
COSIGNS = 0x04  # of a timestamped Ed25519 cosignature of a checkpoint
NOTE_BYTES_MAX = 64 * 1024  # the format asks for room for 16 signatures of 5 kB at most; ours have 100 bytes
SIGNATURES_MAX = 64
_DASH = "— "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NAME = re.compile(r"[^\s+]+")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: what a verifier is given beforehand, by another way than the log.

    Attributes:
        name: the origin of a log, or the name of a witness.
        public: the 32 bytes of the Ed25519 key.
        kind: ``SIGNS`` for a log, ``COSIGNS`` for a witness.
    """

    name: str
    public: bytes
    kind: int = SIGNS

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.public) != 32 or self.kind not in (SIGNS, COSIGNS):
            raise InputInvalidError(f"the key of `{self.name}` is no Ed25519 key of a log or witness")

    @classmethod
    def of(cls, name: str, private: Ed25519PrivateKey, kind: int = SIGNS) -> Self:
        """The public half of a private key."""
        return cls(name, private.public_key().public_bytes_raw(), kind)

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256 over name, newline, type and key: a hint, never a proof."""
        data = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(data).digest()[:4]

    @property
    def text(self) -> str:
        """As a ``vkey``: ``name+key id+base64(type, key)``."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(bytes([self.kind]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A key from a ``vkey``.

        Raises:
            InputInvalidError: it is none, or its key id does not fit.
        """
        parts = text.strip().split("+", 2)  # base64 may have a `+`, names may not
        if len(parts) == 3:
            data = _unbase64(parts[2])
            if data:
                key = cls(parts[0], data[1:], data[0])
                if key.key_id.hex() == parts[1]:
                    return key
        raise InputInvalidError(f"`{text.strip()[:100]}` is no verifier key; expected `name+id+base64`")

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature over the message is of this key."""
        # Slow to import: for the first use, not for every start.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: ``— name base64(key id, signature)``."""

    name: str
    key_id: bytes
    data: bytes

    @property
    def line(self) -> str:
        """As it stands in a note, with its newline."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.data)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text with signatures that nobody has checked yet.

    Attributes:
        body: the text, with its last newline.
        signatures: in the order of their lines.
    """

    body: str
    signatures: tuple[Signature, ...]

    @property
    def text(self) -> str:
        """The whole note."""
        return f"{self.body}\n{''.join(item.line for item in self.signatures)}"

    def by(self, key: VerifierKey) -> tuple[Signature, ...]:
        """The signatures that say they are of this key."""
        return tuple(item for item in self.signatures if (item.name, item.key_id) == (key.name, key.key_id))

    def signed_with(self, more: Signature) -> Note:
        """With one more signature; one of the same name and key is replaced."""
        signatures = {(item.name, item.key_id): item for item in (*self.signatures, more)}
        return Note(self.body, tuple(signatures.values()))


def parse_note(text: str) -> Note:
    """A note from its text, unchecked.

    Raises:
        AuditInvalidError: it is no signed note.
    """
    body, gap, lines = text.rpartition("\n\n")
    if not gap or not body or not lines.endswith("\n") or _CONTROL.search(text):
        raise AuditInvalidError("the note is malformed: expected a text, an empty line and signature lines")
    if len(text.encode("utf-8", "replace")) > NOTE_BYTES_MAX:
        raise AuditInvalidError(f"the note has more than {NOTE_BYTES_MAX} bytes")
    found = lines[:-1].split("\n")
    if len(found) > SIGNATURES_MAX:
        raise AuditInvalidError(f"the note has more than {SIGNATURES_MAX} signatures")
    return Note(body + "\n", tuple(parse_signature(line) for line in found))


def parse_signature(line: str) -> Signature:
    """One signature line (without its newline).

    Raises:
        AuditInvalidError: it is none.
    """
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    data = _unbase64(encoded)
    if not line.startswith(_DASH) or not _NAME.fullmatch(name) or data is None or len(data) < 5:
        raise AuditInvalidError(f"`{line[:100]}` is no signature line of a note")
    return Signature(name, data[:4], data[4:])


def check_name(name: str) -> str:
    """The name, if keys may have it.

    Raises:
        InputInvalidError: it is empty or has spaces, control characters or a plus.
    """
    if not _NAME.fullmatch(name) or _CONTROL.search(name):
        raise InputInvalidError(f"`{name[:100]}` cannot name a key; expected no spaces and no plus")
    return name


def sign_note(body: str, name: str, private: Ed25519PrivateKey) -> Note:
    """A note with one signature over its text.

    Raises:
        InputInvalidError: the text does not end in a newline or has control characters, or the name may not be used.
    """
    if not body.endswith("\n") or _CONTROL.search(body):
        raise InputInvalidError("a note's text ends in a newline and has no control characters")
    key = VerifierKey.of(name, private)
    return Note(body, (Signature(name, key.key_id, private.sign(body.encode())),))


def verify_note(note: Note, key: VerifierKey) -> None:
    """Check that ``key`` signed the text; signatures of other keys count for nothing.

    Raises:
        AuditInvalidError: there is no signature of that key, or one that does not verify.
    """
    found = note.by(key)
    if not found:
        named = (
            "another key of that name" if any(item.name == key.name for item in note.signatures) else "others"
        )
        message = f"the note is not signed by the key {key.key_id.hex()} of `{key.name}`, but by {named}"
        raise AuditInvalidError(message, name=key.name)
    if key.kind != SIGNS or not all(key.has_signed(note.body.encode(), item.data) for item in found):
        raise AuditInvalidError(f"the signature of `{key.name}` does not fit the note", name=key.name)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _base64(data) == text else None  # one way to write it, so that a note has one text
