"""The writes of the ledger: plain functions over a transaction, each with its journal entry and its booking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState, Decision, Spend
from perdure.core.errors import (
    ActionUnknownError,
    ApprovalExpiredError,
    ApprovalRejectedError,
    RefusedError,
    error_for,
    invariant,
)
from perdure.core.values import Payload, pack
from perdure.core.verdicts import ALLOW, Verdict
from perdure.gateway.breaches import note_breach
from perdure.gateway.outputs import stated
from perdure.gateway.records import note
from perdure.gateway.seat import Blobs, Outcome
from perdure.kernel.actions import event_for, transition
from perdure.ports import Transaction

if TYPE_CHECKING:
    pass

S = ActionState
OUTBOX = "outbox"  # why an action is held that is sent when its delay is over
APPROVAL_NEEDED = "approval-needed"  # why an action is held that only a grant releases
NOTHING = Spend()
DECISIONS: dict[ActionState, tuple[Decision, ...]] = {
    S.UNKNOWN: ("happened", "did-not-happen", "retry"),
    S.HELD: ("live", "retry", "fail"),
}


def decisions(row: ActionRecord) -> tuple[Decision, ...]:
    """What an operator may decide about an action; what needs a grant can only be refused without one."""
    if row.state is S.HELD and row.code == APPROVAL_NEEDED:
        return ("fail",)
    return DECISIONS.get(row.state, ())


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """A decision about a held or doubtful action, as it travels in the mailbox of its run."""

    decision: Decision
    by: str = ""
    result: Any = None
    reason: str = ""
    about: str = (
        ""  # the state that the action was in: a decision about a held one says nothing of a later doubt
    )


def conclude(
    tx: Transaction,
    position: dict[str, int],
    run_id: str,
    call: int,
    digest: str,
    outcome: Outcome,
    limit: int,
    verdict: Verdict = ALLOW,
) -> tuple[e.CallEntry, Blobs]:
    """Record an outcome, give back what was reserved, book what was spent; ``verdict`` is what refused a held action."""
    row = found(tx, run_id, call)
    result: Payload | None = None
    blobs = dict(outcome.blobs)
    if outcome.result is not None:
        result, more = pack(outcome.result, limit)
        blobs.update(more)
        if outcome.labels:
            result = msgspec.structs.replace(result, labels=outcome.labels)
    after: Payload | None = None
    if outcome.after is not None:
        after, more = pack(outcome.after, limit)
        blobs.update(more)
    common: dict[str, Any] = {**position, "call": call, "name": row.name, "digest": digest}
    if outcome.state is S.UNKNOWN:
        invariant(outcome.error is not None, "a doubtful action says why")
        doubted = change(tx, row, S.UNKNOWN, code=outcome.error.code if outcome.error else "")
        note(tx, doubted, position["at_ms"], tier=outcome.tier)
        return e.ActionDoubted(
            **common, error=outcome.error or e.Failure(code="action-doubtful", message="")
        ), blobs
    usage = outcome.usage
    tokens_in = usage.input_tokens if usage else None
    tokens_out = usage.output_tokens if usage else None
    tx.book(run_id, NOTHING.minus(row.reserved), outcome.spent)
    ended = change(
        tx,
        row,
        outcome.state,
        end_seq=position["seq"],
        ended_ms=position["at_ms"],
        reserved=NOTHING,
        spent=outcome.spent,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        upstream=outcome.upstream,
        code=outcome.error.code if outcome.error else "",
    )
    note(
        tx, ended, position["at_ms"], by=outcome.decided_by, reasons=verdict.reasons, policy=verdict.policy,
        tier=outcome.tier, text=f"breach:{outcome.breach}" if outcome.breach else "",
    )  # fmt: skip
    if outcome.breach:
        note_breach(tx, ended.agent, position["at_ms"], outcome.breach)
    entry = e.ActionEnded(
        **common,
        state=outcome.state,
        result=result,
        error=outcome.error,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        usd_micros=outcome.usd_micros,
        upstream=outcome.upstream,
        decided_by=outcome.decided_by,
        after=after,
    )
    return entry, blobs


def rule(
    tx: Transaction, position: dict[str, int], run_id: str, call: int, digest: str, ruling: Ruling, limit: int
) -> tuple[e.CallEntry, Blobs] | None:
    """What a decision makes of an action: its end, or that it goes on. ``None`` if it does not fit the action's state."""
    row = tx.action(run_id, call)
    if row is None or ruling.about not in ("", row.state):
        return None
    by = ruling.by or "unknown"
    common: dict[str, Any] = {**position, "call": call, "name": row.name, "digest": digest}
    match row.state, ruling.decision:
        case S.UNKNOWN, "happened":
            data = stated(ruling.result) if row.what == "tool" else msgspec.json.encode(ruling.result)
            spent = Spend(calls=1, unpriced=1 if row.reserved.unpriced or row.what == "model" else 0)
            outcome = Outcome(S.SUCCEEDED, spent, result=data, decided_by=by)
            return conclude(tx, position, run_id, call, digest, outcome, limit)
        case S.UNKNOWN, "did-not-happen":
            text = f"it was decided by `{by}` that the action did not happen" + (
                f": {ruling.reason}" if ruling.reason else ""
            )
            error = e.Failure(code="action-not-done", message=text)
            return conclude(
                tx,
                position,
                run_id,
                call,
                digest,
                Outcome(S.FAILED, NOTHING, error=error, decided_by=by),
                limit,
            )
        case S.UNKNOWN, "retry":
            again = change(tx, row, S.INTENDED, intended_ms=position["at_ms"], code="")
            note(tx, again, position["at_ms"], kind="settled", by=by, text="send it again")
            return e.ActionDecided(**common, decision="retry", by=by), {}
        case S.HELD, "retry" | "live" | "grant":
            note(tx, row, position["at_ms"], kind="settled", by=by, text=ruling.decision)
            return e.ActionDecided(**common, decision=ruling.decision, by=by), {}
        case S.HELD, "fail" | "did-not-happen" | "reject" | "expire":
            text = f"the held action was refused by `{by}`" + (f": {ruling.reason}" if ruling.reason else "")
            codes = {"reject": ApprovalRejectedError.code, "expire": ApprovalExpiredError.code}
            code = codes.get(ruling.decision) or row.code or RefusedError.code
            error = e.Failure(code=code, message=text)
            return conclude(
                tx,
                position,
                run_id,
                call,
                digest,
                Outcome(S.REFUSED, NOTHING, error=error, decided_by=by),
                limit,
            )
        case _:
            return None


