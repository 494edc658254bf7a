"""Registering a passkey (WebAuthn, section 7.1), and what a page is told to ask it for.

The challenge of an invitation is good for one registration within its time; whoever keeps invitations sees to that. Attestation is
not asked for: which person holds the passkey is what the invitation says, by whom it was given to.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.errors import InputInvalidError
from perdure.core.ids import checked_name
from perdure.governance.passkeys import CREDENTIAL, RelyingParty, library, passkey_record

CHALLENGE_BYTES = 32
LIFE_MS = 3_600_000  # how long an invitation may wait: until the person has sat down at the machine with the passkey
INVITATIONS_MAX = 100  # that wait at once
RESPONSE_BYTES_MAX = 65_536  # an attestation with a chain of certificates has 10 kB
_ES256, _EDDSA = -7, -8  # COSE algorithms
_TIMEOUT_MS = 300_000  # how long the browser lets the person look for the device


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """That a person may register one passkey.

    Attributes:
        challenge: 32 random bytes, base64url.
        person: who will hold it.
        roles: what they may approve.
        rp_id: the domain for which it will sign.
        origins: the pages that may ask for it.
        until_ms: until when.
    """

    challenge: str
    person: str
    roles: tuple[str, ...]
    rp_id: str
    origins: tuple[str, ...]
    until_ms: int


def invite(
    person: str, roles: Sequence[str], *, relying_party: RelyingParty, challenge: bytes, now_ms: int
) -> Invitation:
    """An invitation, to be kept until its passkey comes.

    Raises:
        InputInvalidError: a name cannot be used, there are no roles, or an origin is no page of the domain.
    """
    if isinstance(roles, str) or not roles:
        raise InputInvalidError("a key needs a list of roles, such as `approver`")
    for origin in relying_party.origins:
        host = origin.partition("://")[2].partition(":")[0]
        is_local = host == "localhost"  # the one place where browsers do this without TLS
        if not (host == relying_party.id or host.endswith(f".{relying_party.id}")) or not (
            origin.startswith("https://") or (is_local and origin.startswith("http://"))
        ):
            raise InputInvalidError(
                f"the origin `{origin[:100]}` is no https page of `{relying_party.id}`; a browser would refuse"
            )
    return Invitation(
        challenge=_base64(challenge),
        person=checked_name("a person", person),
        roles=tuple(checked_name("a role", role) for role in roles),
        rp_id=relying_party.id,
        origins=relying_party.origins,
        until_ms=now_ms + LIFE_MS,
    )


def creation_options(invitation: Invitation, known: Iterable[KeyRecord]) -> dict[str, Any]:
    """What a page gives to ``navigator.credentials.create`` (after ``parseCreationOptionsFromJSON``).

    Args:
        invitation: for whom.
        known: keys that are registered; a device that has one of them is not registered again.
    """
    return {
        "rp": {"id": invitation.rp_id, "name": "Perdure"},
        "user": {
            # A name for the device to file it under, which tells nobody who it is.
            "id": _base64(hashlib.sha256(invitation.person.encode()).digest()),
            "name": invitation.person,
            "displayName": invitation.person,
        },
        "challenge": invitation.challenge,
        "pubKeyCredParams": [{"type": "public-key", "alg": alg} for alg in (_ES256, _EDDSA)],
        "excludeCredentials": _descriptors(known, invitation.rp_id),
        "authenticatorSelection": {"residentKey": "preferred", "userVerification": "required"},
        "attestation": "none",
        "timeout": _TIMEOUT_MS,
    }


def request_options(challenge: bytes, rp_id: str, keys: Iterable[KeyRecord]) -> dict[str, Any]:
    """What a page gives to ``navigator.credentials.get`` (after ``parseRequestOptionsFromJSON``) to have a decision signed.

    Args:
        challenge: of the statement.
        rp_id: the domain of the page.
        keys: registered keys; only passkeys of that domain are asked for.
    """
    return {
        "challenge": _base64(challenge),
        "rpId": rp_id,
        "allowCredentials": _descriptors(keys, rp_id),
        "userVerification": "required",
        "timeout": _TIMEOUT_MS,
    }


def answered(text: str, invitations: Iterable[Invitation], now_ms: int) -> Invitation:
    """The invitation that a response answers; the response is not verified.

    Raises:
        InputInvalidError: it is no response, or its invitation is used, over or was never made.
    """
    challenge = _client(text).get("challenge")
    for invitation in invitations:
        if invitation.challenge == challenge and now_ms < invitation.until_ms:
            return invitation
    raise InputInvalidError(
        "the response answers no invitation that is open; make one with `perdure keys invite`, it counts once and for an hour"
    )


def registered(text: str, invitation: Invitation, now_ms: int) -> KeyRecord:
    """The row that registers the passkey of a response: as ``PublicKeyCredential.toJSON`` writes it.

    Raises:
        InputInvalidError: it does not hold: another challenge, origin, domain or algorithm, or the person was not verified.
        UsageError: the extra ``passkeys`` is not installed.
    """
    client = _client(text)
    if client.get("crossOrigin", False) is not False or "topOrigin" in client:
        raise InputInvalidError("the passkey was made by a page inside another page")
    webauthn = library()
    algorithms = webauthn.helpers.cose.COSEAlgorithmIdentifier
    try:
        found = webauthn.verify_registration_response(
            credential=json.loads(text),
            expected_challenge=urlsafe_b64decode(invitation.challenge + "="),
            expected_rp_id=invitation.rp_id,
            expected_origin=list(invitation.origins),
            require_user_verification=True,
            supported_pub_key_algs=[algorithms(_ES256), algorithms(_EDDSA)],
        )
        public = webauthn.helpers.decode_credential_public_key(found.credential_public_key)
    except Exception as error:
        # The library lets what its parsers of CBOR and certificates raise through; whatever it is, the answer is no.
        raise InputInvalidError(f"the passkey cannot be registered: {error!s:.200}") from error
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": _base64(public.x)}
    if public.alg == _ES256:
        jwk = {"kty": "EC", "crv": "P-256", "x": _base64(public.x), "y": _base64(public.y)}
    return passkey_record(
        jwk,
        _base64(found.credential_id),
        invitation.person,
        invitation.roles,
        relying_party=RelyingParty(id=invitation.rp_id, origins=invitation.origins),
        now_ms=now_ms,
        sign_count=found.sign_count,
    )


def _client(text: str) -> dict[str, Any]:
    if len(text) > RESPONSE_BYTES_MAX:
        raise InputInvalidError(f"a response has at most {RESPONSE_BYTES_MAX} characters, found {len(text)}")
    try:
        data = json.loads(text)["response"]["clientDataJSON"]
        found = json.loads(urlsafe_b64decode(data + "=" * (-len(data) % 4)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputInvalidError(
            "this is no response of a passkey; expected what `PublicKeyCredential.toJSON` gives"
        ) from error
    if not isinstance(found, dict):
        raise InputInvalidError("the client data of the passkey are no object")
    return found


def _descriptors(keys: Iterable[KeyRecord], rp_id: str) -> list[dict[str, str]]:
    """The passkeys of a domain that count."""
    return [
        {"type": "public-key", "id": json.loads(key.jwk)[CREDENTIAL]}
        for key in keys
        if key.kind == "passkey" and key.revoked_ms is None and RelyingParty.of(key).id == rp_id
    ]


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
