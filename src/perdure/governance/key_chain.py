"""How one key of a log follows another: the old one signs, in a record of the log, which key signs from there on.

Whoever has the first public key finds all the others in the log itself. ``verify_file.py`` follows them; a checkpoint that ends with the
record may be signed by both, a larger one only by the new key.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from perdure.core.audit import AuditRecord
from perdure.core.errors import InputInvalidError
from perdure.governance.notes import SIGNS, VerifierKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def naming(origin: str, index: int, new: VerifierKey) -> bytes:
    """What the old key signs. Its first line is no origin of ours, so that it never passes for a checkpoint.

    Args:
        origin: the log's name.
        index: the place of the record, from 0: the signature is good for no other.
        new: the key that follows.
    """
    return f"perdure-audit-key/v1\n{origin}\n{index}\n{new.text}\n".encode()


def key_record(
    index: int, old: Ed25519PrivateKey, new: VerifierKey, *, at_ms: int, by: str, reason: str = ""
) -> AuditRecord:
    """The record at ``index`` by which the old key names the new one.

    Raises:
        InputInvalidError: the new key is no key of a log.
    """
    if new.kind != SIGNS:
        raise InputInvalidError(f"the key of `{new.name}` is a witness's, not a log's")
    signature = base64.b64encode(old.sign(naming(new.name, index, new))).decode()
    refs = {"key": new.text, "signature": signature, **({"note": reason} if reason else {})}
    return AuditRecord(kind="key", at_ms=at_ms, name=new.name, by=by, refs=refs)
