"""Details beside the log, encrypted for each subject (AES-256-GCM): when a subject's key is gone, so are they; the log stays whole."""

from __future__ import annotations

import hashlib

from perdure.core.errors import InputInvalidError

KEY_BYTES = 32
NONCE_BYTES = 12


def seal(key: bytes, data: bytes, nonce: bytes) -> bytes:
    """Nonce and ciphertext. A nonce is used once with a key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return nonce + AESGCM(key).encrypt(nonce, data, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """What was sealed.

    Raises:
        InputInvalidError: it was sealed with another key, or changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError) as error:
        raise InputInvalidError(
            "the details cannot be decrypted: another key, or they were changed"
        ) from error


def digest(sealed: bytes) -> str:
    """What the log says of them."""
    return hashlib.sha256(sealed).hexdigest() if sealed else ""
