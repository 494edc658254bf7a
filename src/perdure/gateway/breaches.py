"""Counts the limits that an agent breaks, in the transaction that records each, and quarantines who breaks too many."""

from __future__ import annotations

import msgspec

from perdure.core.approvals import Containment
from perdure.core.audit import AuditRecord
from perdure.kernel.quarantine import QUARANTINE, RULE_FACT, TALLY_FACT, QuarantineRule, is_in_force, tally
from perdure.ports import Transaction

BY = "perdure"  # who quarantines when nobody decides


def note_breach(tx: Transaction, agent: str, at_ms: int, breach: str) -> None:
    """Count one more; at the limit of the rule the agent is quarantined and its count begins anew.

    Args:
        tx: the transaction in which the breach is recorded.
        agent: whose code met a limit.
        at_ms: when.
        breach: which limit.
    """
    stored = tx.fact(RULE_FACT)
    rule = msgspec.json.decode(stored, type=QuarantineRule) if stored else QuarantineRule()
    if not rule.breaches:
        return
    name = TALLY_FACT + agent
    before = msgspec.json.decode(tx.fact(name) or "[]", type=tuple[int, ...])
    kept, is_too_much = tally(rule, before, at_ms)
    tx.set_fact(name, msgspec.json.encode(() if is_too_much else kept).decode())
    if is_too_much and not any(
        item.scope == QUARANTINE + agent and is_in_force(item, at_ms) for item in tx.containments()
    ):
        seconds = f"{rule.within_ms / 1000:g}"
        quarantine(
            tx,
            agent,
            at_ms,
            by=BY,
            reason=f"{rule.breaches} limits met within {seconds} s, the last: {breach}",
        )


def quarantine(
    tx: Transaction, agent: str, at_ms: int, *, by: str, reason: str, until_ms: int | None = None
) -> Containment:
    """Hold every run of an agent that does not execute yet, and record who did it and why."""
    made = Containment(
        scope=QUARANTINE + agent, level="hold", by=by, reason=reason, at_ms=at_ms, until_ms=until_ms
    )
    tx.contain(made)
    tx.audit(
        AuditRecord(
            kind="containment", at_ms=at_ms, agent=agent, name=made.scope, state="quarantined", by=by, refs={"note": reason}
        )
    )  # fmt: skip
    return made


def release(tx: Transaction, agent: str, at_ms: int, *, by: str, reason: str) -> bool:
    """End a quarantine and forget the breaches that led to it; whether there was one."""
    was = tx.lift(QUARANTINE + agent)
    if was:
        tx.set_fact(TALLY_FACT + agent, "[]")
        tx.audit(
            AuditRecord(
                kind="containment", at_ms=at_ms, agent=agent, name=QUARANTINE + agent, state="released", by=by, refs={"note": reason}
            )
        )  # fmt: skip
    return was
