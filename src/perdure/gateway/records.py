"""Records of the audit log about actions: written with the change that they are about, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from perdure.core.actions import ActionRecord, ActionState
from perdure.core.audit import AuditKind, AuditRecord
from perdure.core.verdicts import Reason
from perdure.ports import Transaction

S = ActionState
KINDS: dict[ActionState, AuditKind] = {
    S.HELD: "held",
    S.INTENDED: "intended",
    S.REFUSED: "judged",
    S.UNKNOWN: "doubted",
    S.SUCCEEDED: "ended",
    S.FAILED: "ended",
    S.LOST: "ended",
}
VERDICTS: dict[ActionState, Literal["allow", "hold", "deny"]] = {
    S.INTENDED: "allow",
    S.HELD: "hold",
    S.REFUSED: "deny",
}


def note(
    tx: Transaction,
    row: ActionRecord,
    at_ms: int,
    *,
    kind: AuditKind | None = None,
    reasons: Sequence[Reason] = (),
    policy: str = "",
    by: str = "",
    grant: str = "",
    text: str = "",
    tier: str = "",
    sealed: tuple[str, bytes] = ("", b""),
) -> None:
    """Record what an action is now.

    Args:
        tx: the transaction of the change.
        row: the row after the change.
        at_ms: when.
        kind: what happened; by default what the state says.
        reasons: of the gates.
        policy: the digest of the policies that they went by.
        by: who decided.
        grant: the id of a grant.
        text: what there is to say, without personal data.
        tier: the wall in force.
        sealed: the subject and the encrypted details.
    """
    codes = tuple(f"{item.code}:{item.rule}" if item.rule else item.code for item in reasons)
    subject, data = sealed
    tx.audit(
        AuditRecord(
            kind=kind or KINDS[row.state],
            at_ms=at_ms,
            run=row.run,
            call=row.call,
            agent=row.agent,
            what=row.what,
            name=row.name,
            state=row.state.value,
            verdict=VERDICTS.get(row.state, ""),
            codes=codes or ((row.code,) if row.code else ()),
            policy=policy,
            tier=tier or ("process" if row.attempt else "none"),
            by=by,
            jti=grant,
            refs={"note": text} if text else {},
        ),
        data,
        subject,
    )
