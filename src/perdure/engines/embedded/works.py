"""Control works: what may be done to a run from outside, each one transaction.

Plain functions over a ``Transaction``: they await nothing and read no clock, so the engine, a command line beside a
running engine, and the simulator all use the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from perdure.agents.requests import ANSWER_TOPIC
from perdure.core import entries as e
from perdure.core.actions import ACTION_TOPIC, ActionRecord, ActionState, Budget
from perdure.core.approvals import GrantRecord
from perdure.core.errors import (
    ActionUnknownError,
    ForkInvalidError,
    QuestionUnknownError,
    RunEndedError,
    RunUnknownError,
    SessionBusyError,
    UsageError,
)
from perdure.core.principals import Principal
from perdure.core.records import Conflict, RunRecord, Status
from perdure.core.values import Payload, pack
from perdure.gateway import ledger
from perdure.kernel.machine import transition
from perdure.ports.store import Transaction

OPERATOR = (
    "operator"  # the worker name under which control works hold a lease for the time of one transaction
)


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be accepted."""

    id: str
    agent: str
    version: str
    input: Payload
    chance: int
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    session: str | None = None
    idempotency_key: str | None = None
    parent: str | None = None
    priority: int = 0
    deadline_ms: int | None = None
    conflict: Conflict = "enqueue"
    budget: Budget | None = None
    principals: tuple[Principal, ...] = ()
    goal: str = ""


def find(tx: Transaction, run_id: str) -> RunRecord:
    """The row of a run.

    Raises:
        RunUnknownError: there is none.
    """
    record = tx.run(run_id)
    if record is None:
        raise RunUnknownError(f"no run has the id `{run_id}`; `perdure runs list` shows them", run=run_id)
    return record


def start(
    tx: Transaction, new: NewRun, now_ms: int, *, worker: str | None = None
) -> tuple[RunRecord, list[str]]:
    """Accept a run, once per id and per idempotency key; its row and the runs to look after.

    With ``worker`` a run that need not wait is claimed in the same transaction.

    Raises:
        SessionBusyError: its session has an unfinished run and ``conflict`` is ``reject``.
    """
    touched: list[str] = []
    ahead = [] if new.session is None else tx.session_runs(new.agent, new.session)
    known = tx.run(new.id)
    if ahead and known is None and not _is_repeat(ahead, new):
        if new.conflict == "reject":
            message = f"session `{new.session}` of agent `{new.agent}` is busy with run `{ahead[0].id}`"
            raise SessionBusyError(f"{message}; wait for it, or start with another session", run=ahead[0].id)
        if new.conflict == "interrupt":
            for other in ahead:
                touched += cancel(tx, other.id, f"interrupted by run `{new.id}`", now_ms)
    if ahead:
        status, fence, holder = Status.PENDING, 0, None
    elif worker is not None:
        status, fence, holder = Status.RUNNING, 1, worker
    else:
        status, fence, holder = Status.QUEUED, 0, None
    record = RunRecord(
        id=new.id,
        agent=new.agent,
        status=status,
        created_ms=now_ms,
        session=new.session,
        idempotency_key=new.idempotency_key,
        parent=new.parent,
        priority=new.priority,
        fence=fence,
        worker=holder,
        seq=1,
        ready_ms=now_ms,
        deadline_ms=new.deadline_ms,
    )
    started = e.RunStarted(
        seq=1,
        at_ms=now_ms,
        agent=new.agent,
        version=new.version,
        input=new.input,
        chance=new.chance,
        session=new.session,
        parent=new.parent,
        deadline_ms=new.deadline_ms,
        principals=new.principals,
        goal=new.goal,
    )
    inserted = tx.insert_run(record, (started,), new.blobs)
    if new.budget is not None and known is None and inserted.id == new.id:
        tx.set_budget(new.id, new.budget)
    return inserted, touched


def _is_repeat(ahead: list[RunRecord], new: NewRun) -> bool:
    return new.idempotency_key is not None and any(
        run.idempotency_key == new.idempotency_key for run in ahead
    )


def wake(tx: Transaction, run_id: str, now_ms: int) -> None:
    """Queue a run if it waits; a running one looks after itself when it is told."""
    tx.set_status(run_id, Status.WAITING, transition(Status.WAITING, "wake"), now_ms=now_ms)


