"""The keys of subjects: made when they are first needed, kept encrypted, and gone for good when they are dropped."""

from __future__ import annotations

from collections import OrderedDict

from perdure.core.errors import InputInvalidError
from perdure.governance.sealed import KEY_BYTES, NONCE_BYTES, open_sealed, seal, unwrap_key, wrap_key
from perdure.ports import Entropy, Transaction

CACHED_MAX = 1_000


class Vault:
    """Seals details for subjects.

    Args:
        master: 32 secret bytes that encrypt the keys of subjects.
        entropy: makes keys and nonces.
    """

    def __init__(self, master: bytes, entropy: Entropy) -> None:
        self._master = master
        self._entropy = entropy
        self._keys: OrderedDict[bytes, bytes] = (
            OrderedDict()
        )  # by their encrypted form: an erased one is not found again

    def seal(self, tx: Transaction, subject: str, data: bytes) -> bytes:
        """Encrypted details."""
        wrapped = tx.subject_key(subject)
        if wrapped is None:
            key = self._bytes(KEY_BYTES)
            wrapped = wrap_key(self._master, key, subject, self._bytes(NONCE_BYTES))
            tx.put_subject_key(subject, wrapped)
        return seal(self._unwrapped(wrapped, subject), data, self._bytes(NONCE_BYTES))

    def unseal(self, tx: Transaction, subject: str, sealed: bytes) -> bytes:
        """What was sealed.

        Raises:
            InputInvalidError: the subject's key was erased.
            AuditInvalidError: the details were changed.
        """
        wrapped = tx.subject_key(subject)
        if wrapped is None:
            raise InputInvalidError("the details were erased")
        return open_sealed(self._unwrapped(wrapped, subject), sealed)

    def _unwrapped(self, wrapped: bytes, subject: str) -> bytes:
        key = self._keys.get(wrapped)
        if key is None:
            key = self._keys[wrapped] = unwrap_key(self._master, wrapped, subject)
            if len(self._keys) > CACHED_MAX:
                self._keys.popitem(last=False)
        return key

    def _bytes(self, count: int) -> bytes:
        return self._entropy.bits(8 * count).to_bytes(count, "big")
