"""Words of the audit log: what one record says, and the bytes that are hashed for it.

A record is plain: who, what, when, the verdict and its codes. Personal data is sealed beside the log and the record holds only
its digest, so that erasing a key erases the data and every proof stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from perdure.core.canonical import INTEGER_MAX
from perdure.core.errors import AuditInvalidError, InputInvalidError

AuditKind = Literal[
    "judged", "held", "granted", "rejected", "expired", "intended", "ended", "doubted", "settled", "policy", "keys",
    "configuration", "containment", "sandbox", "undo", "erased", "witness", "key", "egress",
]  # fmt: skip
LEAF_BYTES_MAX = (
    64 * 1024
)  # a record is an index to what happened, not the thing itself; that is sealed beside it

Whole = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]  # the same number for every reader of JSON
Digest = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of the audit log. What is not known is left out.

    Attributes:
        kind: what happened.
        at_ms: when, in milliseconds since 1970 (UTC), by the clock of the runtime: a claim, not a proof.
        run: the run that it is about.
        call: the call of that run.
        agent: the agent's name.
        what: ``tool`` or ``model``.
        name: the tool or model; for ``policy``, ``keys`` and ``configuration``, what was changed; for ``witness``, who refused;
            for ``key``, the log.
        verdict: what the gates answered together.
        codes: reason codes and the ids of the rules that counted.
        policy: digest of the policies in force.
        state: the action's state after this.
        tier: the isolation that was really in force.
        by: who decided or changed it.
        jti: the id of the grant that was used.
        refs: more, by name: digests and ids. ASCII names, no personal data.
        sealed: SHA-256 of the sealed details (nonce and ciphertext), 64 hexadecimal digits.
    """

    kind: AuditKind
    at_ms: Whole
    run: str = ""
    call: Whole | None = None
    agent: str = ""
    what: Literal["", "tool", "model"] = ""
    name: str = ""
    verdict: Literal["", "allow", "modify", "hold", "deny"] = ""
    codes: tuple[str, ...] = ()
    policy: str = ""
    state: str = ""
    tier: str = ""
    by: str = ""
    jti: str = ""
    refs: Mapping[str, str] = msgspec.field(default_factory=dict)
    sealed: Digest = ""


class AuditLeaf(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it is in the log.

    Attributes:
        index: its place, from 0.
        leaf: the bytes that were hashed.
        hash: its leaf hash (RFC 6962) as it was written then; a verifier makes it again from ``leaf``.
    """

    index: int
    leaf: bytes
    hash: bytes

    @property
    def record(self) -> AuditRecord:
        """What it says.

        Raises:
            AuditInvalidError: the bytes are no record.
        """
        return decode_record(self.leaf)


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(AuditRecord)


def encode_record(record: AuditRecord) -> bytes:
    """The bytes that are hashed: RFC 8785 canonical JSON without the fields that have their default.

    With ASCII keys, no fractions and integers below 2^53, what ``msgspec`` writes sorted is RFC 8785; this is checked here.

    Raises:
        InputInvalidError: a field has another type than it says, a number or a key is not as above, a text has lone
            surrogates, or the record is larger than ``LEAF_BYTES_MAX``.
    """
    try:
        leaf = _encoder.encode(record)
        _decoder.decode(leaf)  # types are not checked when a record is made
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        message = f"the audit record `{record.kind}` is not what a record may be: {error}"
        raise InputInvalidError(message, kind=record.kind) from error
    if record.refs and not all(name.isascii() for name in record.refs):
        message = f"the audit record `{record.kind}` has a reference whose name is not ASCII; rename it"
        raise InputInvalidError(message, kind=record.kind)
    if len(leaf) > LEAF_BYTES_MAX:
        message = (
            f"the audit record `{record.kind}` has {len(leaf)} bytes and {LEAF_BYTES_MAX} is the limit; "
            "seal the details beside it"
        )
        raise InputInvalidError(message, kind=record.kind, size_bytes=len(leaf))
    return leaf


def decode_record(leaf: bytes) -> AuditRecord:
    """The record of a leaf.

    Raises:
        AuditInvalidError: the bytes are no record; if they are in the log, they were changed behind the store's back.
    """
    try:
        return _decoder.decode(leaf)
    except msgspec.MsgspecError as error:
        raise AuditInvalidError(f"a leaf of the audit log is no record ({error})") from error