def send(
    tx: Transaction,
    run_id: str,
    topic: str,
    body: Payload,
    blobs: Mapping[str, bytes],
    *,
    sender: str,
    now_ms: int,
    key: str | None = None,
) -> int:
    """Put a message into a mailbox and wake its run; the message's id (0 if ``key`` was there already).

    Raises:
        RunUnknownError, RunEndedError: nobody will read it.
    """
    record = find(tx, run_id)
    message = tx.deliver(run_id, topic, body, blobs, sender=sender, now_ms=now_ms, key=key)
    if (
        record.status.is_ended and message
    ):  # raising undoes the delivery; a repeat of an old message is no error
        raise RunEndedError(f"run `{run_id}` is {record.status} and takes no more messages", run=run_id)
    wake(tx, run_id, now_ms)
    return message


def answer(
    tx: Transaction,
    run_id: str,
    call: int,
    body: Payload,
    blobs: Mapping[str, bytes],
    *,
    sender: str,
    now_ms: int,
) -> int:
    """Answer a question, once.

    Raises:
        QuestionUnknownError: that call asks nothing, or was answered.
    """
    find(tx, run_id)
    topic = f"{ANSWER_TOPIC}{call}"
    if not any(item.call == call for item in tx.questions(run_id)) or tx.has_mail(run_id, topic):
        message = (
            f"run `{run_id}` has no open question in call {call}; `perdure runs show {run_id}` lists them"
        )
        raise QuestionUnknownError(message, run=run_id, call=call)
    return send(tx, run_id, topic, body, blobs, sender=sender, now_ms=now_ms)


def settle_action(
    tx: Transaction, run_id: str, call: int, ruling: ledger.Ruling, *, now_ms: int, limit: int
) -> ActionRecord:
    """Decide about a doubtful or held action; the row as it was.

    The decision travels in the run's mailbox, so that it is taken under the run's lease. Where the run has ended only the
    ledger changes.

    Raises:
        ActionUnknownError: there is none, it is in another state, or it was decided already.
    """
    record = find(tx, run_id)
    row = ledger.found(tx, run_id, call)
    allowed = ledger.decisions(row)
    if ruling.decision not in allowed:
        expected = ", ".join(f"`{item}`" for item in allowed) or "nothing to decide"
        message = f"action `{row.key}` is {row.state}: expected {expected}, found `{ruling.decision}`"
        raise ActionUnknownError(message, action=row.key, state=row.state.value)
    if record.status.is_ended:
        ledger.settle_ended(tx, row, ruling, now_ms)
        return row
    topic = f"{ACTION_TOPIC}{call}"
    if tx.has_mail(run_id, topic):
        raise ActionUnknownError(
            f"action `{row.key}` has a decision already; its run takes it up", action=row.key
        )
    stated = msgspec.structs.replace(ruling, about=row.state.value)
    body, blobs = pack(msgspec.json.encode(stated), limit)
    send(tx, run_id, topic, body, blobs, sender=ruling.by, now_ms=now_ms)
    return row


def submit_grant(
    tx: Transaction, grant: GrantRecord, ruling: ledger.Ruling | None, *, now_ms: int, limit: int
) -> None:
    """Keep a signed decision; with ``ruling``, tell the run of it: it has all the signatures that it needs.

    Raises:
        ActionUnknownError: there is no such action, it does not wait for a grant, or it has a decision already.
    """
    row = ledger.found(tx, grant.run, grant.call)
    if row.state is not ActionState.HELD or row.code != ledger.APPROVAL_NEEDED:
        raise ActionUnknownError(
            f"action `{row.key}` is {row.state} and waits for no grant", action=row.key, state=row.state.value
        )
    topic = f"{ACTION_TOPIC}{grant.call}"
    if tx.has_mail(grant.run, topic):
        raise ActionUnknownError(
            f"action `{row.key}` has a decision already; its run takes it up", action=row.key
        )
    tx.put_grant(grant)
    if ruling is None:
        return
    stated = msgspec.structs.replace(ruling, about=row.state.value)
    body, blobs = pack(msgspec.json.encode(stated), limit)
    send(tx, grant.run, topic, body, blobs, sender=ruling.by, now_ms=now_ms)


