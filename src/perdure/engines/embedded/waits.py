"""Waits: what ends an open sleep, receive, ask, result, retry or timer, and parking when nothing does.

One entry per transaction: the agent sees it before the next wait is looked at, so that a message which the agent no
longer wants (it lost a race) is not taken out of the mailbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.agents.requests import ANSWER_TOPIC, ActCall, AskCall, ReceiveCall, ResultCall, SleepCall
from perdure.core import entries as e
from perdure.core.actions import ACTION_TOPIC
from perdure.core.errors import FenceError
from perdure.core.records import Status
from perdure.core.values import NULL, Payload
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.works import cancel
from perdure.gateway import intents, ledger
from perdure.kernel.machine import transition
from perdure.ports.store import Transaction


@dataclass(slots=True)
class Settled:
    """What looking at the waits of a run came to."""

    entry: e.Entry | None = None
    retry: OpenCall | None = None
    parked: bool = False
    touched: Sequence[str] = ()


def record(tx: Transaction, host: Host, entry: e.Entry, blobs: dict[str, bytes] | None = None) -> e.Entry:
    """Append an entry at the run's next position, under its fence; called by works only."""
    tx.append(host.run_id, host.fence, (entry,), blobs or {})
    host.seq, host.at_ms = entry.seq, entry.at_ms
    return entry


def position(host: Host, now_ms: int) -> dict[str, int]:
    """The ``seq`` and ``at_ms`` of the next entry: time never goes back within a journal."""
    return {"seq": host.seq + 1, "at_ms": max(now_ms, host.at_ms)}


def settle(
    tx: Transaction,
    host: Host,
    waits: Sequence[OpenCall],
    timers: Sequence[tuple[int, int]],
    *,
    may_park: bool,
    now_ms: int,
) -> Settled:
    """End the first wait that can end; else park the run if it may.

    Args:
        tx: the transaction.
        host: the run.
        waits: its open waits in call order, as they were when the work was made.
        timers: its armed timers as (due in ms, number), earliest first.
        may_park: nothing of the run is being worked on.
        now_ms: the time.
    """
    row = tx.run(host.run_id)
    if row is not None and row.fence != host.fence:  # killed, or taken over: nothing is left to do here
        raise FenceError(f"run `{host.run_id}` has another owner", run=host.run_id)
    if row is not None and row.cancel_reason is not None and host.cancel is None:
        asked = e.CancelRequested(
            **position(host, now_ms), reason=row.cancel_reason, code=row.cancel_code or "run-cancelled"
        )
        return Settled(entry=record(tx, host, asked))
    if host.deadline_ms is not None and now_ms >= host.deadline_ms and host.cancel is None:
        reason = "the deadline passed"
        touched = cancel(tx, host.run_id, reason, now_ms, code="deadline-exceeded")
        asked = e.CancelRequested(**position(host, now_ms), reason=reason, code="deadline-exceeded")
        return Settled(entry=record(tx, host, asked), touched=touched)
    for call in waits:
        if call.due_ms is not None and now_ms >= call.due_ms:
            return Settled(retry=call)
        entry = _ended(tx, host, call, now_ms)
        if entry is not None:
            goes_on = call if isinstance(entry, e.ActionDecided) else None
            return Settled(entry=record(tx, host, entry), retry=goes_on)
    if timers and timers[0][0] <= now_ms:
        return Settled(entry=record(tx, host, e.TimerFired(**position(host, now_ms), timer=timers[0][1])))
    if not may_park:
        return Settled()
    described = _describe(waits, timers)
    parked: e.Entry | None = None
    if host.parked_at != (host.seq, described):  # woken for nothing: the journal says it already
        parked = record(tx, host, e.RunParked(**position(host, now_ms), waits=described))
    dues = [due for call in waits if (due := call.wait_due_ms) is not None] + [due for due, _ in timers[:1]]
    if host.deadline_ms is not None and host.cancel is None:
        dues.append(host.deadline_ms)
    after = transition(Status.RUNNING, "park")
    tx.move(host.run_id, host.fence, after, now_ms=now_ms, wake_ms=min(dues, default=None))
    return Settled(entry=parked, parked=True)


