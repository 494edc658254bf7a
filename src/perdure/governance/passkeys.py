"""Passkeys (WebAuthn) as a second kind of signature under a grant.

A passkey cannot sign a JWS, so its assertion travels in an envelope of its own. Its challenge is the SHA-256 of the same
canonical statement that a JWS signs, so both kinds can stand together under one decision: see ``governance.signed``. How a
passkey is registered is in ``governance.passkey_registration``.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError, UsageError
from perdure.core.ids import checked_name
from perdure.core.verdicts import Demand, Reason
from perdure.governance import grant_errors as errors
from perdure.governance.claims import ActionClaim
from perdure.governance.grants import BYTES_MAX, SIGNATURES_MAX, Granted, judge, signatures
from perdure.governance.keys import is_weak
from perdure.governance.statements import Statement

TYPE = "perdure-grant+webauthn"
# Members of a registered key beside those of RFC 7517: the credential's id, and for whom it signs.
CREDENTIAL = "credential"
RP_ID = "rp_id"
ORIGINS = "origins"
ORIGINS_MAX = 16  # pages that may ask for one passkey
_BASE64 = re.compile(r"[A-Za-z0-9_-]+")
_ALGORITHMS = {("EC", "P-256"): -7, ("OKP", "Ed25519"): -8}  # COSE: ES256 and EdDSA


@dataclass(frozen=True, slots=True, kw_only=True)
class RelyingParty:
    """For whom a passkey signs: its ``id`` (a domain) and the pages (``origins``) that may ask for it."""

    id: str
    origins: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.id or not 1 <= len(self.origins) <= ORIGINS_MAX or not all(self.origins):
            raise InputInvalidError(
                f"a passkey needs its domain and 1 to {ORIGINS_MAX} origins such as `https://approve.example`"
            )

    @classmethod
    def of(cls, key: KeyRecord) -> Self:
        """That of a registered passkey.

        Raises:
            InputInvalidError: the row has none.
        """
        found = json.loads(key.jwk)
        return cls(id=found.get(RP_ID, ""), origins=tuple(found.get(ORIGINS, ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asserted:
    """An assertion that holds: what it signed, with which key, and the counter to store for that key."""

    payload: bytes
    key: KeyRecord
    sign_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedGranted:
    """A grant that counts, and the counters of its passkeys by key id: store them in the transaction that keeps it."""

    granted: Granted
    sign_counts: Mapping[str, int]


class _Response(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    client_data: str = msgspec.field(name="clientDataJSON")
    authenticator_data: str = msgspec.field(name="authenticatorData")
    signature: str


class _Assertion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    type: str
    response: _Response


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    typ: str
    payload: str
    assertion: _Assertion


def challenge(statement: Statement) -> bytes:
    """What a passkey is asked to sign for a decision: 32 bytes."""
    return hashlib.sha256(canonical(msgspec.to_builtins(statement))).digest()


def envelope(statement: Statement, credential: str, response: Mapping[str, str]) -> str:
    """The assertion of a passkey over a decision, as it is handed in.

    Args:
        statement: what was decided.
        credential: the credential's id, base64url.
        response: ``clientDataJSON``, ``authenticatorData`` and ``signature``, base64url; others are left out.
    """
    parts = {name: response[name] for name in ("clientDataJSON", "authenticatorData", "signature")}
    made = {
        "typ": TYPE,
        "payload": urlsafe_b64encode(canonical(msgspec.to_builtins(statement))).rstrip(b"=").decode(),
        "assertion": {"id": credential, "type": "public-key", "response": parts},
    }
    return msgspec.json.encode(made).decode()


def passkey_record(
    jwk: Mapping[str, Any],
    credential: str,
    person: str,
    roles: Sequence[str],
    *,
    relying_party: RelyingParty,
    now_ms: int,
    sign_count: int = 0,
) -> KeyRecord:
    """The row that registers a passkey.

    Args:
        jwk: its public key: P-256 (ES256) or Ed25519.
        credential: the credential's id, base64url.
        person: who holds it.
        roles: what they may approve.
        relying_party: for whom it signs; an assertion for another domain or page counts for nothing.
        now_ms: the time.
        sign_count: the counter at its registration.

    Raises:
        InputInvalidError: the key is private, of another kind or no point of its curve, or a name is missing.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey  # slow to import: where keys are registered, not for every start

    kind = (jwk.get("kty"), jwk.get("crv"))
    if "d" in jwk or kind not in _ALGORITHMS:
        raise InputInvalidError("expected a public key, P-256 or Ed25519; the runtime takes no others")
    public = {name: jwk[name] for name in ("kty", "crv", "x", "y") if name in jwk}
    if isinstance(roles, str) or not roles:
        raise InputInvalidError("a key needs a list of roles, such as `approver`")
    if kind[0] == "OKP" and is_weak(str(public.get("x", ""))):
        raise InputInvalidError("the public key is a point of small order, for which anybody can sign")
    if not _BASE64.fullmatch(credential):
        raise InputInvalidError("the id of a credential is base64url")
    try:
        key: Any = (ECKey if kind[0] == "EC" else OKPKey).import_key(public)
        kid = key.thumbprint()
    except (JoseError, ValueError, KeyError) as error:
        raise InputInvalidError("a public key cannot be read") from error
    return KeyRecord(
        kid=kid,
        person=checked_name("a person", person),
        roles=tuple(checked_name("a role", role) for role in roles),
        kind="passkey",
        jwk=json.dumps(
            {**public, CREDENTIAL: credential, RP_ID: relying_party.id, ORIGINS: list(relying_party.origins)}
        ),
        created_ms=now_ms,
        sign_count=sign_count,
    )