def set_budget(tx: Transaction, run_id: str, budget: Budget | None, *, now_ms: int, by: str) -> list[str]:
    """Give a run another budget and let what waited for one be judged again; the runs to look after.

    Raises:
        RunUnknownError: there is no such run.
    """
    touched: list[str] = []
    pending = [find(tx, run_id)]
    tx.set_budget(run_id, budget)
    ruling = msgspec.json.encode(ledger.Ruling(decision="retry", by=by, about=ActionState.HELD.value))
    while pending:
        record = pending.pop()
        pending.extend(tx.children(record.id))
        if record.status.is_ended:
            continue
        for row in tx.run_actions(record.id):
            topic = f"{ACTION_TOPIC}{row.call}"
            if (
                row.state is ActionState.HELD
                and row.code == "budget-exhausted"
                and not tx.has_mail(record.id, topic)
            ):
                body, _ = pack(ruling, len(ruling))
                send(tx, record.id, topic, body, {}, sender=by, now_ms=now_ms)
                touched.append(record.id)
    return touched


def cancel(
    tx: Transaction, run_id: str, reason: str, now_ms: int, *, code: str = "run-cancelled"
) -> list[str]:
    """Ask for a run and its unfinished children to be cancelled; the runs to look after.

    Raises:
        RunUnknownError: there is no such run.
    """
    touched: list[str] = []
    pending = [find(tx, run_id)]
    while pending:
        record = pending.pop()
        if record.status.is_ended:
            continue
        tx.request_cancel(record.id, reason, code)
        for status, event in (
            (Status.WAITING, "wake"),
            (Status.PENDING, "turn"),
            (Status.BLOCKED, "unblock"),
        ):
            tx.set_status(record.id, status, transition(status, event), now_ms=now_ms)
        touched.append(record.id)
        pending.extend(tx.children(record.id))
    return touched


def resume(tx: Transaction, run_id: str, now_ms: int, *, version: str | None) -> RunRecord:
    """Let a blocked run go on; with ``version``, under that version of its agent.

    Raises:
        UsageError: the run is not blocked.
    """
    record = tx.seize(run_id, OPERATOR, (Status.BLOCKED,))
    if record is None:
        status = find(tx, run_id).status
        raise UsageError(f"run `{run_id}` is {status}; only a blocked run is resumed by hand", run=run_id)
    last = tx.journal(run_id, after=record.seq - 1)[-1]
    at_ms = max(now_ms, last.at_ms)
    found: list[e.Entry] = [e.RunUnblocked(seq=record.seq + 1, at_ms=at_ms)]
    if version is not None:
        found.append(e.RunMigrated(seq=record.seq + 2, at_ms=at_ms, version=version))
    tx.append(run_id, record.fence, found, {})
    tx.move(run_id, record.fence, Status.QUEUED, now_ms=now_ms)
    return record


def end_effects(
    tx: Transaction, record_id: str, agent: str, session: str | None, parent: str | None, now_ms: int
) -> list[str]:
    """What the end of a run sets free: its parent, and the next run of its session."""
    touched: list[str] = []
    if parent is not None:
        wake(tx, parent, now_ms)
        touched.append(parent)
    if session is not None:
        waiting = [run for run in tx.session_runs(agent, session) if run.id != record_id]
        if waiting and waiting[0].status is Status.PENDING:
            tx.set_status(waiting[0].id, Status.PENDING, transition(Status.PENDING, "turn"), now_ms=now_ms)
            touched.append(waiting[0].id)
    return touched


def fork(
    tx: Transaction,
    origin: str,
    new_id: str,
    at: int,
    changes: Mapping[int, e.Entry],
    *,
    chance: int,
    now_ms: int,
) -> RunRecord:
    """Copy the first ``at`` entries of a run's journal into a new run and let that go on from there.

    Raises:
        ForkInvalidError: the journal has no entry ``at``, or has ended before it.
    """
    record = find(tx, origin)
    journal = tx.journal(origin, limit=at)
    if not 1 <= at <= record.seq or len(journal) != at:
        raise ForkInvalidError(
            f"run `{origin}` has entries 1 to {record.seq}; `at` is {at}", run=origin, at=at
        )
    kept: list[e.Entry] = [
        changes.get(entry.seq, entry) for entry in journal if not isinstance(entry, e.ENDINGS)
    ]
    if len(kept) != at:
        raise ForkInvalidError(
            f"entry {at} ends run `{origin}`; fork at {record.seq - 1} or before", run=origin, at=at
        )
    forked = e.RunForked(
        seq=at + 1, at_ms=max(now_ms, journal[-1].at_ms), origin=origin, at=at, chance=chance,
        changed=tuple(sorted(changes)),
    )  # fmt: skip
    row = RunRecord(
        id=new_id, agent=record.agent, status=Status.QUEUED, created_ms=now_ms, priority=record.priority,
        seq=at + 1, ready_ms=now_ms,
    )  # fmt: skip
    return tx.insert_run(row, [*kept, forked], {})
