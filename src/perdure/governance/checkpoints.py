"""Checkpoints: what a log says about itself, signed (C2SP tlog-checkpoint), and cosigned by witnesses (C2SP tlog-cosignature).

A checkpoint commits to every record before it. Alone it proves what a log said to whoever holds it; only somebody who saw an
earlier one, such as a witness, can tell that nothing was taken back since.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance.merkle import EMPTY_ROOT, HASH_BYTES
from perdure.governance.notes import (
    COSIGNS,
    Note,
    Signature,
    VerifierKey,
    check_name,
    parse_note,
    sign_note,
    verify_note,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TIME = "at_ms "  # our one extension line
_SIZE_DIGITS_MAX = 19  # 2^63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log's tree.

    Attributes:
        origin: the log's name, by which its key goes too.
        size: how many records it has.
        root: the root hash over them.
        extensions: further lines, as they stand.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def at_ms(self) -> int | None:
        """When the log says it was made, in milliseconds since 1970; nobody else vouches for it."""
        for line in self.extensions:
            if line.startswith(_TIME) and line[len(_TIME) :].isdecimal():
                return int(line[len(_TIME) :])
        return None

    @property
    def body(self) -> str:
        """The text that is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


def checkpoint(origin: str, size: int, root: bytes, at_ms: int | None = None) -> Checkpoint:
    """A checkpoint to be signed, with its time as an extension line.

    Raises:
        InputInvalidError: the origin may not be used, or the root does not fit the size.
    """
    check_name(origin)
    if size < 0 or len(root) != HASH_BYTES or (size == 0 and root != EMPTY_ROOT):
        raise InputInvalidError(f"a checkpoint of size {size} cannot have that root", size=size)
    return Checkpoint(origin, size, root, () if at_ms is None else (f"{_TIME}{at_ms}",))


def sign_checkpoint(made: Checkpoint, private: Ed25519PrivateKey) -> str:
    """The signed note of a checkpoint; the key goes by the log's origin."""
    return sign_note(made.body, made.origin, private).text


def parse_checkpoint(note: str | Note) -> Checkpoint:
    """What a checkpoint says, unchecked.

    Raises:
        AuditInvalidError: it is no checkpoint.
    """
    body = (parse_note(note) if isinstance(note, str) else note).body
    origin, *rest = body[:-1].split("\n")
    if len(rest) < 2 or not all((origin, *rest)):
        raise AuditInvalidError("the checkpoint is malformed: expected origin, size and root")
    size, root = read_size(rest[0]), read_hash(rest[1])
    if size is None or root is None or (size == 0 and root != EMPTY_ROOT):
        raise AuditInvalidError("the checkpoint is malformed: its size or root is not one", origin=origin)
    return Checkpoint(origin, size, root, tuple(rest[2:]))


def open_checkpoint(note: str, key: VerifierKey) -> Checkpoint:
    """What a checkpoint says, if ``key`` signed it and the origin is that of the key.

    Raises:
        AuditInvalidError: it is malformed, of another origin, or not signed by that key.
    """
    parsed = parse_note(note)
    found = parse_checkpoint(parsed)
    if found.origin != key.name:
        message = f"the checkpoint is of `{found.origin}`, not of `{key.name}`"
        raise AuditInvalidError(message, found=found.origin, expected=key.name)
    verify_note(parsed, key)
    return found


# -- witnesses
def cosign(body: str, name: str, private: Ed25519PrivateKey, time_s: int) -> Signature:
    """A witness's cosignature: that at ``time_s`` (seconds since 1970) this was the largest consistent tree it had seen.

    Whoever calls this has checked the consistency; see ``governance.witness``.
    """
    key = VerifierKey.of(name, private, COSIGNS)
    return Signature(name, key.key_id, time_s.to_bytes(8, "big") + private.sign(_cosigned(body, time_s)))


def cosigned_at_s(note: str | Note, key: VerifierKey) -> int:
    """When the witness cosigned, in seconds since 1970.

    Raises:
        AuditInvalidError: there is no cosignature of that key, or one that does not verify.
    """
    parsed = parse_note(note) if isinstance(note, str) else note
    parse_checkpoint(parsed)
    found = parsed.by(key)
    if not found or key.kind != COSIGNS:
        raise AuditInvalidError(f"the checkpoint is not cosigned by the witness `{key.name}`", name=key.name)
    times_s = []
    for item in found:
        time_s = int.from_bytes(item.data[:8], "big")
        if len(item.data) != 72 or not 0 < time_s < 2**63:
            raise AuditInvalidError(f"the cosignature of `{key.name}` is malformed", name=key.name)
        if not key.has_signed(_cosigned(parsed.body, time_s), item.data[8:]):
            raise AuditInvalidError(f"the cosignature of `{key.name}` does not fit", name=key.name)
        times_s.append(time_s)
    return max(times_s)


def add_cosignatures(note: str, more: Iterable[Signature], keys: Iterable[VerifierKey]) -> str:
    """The note with those cosignatures that verify under one of ``keys``; the others are left out."""
    parsed = parse_note(note)
    for signature in more:
        for key in keys:
            if (signature.name, signature.key_id) == (key.name, key.key_id):
                try:
                    cosigned_at_s(Note(parsed.body, (signature,)), key)
                except AuditInvalidError:
                    continue
                parsed = parsed.signed_with(signature)
    return parsed.text


def _cosigned(body: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{body}".encode()


def read_size(text: str) -> int | None:
    """A tree size as the formats write it: decimal, without leading zeroes."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS_MAX
    return int(text) if is_number and (text == "0" or text[0] != "0") else None


def read_hash(text: str) -> bytes | None:
    """A hash as the formats write it: base64 (RFC 4648, section 4), in the one way there is."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == HASH_BYTES and base64.b64encode(data).decode() == text else None
