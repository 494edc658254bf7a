"""Keys that sign run tokens: pairs for those who issue, bundles of public ones for those who verify."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.core.errors import InputInvalidError
from perdure.governance.keys import SEED_BYTES, is_weak, private_key
from perdure.governance.spiffe import checked_trust_domain

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey

KEYS_MAX = 100  # the one in use, those that are rotated out, those of other hosts of the same trust domain


@dataclass(frozen=True, slots=True)
class Bundle:
    """The public keys of one trust domain (a SPIFFE trust bundle). Made by :func:`bundle` and :func:`read_bundle`.

    Attributes:
        trust_domain: whose keys they are; they count for no other.
        keys: by their JWK thumbprint (RFC 7638).
    """

    trust_domain: str
    keys: tuple[tuple[str, OKPKey], ...]

    def find(self, kid: str) -> OKPKey | None:
        """The key with that thumbprint."""
        return next((key for name, key in self.keys if name == kid), None)

    def jwks(self) -> str:
        """As JWK Set (RFC 7517), public keys only, for other verifiers."""
        listed = [{**key.as_dict(private=False), "kid": name} for name, key in self.keys]
        return json.dumps({"keys": listed})


def key_pair(seed: bytes) -> OKPKey:
    """A key pair from 32 random bytes; ``thumbprint()`` is its id.

    Raises:
        InputInvalidError: there are more or fewer bytes.
    """
    if len(seed) != SEED_BYTES:
        raise InputInvalidError(f"a key pair is made from {SEED_BYTES} random bytes, found {len(seed)}")
    return private_key(seed)


def bundle(trust_domain: str, keys: Iterable[OKPKey]) -> Bundle:
    """The public halves of keys.

    Raises:
        InputInvalidError: one is no Ed25519 key that can be trusted, or there are more than 100.
    """
    found = {}
    for key in keys:
        public = _public(key.as_dict(private=False))
        found[public.thumbprint()] = public
    if len(found) > KEYS_MAX:
        raise InputInvalidError(f"a trust domain has at most {KEYS_MAX} keys, found {len(found)}")
    return Bundle(checked_trust_domain(trust_domain), tuple(found.items()))


def read_bundle(trust_domain: str, text: str) -> Bundle:
    """Keys from a JWK Set (RFC 7517). Names in it are not believed: a key's id is its thumbprint.

    Raises:
        InputInvalidError: it is none, a key is private or of another kind or can be signed for by anybody.
    """
    try:
        listed = json.loads(text)["keys"]
        keys = [_public(item) for item in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputInvalidError("expected a JWK Set of public Ed25519 keys") from error
    return bundle(trust_domain, keys)


def _public(jwk: Any) -> OKPKey:
    if "d" in jwk:
        raise InputInvalidError("a private key was given where public ones are expected; it is burnt")
    if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
        raise InputInvalidError("expected keys of kind OKP with curve Ed25519")
    from joserfc.errors import JoseError
    from joserfc.jwk import OKPKey

    public = {"kty": "OKP", "crv": "Ed25519", "x": jwk["x"]}
    try:
        key = OKPKey.import_key(public)
    except (JoseError, ValueError) as error:
        raise InputInvalidError("a public key cannot be read") from error
    if is_weak(public["x"]):
        raise InputInvalidError("the public key is a point of small order, for which anybody can sign")
    return key
