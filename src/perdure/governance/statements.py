"""What an approver signs: a decision about one action, and the digest of what was shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from perdure.core.canonical import canonical_digest
from perdure.core.verdicts import Reason
from perdure.governance.claims import ActionClaim, display_digest
from perdure.governance.groups import Group, told

TYPE = "perdure-grant+jws"
TEXT_MAX = 2_000  # characters of a reason
Decision = Literal["approve", "approve_edited", "reject"]


class Statement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is signed. Times in seconds of the epoch.

    Attributes:
        typ: always ``perdure-grant+jws``.
        aud: the id of the runtime that it is for.
        jti: its own id; good for one release.
        iat: when it was made.
        nbf: from when on it counts.
        exp: until when.
        action: the digest of the :class:`ActionClaim`.
        display: the digest of what the approver was shown.
        decision: ``approve``, ``approve_edited`` (with other arguments), ``reject``.
        reason: told to the agent.
        arguments: for ``approve_edited``, the arguments to go on with.
        arguments_digest: SHA-256 of their RFC 8785 form.
        group: for ``approve``, a few more actions of the same shape that it releases too.
    """

    typ: str
    aud: str
    jti: str
    iat: int
    nbf: int
    exp: int
    action: str
    display: str
    decision: Decision
    reason: str = ""
    arguments: dict[str, Any] | None = None
    arguments_digest: str = ""
    group: Group | None = None


def statement_of(
    claim: ActionClaim,
    reasons: Sequence[Reason],
    *,
    audience: str,
    jti: str,
    now_s: int,
    decision: Decision,
    reason: str = "",
    arguments: dict[str, Any] | None = None,
    life_s: int = 3_600,
    group: Group | None = None,
) -> Statement:
    """A decision about an action, to be signed.

    Raises:
        InputInvalidError: an argument is a number that not every reader reads alike.
    """
    return Statement(
        typ=TYPE, aud=audience, jti=jti, iat=now_s, nbf=now_s, exp=now_s + life_s, action=claim.digest,
        display=display_digest(claim, reasons, also(group)), decision=decision, reason=reason[:TEXT_MAX], arguments=arguments,
        arguments_digest="" if arguments is None else canonical_digest(arguments), group=group,
    )  # fmt: skip


def also(group: Group | None) -> str:
    """What an approver is shown of a group."""
    return "" if group is None else told(group)
