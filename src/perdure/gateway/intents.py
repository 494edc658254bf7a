"""Intents: what becomes of an act before anything is sent, each in one transaction with what it changes.

Containment and budget are judged here, and a grant is used up here: nobody can overtake a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core import entries as e
from perdure.core.actions import Account, ActionRecord, ActionState
from perdure.core.approvals import Containment
from perdure.core.audit import AuditRecord
from perdure.core.errors import ActionDeniedError, ContainedError, RefusedError
from perdure.core.limits import ERROR_TEXT_MAX
from perdure.core.tools import ToolSpec
from perdure.core.values import Payload, pack
from perdure.core.verdicts import ALLOW, Demand, Verdict, both
from perdure.gateway.gates.containment import contained
from perdure.gateway.ledger import APPROVAL_NEEDED, NOTHING, OUTBOX, change, conclude, found
from perdure.gateway.records import note
from perdure.gateway.seat import Act, Blobs, Outcome, Seat
from perdure.governance.conduct import CONTAIN
from perdure.kernel.budget import Room, judge
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.gateway.governance import Governance
    from perdure.governance.claims import ActionClaim

S = ActionState
CONDUCT = "perdure.conduct"  # who contains when no person does


def propose(
    tx: Transaction,
    position: dict[str, int],
    seat: Seat,
    act: Act,
    limit: int,
    hold: e.Failure | None = None,
    verdict: Verdict = ALLOW,
    covered: Callable[[Transaction, Verdict, int], str] | None = None,
) -> tuple[Any, Blobs, Room]:
    """Judge containment and budget and record the intent (or that the act is held or refused), in one transaction.

    Args:
        tx: the transaction.
        position: ``seq`` and ``at_ms`` of the entry.
        seat: the run.
        act: the act.
        limit: the largest payload in bytes.
        hold: holds it for this reason, whatever the gates say.
        verdict: what the gates before this one say.
        covered: uses a group grant that covers a hold; its id, empty if there is none.

    Returns:
        The entry, its blobs, and what the budget said.
    """
    payload, blobs = pack(act.stored or act.request, limit)
    now_ms = position["at_ms"]
    accounts = tx.accounts(seat.run_id)
    verdict = both(verdict, _contained(tx, seat, act, accounts, now_ms))
    _contain(tx, seat, verdict, now_ms)
    room = judge(accounts, act.estimate, now_ms)
    grant = ""
    if verdict.is_deny:
        room = Room(refusal_of(verdict))
    elif verdict.is_hold and hold is None and room.refusal is None and covered is not None:
        grant = covered(tx, verdict, now_ms)
        room = room if grant else Room(refusal_of(verdict), holds=True)
    elif verdict.is_hold and (room.refusal is None or room.holds):
        room = Room(refusal_of(verdict), holds=True)
    elif hold is not None and (room.refusal is None or room.holds):
        room = Room(hold, holds=True)
    elif room.refusal is None and act.spec is not None and act.spec.delay_ms:
        room = Room(_outbox(act.spec), holds=True)
    common = _common(position, act)
    entry: e.CallEntry
    if room.refusal is None:
        before, more = _before(act, limit)
        blobs = {**blobs, **more}
        entry, state = _intended(common, act, payload, verdict, before=before, grant=grant), S.INTENDED
        tx.book(seat.run_id, act.estimate, NOTHING)
    elif room.holds:
        entry, state = _held(common, act, payload, room.refusal, verdict), S.HELD
    else:
        entry, state = e.ActionEnded(**common, state=S.REFUSED, error=room.refusal), S.REFUSED
    row = _row(seat, act, state, position["seq"], now_ms, room)
    tx.put_action(row)
    note(
        tx,
        row,
        now_ms,
        reasons=verdict.reasons,
        policy=verdict.policy,
        grant=grant,
        tier=act.within,
        sealed=act.seal(tx) if act.seal else ("", b""),
    )
    return entry, blobs, room


def _contained(tx: Transaction, seat: Seat, act: Act, accounts: Sequence[Account], now_ms: int) -> Verdict:
    """What containments say; a run is in the scope of every run above it, and of the agents of these."""
    found = tx.containments()
    if not found:
        return ALLOW
    scopes = {"*", f"agent:{seat.agent}", f"tool:{act.name}"}
    for account in accounts:  # a contained agent does not act through another one
        above = tx.run(account.run)
        scopes |= {f"run:{account.run}", *([f"agent:{above.agent}"] if above is not None else [])}
    return contained(found, scopes, act.effect, now_ms)


def _before(act: Act, limit: int) -> tuple[Payload | None, Blobs]:
    if act.before is None:
        return None, {}
    return pack(act.before, limit)


def _outbox(spec: ToolSpec) -> e.Failure:
    return e.Failure(
        code=OUTBOX, message=f"it is sent in {spec.delay_ms / 1000:g} s, unless it is stopped before"
    )


def _contain(tx: Transaction, seat: Seat, verdict: Verdict, now_ms: int) -> None:
    """A rule of conduct asks for the run to be contained: at once, for good, until a person lifts it."""
    level = verdict.obligations.get(CONTAIN)
    scope = f"run:{seat.run_id}"
    if level not in ("watch", "restrict") or any(
        item.scope == scope and (item.level == level or item.level != "watch") for item in tx.containments()
    ):
        return
    why = "; ".join(reason.message for reason in verdict.reasons)[:ERROR_TEXT_MAX]
    made = Containment(
        scope=scope,
        level="restrict" if level == "restrict" else "watch",
        by=CONDUCT,
        reason=why,
        at_ms=now_ms,
    )
    tx.contain(made)
    tx.audit(
        AuditRecord(
            kind="containment", at_ms=now_ms, name=scope, state=made.level, by=CONDUCT, refs={"note": why}
        )
    )


def refusal_of(verdict: Verdict) -> e.Failure:
    """What an agent is told of a verdict."""
    reasons = verdict.reasons
    if verdict.is_hold:
        code = APPROVAL_NEEDED
    elif reasons and all(reason.code.startswith("contained") for reason in reasons):
        code = ContainedError.code
    else:
        code = ActionDeniedError.code
    text = "; ".join(f"{reason.message} ({reason.code})" for reason in reasons) or "no gate allows it"
    return e.Failure(code=code, message=text[:ERROR_TEXT_MAX])


def _common(position: dict[str, int], act: Act) -> dict[str, Any]:
    return {**position, "call": act.call, "name": act.name, "digest": act.digest}


def _told(act: Act, payload: Payload) -> dict[str, Any]:
    return {
        "what": act.what,
        "request": payload,
        "recovery": act.recovery,
        "effect": act.effect,
        "endpoint": act.endpoint,
        "attempt": act.attempt,
    }


def _intended(
    common: dict[str, Any],
    act: Act,
    payload: Payload,
    verdict: Verdict,
    *,
    before: Payload | None = None,
    grant: str = "",
) -> e.ActionIntended:
    return e.ActionIntended(
        **common,
        **_told(act, payload),
        reasons=verdict.reasons,
        obligations=dict(verdict.obligations),
        policy=verdict.policy,
        grant=grant,
        changed=act.is_changed,
        before=before,
        undoes=act.undoes,
    )


def _held(
    common: dict[str, Any],
    act: Act,
    payload: Payload,
    reason: e.Failure,
    verdict: Verdict,
) -> e.ActionHeld:
    due = min((demand.deadline_ms for demand in verdict.demands), default=None)
    if reason.code == OUTBOX and act.spec is not None:
        due = act.spec.delay_ms
    return e.ActionHeld(
        **common,
        **_told(act, payload),
        reason=reason,
        reasons=verdict.reasons,
        demands=verdict.demands,
        policy=verdict.policy,
        tool=act.spec.digest if act.spec else "",
        due_ms=None if due is None else common["at_ms"] + due,
        asked=act.asked,
        confidence=act.confidence,
    )


def _row(seat: Seat, act: Act, state: ActionState, seq: int, now_ms: int, room: Room) -> ActionRecord:
    known = act.identity
    ended = state is S.REFUSED
    return ActionRecord(
        run=seat.run_id,
        call=act.call,
        agent=seat.agent,
        what=act.what,
        name=act.name,
        state=state,
        recovery=act.recovery,
        effect=act.effect,
        intended_ms=now_ms,
        intent_seq=seq,
        endpoint=act.endpoint,
        exact=known.exact if known else "",
        masked=known.masked if known else "",
        undoes=act.undoes,
        causal=known.causal if known else "",
        ordinal=known.ordinal if known else "",
        attempt=act.attempt,
        end_seq=seq if ended else None,
        ended_ms=now_ms if ended else None,
        reserved=act.estimate if state is S.INTENDED else NOTHING,
        code=room.refusal.code if room.refusal else "",
    )


def release(
    tx: Transaction,
    position: dict[str, int],
    seat: Seat,
    act: Act,
    limit: int,
    verdict: Verdict,
    governance: Governance,
    claim: ActionClaim,
) -> tuple[Any, Blobs]:
    """Judge a held act once more; record its intent with the grant that it uses up, its refusal, or that it stays held."""
    payload, blobs = pack(act.stored or act.request, limit)
    row = found(tx, seat.run_id, act.call)
    now_ms = position["at_ms"]
    accounts = tx.accounts(seat.run_id)
    verdict = both(verdict, _contained(tx, seat, act, accounts, now_ms))
    if act.asked:
        verdict = msgspec.structs.replace(verdict, demands=_escalated(verdict.demands, act.asked))
    common = _common(position, act)
    room = judge(accounts, act.estimate, now_ms)
    refusal = refusal_of(verdict) if verdict.is_deny else None if room.holds else room.refusal
    if refusal is not None:
        refused = Outcome(S.REFUSED, NOTHING, error=refusal)
        return conclude(tx, position, seat.run_id, act.call, act.digest, refused, limit, verdict)
    if room.refusal is not None:
        note(tx, change(tx, row, S.HELD, code=room.refusal.code), now_ms, policy=verdict.policy)
        return _held(common, act, payload, room.refusal, verdict), blobs
    grant = ""
    if verdict.is_hold:
        try:
            changed = act.request if act.is_changed else None
            grant = governance.use_grant(tx, claim, act.shown, verdict.demands, now_ms, changed)
        except RefusedError as error:
            why = refusal_of(verdict)
            reason = e.Failure(code=why.code, message=f"{why.message}; {error}"[:ERROR_TEXT_MAX])
            again = change(tx, row, S.HELD, code=reason.code)
            note(tx, again, now_ms, reasons=verdict.reasons, policy=verdict.policy, text=str(error.code))
            return _held(common, act, payload, reason, verdict), blobs
    tx.book(seat.run_id, act.estimate, NOTHING)
    released = change(
        tx, row, S.INTENDED, reserved=act.estimate, intended_ms=now_ms, intent_seq=position["seq"], code=""
    )
    sealed = act.seal(tx) if act.seal and act.is_changed else ("", b"")
    note(tx, released, now_ms, reasons=verdict.reasons, policy=verdict.policy, grant=grant, sealed=sealed)
    before, more = _before(act, limit)
    made = _intended(common, act, payload, verdict, before=before, grant=grant)
    return made, {**blobs, **more}


def _escalated(demands: tuple[Demand, ...], times: int = 1) -> tuple[Demand, ...]:
    """The demands after so many deadlines have passed: one more role may approve after each."""
    for _ in range(times):
        demands = tuple(
            msgspec.structs.replace(
                demand, roles=(*demand.roles, *demand.escalation[:1]), escalation=demand.escalation[1:]
            )
            for demand in demands
        )
    return demands


def escalate(
    tx: Transaction, position: dict[str, int], run_id: str, held: e.Entry | None
) -> e.ActionHeld | None:
    """Ask the next role of the escalation; ``None`` when everybody was asked."""
    if not isinstance(held, e.ActionHeld):
        return None
    demands = _escalated(held.demands)
    if demands == held.demands:
        return None
    row = found(tx, run_id, held.call)
    note(tx, change(tx, row, S.HELD), position["at_ms"], text="escalated")
    due_ms = position["at_ms"] + min(demand.deadline_ms for demand in demands)
    return msgspec.structs.replace(held, **position, demands=demands, due_ms=due_ms, asked=held.asked + 1)
