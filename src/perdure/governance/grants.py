"""Grants: an approver's signed decision about one action. JWS General JSON (RFC 7515) with ``alg: Ed25519`` (RFC 9864).

The runtime has public keys only. Several persons sign the same payload. Verified in a fixed order, each failure with its own
code; used up in the transaction of the intent.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.canonical import canonical, canonical_digest
from perdure.core.errors import InputInvalidError
from perdure.core.verdicts import Demand, Reason
from perdure.governance import grant_errors as errors
from perdure.governance.claims import ActionClaim, display_digest
from perdure.governance.groups import Repeat, check, check_shown
from perdure.governance.statements import TYPE, Statement, also

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey

ALGORITHM = "Ed25519"
BYTES_MAX = 65_536
SIGNATURES_MAX = 16
SKEW_S = 60  # how far the clock of an approver may be ahead
LIFE_S_MAX = 24 * 3_600  # how long a signed decision may wait to be used


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protected: str
    signature: str


class _General(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    signatures: tuple[_Signature, ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A grant that counts.

    Attributes:
        statement: what was signed.
        persons: who signed, in role, sorted.
        kids: their keys.
        digest: SHA-256 of the whole token, for the record.
    """

    statement: Statement
    persons: tuple[str, ...]
    kids: tuple[str, ...]
    digest: str


def sign(statement: Statement, key: OKPKey) -> str:
    """A grant with one signature."""
    made = _serialized(canonical(msgspec.to_builtins(statement)), key)
    return msgspec.json.encode({"payload": made["payload"], "signatures": made["signatures"]}).decode()


def add_signature(token: str, key: OKPKey) -> str:
    """The same grant with one more signature over the same payload.

    Raises:
        GrantMalformedError: it is none.
    """
    parsed = _parsed(token)
    more = sign_payload(_bytes(parsed.payload), key)
    signatures = [*parsed.signatures, _Signature(more["protected"], more["signature"])]
    return msgspec.json.encode({"payload": parsed.payload, "signatures": signatures}).decode()


def sign_payload(payload: bytes, key: OKPKey) -> Mapping[str, str]:
    """One signature over a payload."""
    found: Mapping[str, str] = _serialized(payload, key)["signatures"][0]
    return found


def _serialized(payload: bytes, key: OKPKey) -> Any:
    from joserfc import jws  # a tenth of a second: for the first signature, not for every start

    return jws.serialize_json([{"protected": _header(key)}], payload, key, [ALGORITHM])


def _header(key: OKPKey) -> dict[str, Any]:
    return {"alg": ALGORITHM, "kid": key.thumbprint(), "typ": TYPE}


# -- reading
def read_statement(token: str) -> Statement:
    """What a grant says; nothing of it is verified.

    Raises:
        GrantMalformedError: it is none.
    """
    return statement_from(_bytes(_parsed(token).payload))


def verify(
    token: str,
    *,
    claim: ActionClaim,
    reasons: Sequence[Reason],
    keys: Mapping[str, KeyRecord],
    demands: Sequence[Demand],
    audience: str,
    now_ms: int,
) -> Granted:
    """Whether a grant counts for an action, now. In this order: shape, signatures, persons, payload, audience, time, action.

    Args:
        token: JWS General JSON.
        claim: the action that is about to be done.
        reasons: why it is held, as its approver was shown.
        keys: the registered keys by their id.
        demands: every one must be met.
        audience: the id of this runtime.
        now_ms: the time.

    Raises:
        GrantRefusedError: it does not; the subclass says why.
    """
    payload, signers = signatures(token, keys=keys, now_ms=now_ms)
    return judge(
        payload, signers, hashlib.sha256(token.encode()).hexdigest(), claim=claim, reasons=reasons, demands=demands,
        audience=audience, now_ms=now_ms,
    )  # fmt: skip


def signatures(token: str, *, keys: Mapping[str, KeyRecord], now_ms: int) -> tuple[bytes, list[KeyRecord]]:
    """The payload of a grant and the keys that have signed it, each verified; who they are is not judged.

    Raises:
        GrantRefusedError: its shape, a key or a signature is wrong.
    """
    parsed = _parsed(token)
    payload = _bytes(parsed.payload)
    return payload, [_signer(parsed.payload, item, keys, now_ms) for item in parsed.signatures]


