"""A signed decision as it is kept: signatures of both kinds over one statement.

Those of Ed25519 keys stand together in one JWS. As soon as a passkey has signed, there are several envelopes, one a line: any
number of JWS and of passkeys. Each must have signed the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.verdicts import Demand, Reason
from perdure.governance import grants
from perdure.governance.claims import ActionClaim
from perdure.governance.grant_errors import GrantMalformedError
from perdure.governance.grants import BYTES_MAX
from perdure.governance.passkeys import MixedGranted, is_passkey, payload_of, verify_envelopes
from perdure.governance.statements import Statement

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey


def envelopes(token: str) -> tuple[str, ...]:
    """The parts of a decision."""
    return tuple(token.split("\n")) if is_passkey(token) else (token,)


def read_statement(token: str) -> Statement:
    """What a decision says; nothing of it is verified.

    Raises:
        GrantMalformedError: it is none.
    """
    first = envelopes(token)[0]
    return grants.statement_from(payload_of(first)) if is_passkey(first) else grants.read_statement(first)


def joined(token: str, more: str) -> str:
    """The decision with the envelopes of another one, each once.

    Raises:
        GrantMalformedError: together they are too large, or one is no JSON.
    """
    found = list(dict.fromkeys(_one_line(item) for text in (token, more) for item in envelopes(text)))
    return _checked("\n".join(found))


def co_signed(token: str, key: OKPKey) -> str:
    """The decision with one more signature, of an Ed25519 key.

    Raises:
        GrantMalformedError: it is none, or becomes too large.
    """
    if not is_passkey(token):
        return grants.add_signature(token, key)
    return joined(token, grants.sign(read_statement(token), key))


def verify(
    token: str,
    *,
    claim: ActionClaim,
    reasons: Sequence[Reason],
    keys: Mapping[str, KeyRecord],
    demands: Sequence[Demand],
    audience: str,
    now_ms: int,
    counted: Collection[str] = (),
) -> MixedGranted:
    """Whether a decision counts for an action, now, whatever kind of keys have signed it.

    Args:
        token: as it is kept.
        claim: the action that is about to be done.
        reasons: why it is held, as its approver was shown.
        keys: the registered keys by their id.
        demands: every one must be met.
        audience: the id of this runtime.
        now_ms: the time.
        counted: envelopes that arrived before: the counters of their passkeys were looked at then.

    Raises:
        GrantRefusedError: it does not; the subclass says why.
        UsageError: a passkey has signed and the extra ``passkeys`` is not installed.
    """
    if not is_passkey(token):
        granted = grants.verify(
            token, claim=claim, reasons=reasons, keys=keys, demands=demands, audience=audience, now_ms=now_ms
        )
        return MixedGranted(granted=granted, sign_counts={})
    return verify_envelopes(
        envelopes(_checked(token)), claim=claim, reasons=reasons, keys=keys, demands=demands, audience=audience, now_ms=now_ms,
        counted=counted,
    )  # fmt: skip


def _checked(token: str) -> str:
    if len(token) > BYTES_MAX:
        raise GrantMalformedError(f"a grant has at most {BYTES_MAX} characters, found {len(token)}")
    return token


def _one_line(envelope: str) -> str:
    """An envelope without line breaks; between its members they mean nothing."""
    if "\n" not in envelope:
        return envelope
    try:
        return msgspec.json.encode(msgspec.json.decode(envelope)).decode()
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise GrantMalformedError(f"a part of the grant is no JSON: {error}") from error
