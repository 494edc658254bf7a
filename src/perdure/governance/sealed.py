"""Details beside the log, encrypted for each data subject, so that erasing a key erases the data and nothing else.

AES-256-GCM (NIST SP 800-38D). A leaf holds SHA-256 over nonce and ciphertext, which says nothing about what is inside, not
even for a telephone number. Data keys are wrapped by a master key that is kept elsewhere.
"""

from __future__ import annotations

import hashlib

from perdure.core.errors import AuditInvalidError, InputInvalidError

KEY_BYTES = 32
NONCE_BYTES = (
    12  # of chance; one key may seal 2^32 details before a repetition becomes likely (SP 800-38D, 8.3)
)
_WRAP = b"perdure subject key\x00"  # so that a wrapped key never passes for sealed details, or for another subject's


def seal(subject_key: bytes, plaintext: bytes, nonce: bytes, aad: bytes = b"") -> bytes:
    """Nonce and ciphertext.

    Args:
        subject_key: the data key of the subject, 32 bytes.
        plaintext: the details.
        nonce: 12 bytes of chance, never used twice with one key.
        aad: what the details belong to (run and call, say); the same is needed to open them.

    Raises:
        InputInvalidError: key or nonce has another length.
    """
    if len(subject_key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        message = f"sealing needs a key of {KEY_BYTES} and a nonce of {NONCE_BYTES} bytes"
        raise InputInvalidError(message)
    from cryptography.hazmat.primitives.ciphers.aead import (
        AESGCM,  # slow to import: for the first use, not for every start
    )

    return nonce + AESGCM(subject_key).encrypt(nonce, plaintext, aad)


def open_sealed(subject_key: bytes, sealed: bytes, aad: bytes = b"") -> bytes:
    """The details.

    Raises:
        AuditInvalidError: the key, the bytes or ``aad`` are not those of the sealing.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(subject_key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    except (InvalidTag, ValueError) as error:
        raise AuditInvalidError(
            "the sealed details cannot be opened: another key, or changed bytes"
        ) from error


def sealed_digest(sealed: bytes) -> str:
    """What a record says of its sealed details: SHA-256 of nonce and ciphertext, 64 hexadecimal digits."""
    return hashlib.sha256(sealed).hexdigest()


def wrap_key(master_key: bytes, subject_key: bytes, subject: str, nonce: bytes) -> bytes:
    """A subject's data key for the database, under the master key, bound to the subject's name.

    Raises:
        InputInvalidError: a key or the nonce has another length.
    """
    if len(subject_key) != KEY_BYTES:
        raise InputInvalidError(f"a data key has {KEY_BYTES} bytes")
    return seal(master_key, subject_key, nonce, _WRAP + subject.encode())


def unwrap_key(master_key: bytes, wrapped: bytes, subject: str) -> bytes:
    """The data key of a subject.

    Raises:
        AuditInvalidError: another master key, another subject's, or changed bytes.
    """
    return open_sealed(master_key, wrapped, _WRAP + subject.encode())