def judge(
    payload: bytes,
    signers: Sequence[KeyRecord],
    digest: str,
    *,
    claim: ActionClaim,
    reasons: Sequence[Reason],
    demands: Sequence[Demand],
    audience: str,
    now_ms: int,
) -> Granted:
    """Whether a payload, signed by keys whose signatures were verified, counts for an action, now.

    Args:
        payload: what was signed.
        signers: the keys that have signed it.
        digest: SHA-256 of the form in which it arrived.
        claim: the action that is about to be done.
        reasons: why it is held, as its approver was shown.
        demands: every one must be met.
        audience: the id of this runtime.
        now_ms: the time.

    Raises:
        GrantRefusedError: it does not; the subclass says why.
    """
    _check_persons(signers, demands, claim.requesters, claim.agents)
    statement = statement_from(payload)
    _check_time(statement, audience, now_ms)
    if isinstance(claim, Repeat):
        if statement.group is None or statement.decision != "approve":
            raise errors.GrantActionMismatchError("the grant is about another action, and no group")
        check(statement.group, claim, reasons)
    else:
        _check_action(statement, claim, reasons)
    _check_arguments(statement)
    return Granted(
        statement=statement,
        persons=tuple(sorted({key.person for key in signers})),
        kids=tuple(key.kid for key in signers),
        digest=digest,
    )


def _parsed(token: str) -> _General:
    if len(token) > BYTES_MAX:
        raise errors.GrantMalformedError(f"a grant has at most {BYTES_MAX} characters, found {len(token)}")
    try:
        found = msgspec.json.decode(token.encode(), type=_General)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.GrantMalformedError(f"a grant is JWS General JSON: {error}") from error
    if not 1 <= len(found.signatures) <= SIGNATURES_MAX:
        raise errors.GrantMalformedError(
            f"a grant has 1 to {SIGNATURES_MAX} signatures, found {len(found.signatures)}"
        )
    # Two members of one name are read differently by different readers, so the form itself must be the only one.
    if msgspec.json.decode(msgspec.json.encode(found)) != _plain(token):
        raise errors.GrantMalformedError("a grant has each member once, and no others")
    return found


