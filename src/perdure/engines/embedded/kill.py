"""The kill switch: runs end in one transaction, without the help of whoever drives them."""

from __future__ import annotations

from perdure.core import entries as e
from perdure.core.actions import ActionRecord
from perdure.core.records import RunFilter, RunRecord, Status
from perdure.engines.embedded.works import OPERATOR, end_effects, find
from perdure.gateway import ledger
from perdure.kernel.machine import transition
from perdure.ports import Transaction

RUNS_MAX = 100_000  # of one scope at once
LIVE = tuple(status for status in Status if not status.is_ended)


def runs_in(tx: Transaction, scope: str) -> list[RunRecord]:
    """The unfinished runs in a scope (``*``, ``agent:NAME``, ``run:ID``), with everything below a run.

    Raises:
        RunUnknownError: the scope names a run that is not there.
    """
    kind, _, name = scope.partition(":")
    if kind == "run":
        found, pending = [], [find(tx, name)]
        while pending:
            record = pending.pop()
            pending.extend(tx.children(record.id))
            found.append(record)
        return [record for record in found if not record.status.is_ended]
    agent = name if kind == "agent" else None
    return tx.runs(RunFilter(agent=agent, status=LIVE, limit=RUNS_MAX))


def kill(tx: Transaction, run: str, reason: str, now_ms: int) -> tuple[list[str], list[ActionRecord]]:
    """End a run now: its lease is taken away, so that its worker can neither record nor dispatch.

    Returns:
        The runs to look after, and the actions of which nobody knows whether they happened.
    """
    record = tx.seize(run, OPERATOR, LIVE)
    if record is None:
        return [], []
    last = tx.journal(run, after=record.seq - 1)[-1]
    at_ms = max(now_ms, last.at_ms)
    tx.append(run, record.fence, (e.RunCancelled(seq=record.seq + 1, at_ms=at_ms, reason=reason),), {})
    for question in tx.questions(run):
        tx.close_question(run, question.call)
    ledger.close_run(tx, run, at_ms)
    doubtful = [row for row in tx.run_actions(run) if row.state is ledger.S.UNKNOWN]
    tx.move(run, record.fence, transition(Status.RUNNING, "cancel"), now_ms=now_ms, code="killed")
    touched = end_effects(tx, run, record.agent, record.session, record.parent, now_ms)
    return [run, *touched], doubtful