def _ended(tx: Transaction, host: Host, call: OpenCall, now_ms: int) -> e.Entry | None:
    """The entry that ends a wait now, if there is one."""
    request = call.request
    common: dict[str, Any] = {
        **position(host, now_ms),
        "call": call.number,
        "name": request.name,
        "digest": request.digest,
    }
    due_ms = call.wait_due_ms
    is_due = due_ms is not None and now_ms >= due_ms
    match request:
        case SleepCall():
            return e.Slept(**common) if is_due else None
        case ReceiveCall():
            if kept := host.stash.get(request.name):  # received by a call that the agent had given up
                old = kept[0]
                return e.MessageReceived(
                    **common, message=old.message, body=old.body, sender=old.sender, sent_ms=old.sent_ms
                )
            mail = tx.take(host.run_id, request.name)
            if mail is not None:
                return e.MessageReceived(
                    **common, message=mail.id, body=mail.body, sender=mail.sender, sent_ms=mail.sent_ms
                )
            return e.MessageReceived(**common) if is_due else None
        case AskCall():
            if not call.asked:
                return None  # the question is still being written
            mail = tx.take(host.run_id, f"{ANSWER_TOPIC}{call.number}")
            if mail is None and not is_due:
                return None
            tx.close_question(host.run_id, call.number)
            if mail is None:
                return e.QuestionAnswered(**common)
            return e.QuestionAnswered(**common, message=mail.id, body=mail.body, sender=mail.sender)
        case ActCall():
            return _ruled(tx, host, call, now_ms)
        case ResultCall():
            return _child_end(tx, request.name, common)
        case _:
            return None


def _ruled(tx: Transaction, host: Host, call: OpenCall, now_ms: int) -> e.Entry | None:
    """What a decision makes of a held or doubtful action."""
    mail = tx.take(host.run_id, f"{ACTION_TOPIC}{call.number}")
    limit = host.driver.payload_bytes_max
    if mail is not None:
        ruling = msgspec.json.decode(mail.body.inline or tx.blob(mail.body.blob), type=ledger.Ruling)
    elif call.held and (due_ms := call.wait_due_ms) is not None and now_ms >= due_ms:
        if isinstance(call.intent, e.ActionHeld) and call.intent.reason.code == ledger.OUTBOX:
            common = {"call": call.number, "name": call.request.name, "digest": call.request.digest}
            return e.ActionDecided(**position(host, now_ms), **common, decision="live", by="outbox")  # type: ignore[arg-type]
        asked = intents.escalate(tx, position(host, now_ms), host.run_id, call.intent)
        if asked is not None:
            return asked
        ruling = ledger.Ruling(
            decision="expire", by="deadline", reason="nobody approved it in time", about="held"
        )
    else:
        return None
    made = ledger.rule(
        tx, position(host, now_ms), host.run_id, call.number, call.request.digest, ruling, limit
    )
    if made is None:
        return None
    entry, blobs = made
    if blobs:
        tx.append(host.run_id, host.fence, (), blobs)
    return entry


def _child_end(tx: Transaction, child: str, common: dict[str, Any]) -> e.Entry | None:
    row = tx.run(child)
    if row is None:
        unknown = e.Failure(code="run-unknown", message=f"no run has the id `{child}`")
        return e.ChildEnded(**common, child=child, error=unknown)
    if not row.status.is_ended:
        return None
    last = tx.journal(child, after=row.seq - 1)[-1]
    result, error = outcome_of(last)
    return e.ChildEnded(**common, child=child, result=result, error=error)


def outcome_of(last: e.Entry) -> tuple[Payload | None, e.Failure | None]:
    """The result or the error that the last entry of an ended run tells."""
    match last:
        case e.RunCompleted(result=result):
            return result, None
        case e.RunFailed(error=error) | e.RunBlocked(error=error):
            return None, error
        case e.RunCancelled(reason=reason):
            return None, e.Failure(code="run-cancelled", message=reason)
        case _:
            return NULL, None


def _describe(waits: Sequence[OpenCall], timers: Sequence[tuple[int, int]]) -> tuple[e.Wait, ...]:
    found = [
        e.Wait(
            call=call.number, kind=call.request.kind, name=call.request.name, digest=call.request.digest,
            due_ms=call.wait_due_ms,
        )
        for call in waits
    ]  # fmt: skip
    found += [e.Wait(call=number, kind="timer", name="", due_ms=due) for due, number in timers]
    return tuple(found)