def _plain(token: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise errors.GrantMalformedError("a grant has each member once")
        return dict(pairs)

    return json.loads(token, object_pairs_hook=once)


def _bytes(text: str) -> bytes:
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise errors.GrantMalformedError("a part of the grant is not base64url") from error
    if urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise errors.GrantMalformedError("a part of the grant is not base64url in its only form")
    return data


def statement_from(payload: bytes) -> Statement:
    """The statement of signed bytes; whether they are signed is not looked at.

    Raises:
        GrantMalformedError: they are none, or not in their canonical form.
    """
    try:
        found = msgspec.json.decode(payload, type=Statement)
        is_canonical = canonical(msgspec.to_builtins(found)) == payload
    except (msgspec.DecodeError, ValueError, InputInvalidError, RecursionError) as error:
        raise errors.GrantMalformedError(f"the payload of the grant cannot be read: {error}") from error
    if not is_canonical or found.typ != TYPE:
        raise errors.GrantMalformedError("the payload of the grant is not in its canonical form (RFC 8785)")
    return found


def _signer(payload: str, item: _Signature, keys: Mapping[str, KeyRecord], now_ms: int) -> KeyRecord:
    try:
        header = msgspec.json.decode(_bytes(item.protected), type=_Header)
    except (msgspec.DecodeError, ValueError) as error:
        raise errors.GrantMalformedError(
            f"a header has `alg`, `kid` and `typ`, nothing else: {error}"
        ) from error
    if len(_plain(_bytes(item.protected).decode())) != len(header.__struct_fields__):
        raise errors.GrantMalformedError("a header has `alg`, `kid` and `typ`, each once")
    if (header.alg, header.typ) != (ALGORITHM, TYPE):
        raise errors.GrantMalformedError(
            f"expected `{ALGORITHM}` and `{TYPE}`, found `{header.alg}` and `{header.typ}`"
        )
    key = keys.get(header.kid)
    if key is None:
        raise errors.GrantKeyUnknownError(
            f"no key `{header.kid[:60]}` is registered; `perdure keys list` shows them"
        )
    if key.kind != "ed25519":
        raise errors.GrantSignatureInvalidError(f"the key `{key.kid}` is a passkey and signs no JWS")
    if key.revoked_ms is not None and key.revoked_ms <= now_ms:
        raise errors.GrantKeyRevokedError(f"the key `{key.kid}` of `{key.person}` was revoked")
    from cryptography.exceptions import (
        InvalidSignature,
    )  # slow to import: for the first grant, not for every start
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(_bytes(msgspec.json.decode(key.jwk)["x"]))
    try:
        # The header says only what was checked above, so the signature itself is all that is left of RFC 7515.
        public.verify(_bytes(item.signature), f"{item.protected}.{payload}".encode())
    except InvalidSignature as error:
        raise errors.GrantSignatureInvalidError(f"a signature is not that of key `{key.kid}`") from error
    return key


def _check_persons(
    signers: Sequence[KeyRecord],
    demands: Sequence[Demand],
    requesters: frozenset[str],
    agents: frozenset[str],
) -> None:
    persons = {key.person for key in signers}
    if agents & persons:
        raise errors.GrantRequesterError(
            f"`{min(agents & persons)}` is an agent of the action and cannot approve it"
        )
    if own := persons & requesters:
        raise errors.GrantRequesterError(f"`{min(own)}` asked for the action and cannot approve it")
    for demand in demands:
        fitting = {key.person for key in signers if set(key.roles) & set(demand.roles)}
        roles = ", ".join(f"`{role}`" for role in demand.roles)
        if not fitting:
            raise errors.GrantRoleMissingError(f"nobody in role {roles} has signed")
        if len(fitting) < demand.quorum:
            message = f"{demand.quorum} persons in role {roles} must sign, found {len(fitting)}"
            raise errors.GrantQuorumMissingError(message, found=len(fitting), expected=demand.quorum)


def _check_time(statement: Statement, audience: str, now_ms: int) -> None:
    now_s = now_ms // 1000
    if statement.aud != audience:
        raise errors.GrantAudienceError(
            f"the grant is for runtime `{statement.aud[:60]}`, this is `{audience}`"
        )
    if statement.nbf > now_s + SKEW_S or statement.iat > now_s + SKEW_S:
        raise errors.GrantNotYetValidError(f"the grant counts from {statement.nbf} on, now it is {now_s}")
    if statement.exp <= now_s:
        raise errors.GrantExpiredError(f"the grant counted until {statement.exp}, now it is {now_s}")
    if not statement.iat <= statement.exp <= statement.iat + LIFE_S_MAX:
        raise errors.GrantMalformedError(f"a grant counts for at most {LIFE_S_MAX} s")


def _check_action(statement: Statement, claim: ActionClaim, reasons: Sequence[Reason]) -> None:
    try:
        is_same = claim.digest == statement.action
    except InputInvalidError as error:
        raise errors.GrantActionMismatchError(f"the action cannot be approved: {error.message}") from error
    if not is_same:
        message = f"the grant is about action {statement.action[:12]}, this one is {claim.digest[:12]}; look again, then sign anew"
        raise errors.GrantActionMismatchError(message)
    if statement.group is not None:
        if statement.decision != "approve":
            raise errors.GrantMalformedError("a group comes with `approve`, and only with it")
        check_shown(statement.group, claim, reasons)
    if statement.display != display_digest(claim, reasons, also(statement.group)):
        raise errors.GrantDisplayMismatchError(
            "the approver was shown something else than what is about to happen"
        )


def _check_arguments(statement: Statement) -> None:
    is_edited = statement.decision == "approve_edited"
    if is_edited != (statement.arguments is not None):
        raise errors.GrantArgumentsInvalidError(
            "changed arguments come with `approve_edited`, and only with it"
        )
    if (
        statement.arguments is not None
        and canonical_digest(statement.arguments) != statement.arguments_digest
    ):
        raise errors.GrantArgumentsInvalidError("the digest of the changed arguments does not fit")