def settle_ended(tx: Transaction, row: ActionRecord, ruling: Ruling, now_ms: int) -> None:
    """Settle an action whose run has ended: the ledger alone, for a journal never goes on after its end.

    Raises:
        ActionUnknownError: it would have to be sent again, and nobody is there to send it.
    """
    if ruling.decision in ("retry", "live"):
        raise ActionUnknownError(
            f"the run of action `{row.key}` has ended, so it cannot be sent again", action=row.key
        )
    after = {"happened": S.SUCCEEDED, "did-not-happen": S.FAILED, "fail": S.REFUSED}[ruling.decision]
    spent = Spend(calls=1) if after is S.SUCCEEDED else NOTHING
    tx.book(row.run, NOTHING.minus(row.reserved), spent)
    settled = change(tx, row, after, ended_ms=now_ms, reserved=NOTHING, spent=spent)
    note(
        tx, settled, now_ms, kind="settled", by=ruling.by, text=f"{ruling.decision}, after the end of its run"
    )


def close_run(tx: Transaction, run_id: str, now_ms: int) -> None:
    """The run has ended: what was held is refused; what is doubtful stays in the inbox, for it may have happened."""
    for row in tx.run_actions(run_id):
        if row.state is S.HELD:
            note(tx, change(tx, row, S.REFUSED, ended_ms=now_ms, code="run-ended"), now_ms)
        elif row.state is S.INTENDED and row.what == "tool":
            note(tx, change(tx, row, S.UNKNOWN, ended_ms=now_ms, code="run-ended"), now_ms)
        elif row.state is S.INTENDED:
            tx.book(run_id, NOTHING.minus(row.reserved), NOTHING)
            note(tx, change(tx, row, S.LOST, ended_ms=now_ms, reserved=NOTHING, code="run-ended"), now_ms)


def change(tx: Transaction, row: ActionRecord, state: ActionState, **fields: Any) -> ActionRecord:
    """Move a row to another state, by the table of transitions; the row after it."""
    after = transition(row.state, event_for(row.state, state))
    changed = msgspec.structs.replace(row, state=after, **fields)
    tx.change_action(row.state, changed)
    return changed


def found(tx: Transaction, run_id: str, call: int) -> ActionRecord:
    """A row that must be there.

    Raises:
        ActionUnknownError: it is not.
    """
    row = tx.action(run_id, call)
    if row is None:
        raise ActionUnknownError(f"there is no action `{run_id}/{call}`; `perdure actions list` shows them")
    return row


def raised(error: e.Failure, **facts: Any) -> Exception:
    """The exception that an agent gets for a recorded failure."""
    kind = error_for(error.code)
    return kind(error.message, **facts)