def assertion(text: str, *, keys: Mapping[str, KeyRecord], now_ms: int, is_counted: bool = False) -> Asserted:
    """Verify one envelope: shape, key, and the assertion with user verification and a counter that grows.

    Args:
        text: the envelope.
        keys: the registered keys by their id; each passkey says for whom it signs.
        now_ms: the time.
        is_counted: it arrived before and its counter was looked at then; everything else is verified again.

    Raises:
        GrantRefusedError: it does not hold; the subclass says why.
        UsageError: the extra ``passkeys`` is not installed.
    """
    found = _parsed(text)
    payload = _bytes(found.payload)
    key = _key(found.assertion.id, keys, now_ms)
    response = found.assertion.response
    client, *_ = (
        _bytes(part) for part in (response.client_data, response.authenticator_data, response.signature)
    )
    if _is_embedded(client):
        raise errors.GrantSignatureInvalidError("the passkey was asked by a page inside another page")
    webauthn = library()
    credential = {
        "id": found.assertion.id,
        "rawId": found.assertion.id,
        "type": found.assertion.type,
        "response": msgspec.to_builtins(response),
    }
    try:
        relying_party = RelyingParty.of(key)
        verified = webauthn.verify_authentication_response(
            credential=credential,
            expected_challenge=hashlib.sha256(payload).digest(),
            expected_rp_id=relying_party.id,
            expected_origin=list(relying_party.origins),
            credential_public_key=_cose(json.loads(key.jwk)),
            credential_current_sign_count=0,  # looked at below
            require_user_verification=True,
        )
    except (
        webauthn.helpers.exceptions.WebAuthnException,
        InputInvalidError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        message = f"the assertion of the passkey `{key.kid}` does not hold: {error!s:.200}"
        raise errors.GrantSignatureInvalidError(message) from error
    count = verified.new_sign_count
    # A passkey that never counted says 0 for ever (those that are synchronised do); one that has counted must go on.
    if not is_counted and (count or key.sign_count) and count <= key.sign_count:
        message = (
            f"the counter of the passkey `{key.kid}` of `{key.person}` is {count} and was {key.sign_count} before: "
            "it may have been copied; revoke it"
        )
        raise errors.GrantCounterError(message, found=count, expected=key.sign_count + 1)
    return Asserted(payload=payload, key=key, sign_count=count)


def library() -> Any:
    """The library, imported where it is needed: it takes a quarter of a second.

    Raises:
        UsageError: the extra ``passkeys`` is not installed.
    """
    try:
        import webauthn.helpers.exceptions
    except ImportError as error:
        raise UsageError("passkeys need `pip install perdure[passkeys]`") from error
    return webauthn


def verify_envelopes(
    envelopes: Sequence[str],
    *,
    claim: ActionClaim,
    reasons: Sequence[Reason],
    keys: Mapping[str, KeyRecord],
    demands: Sequence[Demand],
    audience: str,
    now_ms: int,
    counted: Collection[str] = (),
) -> MixedGranted:
    """Whether JWS and passkeys together, over one and the same payload, count for an action, now.

    Args:
        envelopes: JWS General JSON and passkey envelopes, in any order.
        claim: the action that is about to be done.
        reasons: why it is held, as its approver was shown.
        keys: the registered keys by their id.
        demands: every one must be met.
        audience: the id of this runtime.
        now_ms: the time.
        counted: those of the envelopes that arrived before, whose counters were looked at then.

    Raises:
        GrantRefusedError: they do not; the subclass says why.
    """
    if not 1 <= len(envelopes) <= SIGNATURES_MAX:
        raise errors.GrantMalformedError(f"expected 1 to {SIGNATURES_MAX} envelopes, found {len(envelopes)}")
    payloads: set[bytes] = set()
    signers: list[KeyRecord] = []
    counts: dict[str, int] = {}
    for text in envelopes:
        if is_passkey(text):
            one = assertion(text, keys=keys, now_ms=now_ms, is_counted=text in counted)
            payloads.add(one.payload)
            signers.append(one.key)
            counts[one.key.kid] = max(one.sign_count, counts.get(one.key.kid, 0))
        else:
            payload, more = signatures(text, keys=keys, now_ms=now_ms)
            payloads.add(payload)
            signers.extend(more)
    if len(signers) > SIGNATURES_MAX:
        raise errors.GrantMalformedError(
            f"a grant has at most {SIGNATURES_MAX} signatures, found {len(signers)}"
        )
    if len(payloads) > 1:
        raise errors.GrantMalformedError("the envelopes are about different decisions")
    digest = hashlib.sha256("\n".join(envelopes).encode()).hexdigest()
    granted = judge(
        payloads.pop(), signers, digest, claim=claim, reasons=reasons, demands=demands, audience=audience, now_ms=now_ms
    )  # fmt: skip
    return MixedGranted(granted=granted, sign_counts=counts)


def payload_of(text: str) -> bytes:
    """What an envelope says was signed; nothing of it is verified.

    Raises:
        GrantMalformedError: it is none.
    """
    return _bytes(_parsed(text).payload)


def is_passkey(text: str) -> bool:
    """Whether this claims to be the envelope of a passkey; nothing of it is verified."""
    return f'"{TYPE}"' in text[:BYTES_MAX]


def _parsed(text: str) -> _Envelope:
    if len(text) > BYTES_MAX:
        raise errors.GrantMalformedError(f"an envelope has at most {BYTES_MAX} characters, found {len(text)}")
    try:
        found = msgspec.json.decode(text.encode(), type=_Envelope)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.GrantMalformedError(f"this is no envelope of a passkey: {error}") from error
    # Only the one compact form counts, so that no member can be there twice.
    if msgspec.json.encode(found).decode() != text or found.typ != TYPE:
        raise errors.GrantMalformedError("the envelope is not in its compact form, with each member once")
    return found


def _bytes(text: str) -> bytes:
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise errors.GrantMalformedError("a part of the envelope is not base64url") from error
    if urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise errors.GrantMalformedError("a part of the envelope is not base64url in its only form")
    return data


def _key(credential: str, keys: Mapping[str, KeyRecord], now_ms: int) -> KeyRecord:
    for key in keys.values():
        if key.kind == "passkey" and json.loads(key.jwk).get(CREDENTIAL) == credential:
            if key.revoked_ms is not None and key.revoked_ms <= now_ms:
                raise errors.GrantKeyRevokedError(f"the passkey `{key.kid}` of `{key.person}` was revoked")
            return key
    raise errors.GrantKeyUnknownError(f"no passkey `{credential[:60]}` is registered")


def _is_embedded(client: bytes) -> bool:
    try:
        data = json.loads(client)
    except (ValueError, RecursionError) as error:
        raise errors.GrantMalformedError("the client data of the passkey is no JSON") from error
    return not isinstance(data, dict) or data.get("crossOrigin", False) is not False or "topOrigin" in data


def _cose(jwk: Mapping[str, str]) -> bytes:
    """A public key as the CBOR of RFC 9053: a small map of integers and 32-byte strings, so it is written by hand."""
    x = b"\x21\x58\x20" + _bytes(jwk["x"])
    if jwk["kty"] == "OKP":
        return b"\xa4\x01\x01\x03\x27\x20\x06" + x
    return b"\xa5\x01\x02\x03\x26\x20\x01" + x + b"\x22\x58\x20" + _bytes(jwk["y"])
