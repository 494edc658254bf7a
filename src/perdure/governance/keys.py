"""Keys of approvers: made, read, registered. A runtime has public ones only."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.core.approvals import KeyRecord
from perdure.core.errors import InputInvalidError
from perdure.core.ids import checked_name

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey

SEED_BYTES = 32
PUBLIC_BYTES = 32
KEYS_MAX = 1_000
_FIELD = 2**255 - 19
# Points of small order: anybody can make a signature that such a "key" accepts (the y coordinates, RFC 8032 and beyond).
_WEAK = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303021456,
        _FIELD - 2707385501144840649318225287225658788936804267575313519463743609750303021456,
    }
)


def private_key(seed: bytes) -> OKPKey:
    """An Ed25519 key pair from 32 random bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from joserfc.jwk import OKPKey  # a tenth of a second: where keys are used, not for every start

    return OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(seed))


def read_private(text: str) -> OKPKey:
    """A private key as its holder keeps it: JWK (RFC 7517, RFC 8037).

    Raises:
        InputInvalidError: it is none.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import OKPKey

    try:
        key = OKPKey.import_key(json.loads(text))
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise InputInvalidError("this is no private key in JWK form") from error
    if key.as_dict(private=False).get("crv") != "Ed25519" or not key.is_private:
        raise InputInvalidError("expected a private key with `crv` Ed25519")
    return key


def write_private(key: OKPKey) -> str:
    """A private key as JWK, for its holder alone."""
    return json.dumps(key.as_dict(private=True))


def public_record(key: OKPKey, person: str, roles: Sequence[str], now_ms: int) -> KeyRecord:
    """The row that registers the public half of a key."""
    public = key.as_dict(private=False)
    return _record(public, person, roles, now_ms)


def from_jwks(text: str, now_ms: int) -> list[KeyRecord]:
    """Keys of a team from a JWK Set (RFC 7517) whose keys carry ``person`` and ``roles``.

    Raises:
        InputInvalidError: it is none, a key is private or of another kind, a person or roles are missing, one is there twice.
    """
    try:
        listed = json.loads(text)["keys"]
        found = [_record(item, item["person"], item["roles"], now_ms) for item in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise InputInvalidError(
            f"expected a JWK Set whose keys have `person` and `roles`: {error!r:.200}"
        ) from error
    if len({item.kid for item in found}) < len(found) or len(found) > KEYS_MAX:
        raise InputInvalidError(f"expected at most {KEYS_MAX} keys, each once")
    return found


def _record(jwk: Any, person: str, roles: Sequence[str], now_ms: int) -> KeyRecord:
    if "d" in jwk:
        raise InputInvalidError(
            "a private key was given; the runtime takes public keys only, and this one is burnt"
        )
    if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
        raise InputInvalidError(
            f"expected a key of kind OKP with curve Ed25519, found {jwk.get('kty')!r} {jwk.get('crv')!r}"
        )
    if isinstance(roles, str) or not roles:
        raise InputInvalidError("a key needs a list of roles, such as `approver`")
    from joserfc.errors import JoseError
    from joserfc.jwk import OKPKey

    public = {"kty": "OKP", "crv": "Ed25519", "x": jwk["x"]}
    try:
        kid = OKPKey.import_key(public).thumbprint()
    except (JoseError, ValueError) as error:
        raise InputInvalidError("a public key cannot be read") from error
    if is_weak(public["x"]):
        raise InputInvalidError("the public key is a point of small order, for which anybody can sign")
    return KeyRecord(
        kid=kid,
        person=checked_name("a person", person),
        roles=tuple(checked_name("a role", role) for role in roles),
        kind="ed25519",
        jwk=json.dumps(public),
        created_ms=now_ms,
    )


def is_weak(x: str) -> bool:
    """Whether the ``x`` of a public key (RFC 8037, base64url) is no point that can be trusted: of small order, or out of range."""
    data = urlsafe_b64decode(x + "=" * (-len(x) % 4))
    height = int.from_bytes(data, "little") & (2**255 - 1)
    return len(data) != PUBLIC_BYTES or height >= _FIELD or height in _WEAK
