"""What must hold when every run has come to its end: the world's log, the ledger, the journals, the grants and the audit log agree.

The log is that of another process which nobody killed. The rest is what the killed workers left on disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from bench.torture.clerk import Clerk
from bench.torture.log import Log
from bench.torture.world import HELD_FROM_CENTS, NEVER_FROM_CENTS, PAYMENTS_MAX
from perdure import Runtime
from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState, Spend
from perdure.core.records import RunRecord, Status
from perdure.gateway.outputs import read_kept
from perdure.governance.grants import read_statement

S = ActionState
ONCE = ("opaque", "queryable")  # what these declare is never repeated without a decision or a probe
EXAMPLES_MAX = 20  # problems that are told in words; all are counted


@dataclass
class Verdict:
    """What must be zero, then what there was.

    Attributes:
        lost_runs: acknowledged runs, or children of them, that did not come to their end with a result.
        repeated: opaque and queryable actions that reached the world more often than once and once for each decision ``retry``.
        unproven: actions that are recorded as done and did not reach the world, or whose result is not what the world answered.
        unrecorded: what reached the world and is in no ledger.
        escaped: what reached the world although it was denied, forbidden, not granted, or with other arguments than recorded.
        grants_reused: grants that released more than one action, or were taken for another.
        unlisted: opaque actions that were cut off by a kill, or are open at the end, and were not listed as doubtful.
        overspent: accounts that are over their budget, keep a reservation, or differ from the sum of their actions.
        misconduct: runs that did what their conduct rules do not let through.
        audit: problems that the verifier of the audit log found, and actions whose record does not tell their states.
    """

    lost_runs: int = 0
    repeated: int = 0
    unproven: int = 0
    unrecorded: int = 0
    escaped: int = 0
    grants_reused: int = 0
    unlisted: int = 0
    overspent: int = 0
    misconduct: int = 0
    audit: int = 0
    runs: int = 0
    actions: int = 0
    effects: int = 0
    effects_repeated_as_declared: int = 0
    doubtful: int = 0
    grants: int = 0
    audit_records: int = 0
    examples: list[str] = field(default_factory=list)

    def plus(self, other: Verdict) -> Verdict:
        """Both together."""
        sums = {key: value + getattr(other, key) for key, value in asdict(self).items()}
        return Verdict(**{**sums, "examples": sums["examples"][:EXAMPLES_MAX]})

    @property
    def is_good(self) -> bool:
        """Nothing that must be zero is more."""
        return not any(getattr(self, name) for name in ZEROS)

    def wrong(self, kind: str, what: str) -> None:
        """Count a problem."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{kind}: {what}")


ZEROS = ("lost_runs", "repeated", "unproven", "unrecorded", "escaped", "grants_reused", "unlisted", "overspent",
         "misconduct", "audit")  # fmt: skip


class Judge:
    """Judges one data directory.

    Args:
        clerk: who tended it, with the runtime beside it.
        log: the world's.
        cut_off: opaque actions that were intended and had no outcome when a worker was killed.
    """

    def __init__(self, clerk: Clerk, log: Log, cut_off: set[str]) -> None:
        self._clerk, self._log, self._cut_off = clerk, log, cut_off
        self._runtime: Runtime = clerk.runtime
        self._verdict = Verdict()
        self._used: Counter[str] = Counter()  # grants that the store says are used
        self._named: Counter[str] = Counter()  # grants that an intent names

    async def verdict(self) -> Verdict:
        """Look at everything."""
        verdict = self._verdict
        keys: set[str] = set()
        for record in self._runs():
            verdict.runs += 1
            journal = self._runtime.store.read(lambda tx, run=record.id: tx.journal(run))  # type: ignore[misc]
            rows = self._runtime.actions.all_of(record.id)
            if record.status is not Status.COMPLETED:
                verdict.wrong("lost_runs", f"{record.id} of {record.agent} is {record.status}")
            self._conduct(record, rows, journal)
            self._account(record)
            for row in rows:
                keys.add(row.key)
                mine = [item for item in journal if isinstance(item, e.CallEntry) and item.call == row.call]
                self._action(row, mine)
            self._told(record, rows)
        self._grants()
        for key in self._log.lines:
            if key and key not in keys:
                verdict.wrong("unrecorded", f"{key} reached the world")
        for key in sorted(self._cut_off - self._clerk.listed):
            verdict.wrong("unlisted", f"{key} was cut off and never listed")
        found = self._runtime.audit.verify()
        verdict.audit_records = found.size
        for problem in found.problems:
            verdict.wrong("audit", problem)
        verdict.doubtful = len(self._clerk.listed)
        return verdict

    def _runs(self) -> list[RunRecord]:
        """Every acknowledged run and its children."""
        found: list[RunRecord] = []
        for name in self._clerk.accepted:
            found.append(self._runtime.run(name).record())
            found += self._runtime.store.read(lambda tx, run=name: tx.children(run))  # type: ignore[misc]
        return found

    # -- one action
    def _action(self, row: ActionRecord, journal: list[e.CallEntry]) -> None:
        verdict, lines = self._verdict, self._log.lines.get(row.key, [])
        verdict.actions += 1
        verdict.effects += len(lines)
        again = max(0, len(lines) - 1 - self._clerk.retries[row.key])
        if row.recovery in ONCE and again:
            verdict.wrong("repeated", f"{row.key} `{row.name}` was done {len(lines)} times")
        elif again:
            verdict.effects_repeated_as_declared += again
        if row.state.is_open:
            verdict.wrong("unlisted", f"{row.key} `{row.name}` is still {row.state}")
        asked, ended = _told_of(self._runtime, journal)
        if row.state is S.SUCCEEDED and row.recovery != "pure":
            receipt = (ended or {}).get("receipt")
            if receipt not in [line["receipt"] for line in lines]:
                verdict.wrong("unproven", f"{row.key} `{row.name}` returned {receipt}, the world {lines}")
        if row.state is S.REFUSED and lines:
            verdict.wrong("escaped", f"{row.key} `{row.name}` was refused ({row.code}) and done")
        grants = self._granted(row, journal)
        for line in lines:
            cents = int(line["asked"].get("cents", 0))
            if cents >= NEVER_FROM_CENTS or (cents >= HELD_FROM_CENTS and not grants):
                verdict.wrong("escaped", f"{row.key} paid {cents} with grants {grants}")
            if {key: str(value) for key, value in asked.items()} != line["asked"]:
                verdict.wrong("escaped", f"{row.key} did {line['asked']}, recorded is {asked}")
        if lines and not any(isinstance(item, e.ActionIntended) for item in journal):
            verdict.wrong("escaped", f"{row.key} was done without an intent")
        self._audited(row)

    def _granted(self, row: ActionRecord, journal: list[e.CallEntry]) -> list[str]:
        """The grants of an action that were used up, in the store and by its intents."""
        listed = self._runtime.store.read(lambda tx: tx.grants(row.run, row.call))
        used = [item for item in listed if item.used_ms is not None]
        self._verdict.grants += len(used)
        named = [item.grant for item in journal if isinstance(item, e.ActionIntended) and item.grant]
        self._used.update(item.jti for item in used)
        self._named.update(named)
        return [item.jti for item in used if read_statement(item.token).decision != "reject"]

    def _grants(self) -> None:
        verdict = self._verdict
        for jti, count in self._named.items():
            if count != 1 or self._used[jti] != 1:
                verdict.wrong("grants_reused", f"grant {jti}: named {count} times, used {self._used[jti]}")
        for _ in range(self._clerk.accepted_wrongly):
            verdict.wrong("grants_reused", "a grant was taken for another action")

    def _audited(self, row: ActionRecord) -> None:
        """The last that the log says of an action is what it is."""
        told = [leaf.record for leaf in self._runtime.audit.records(row.key)]
        states = [item.state for item in told if item.state]
        if states[-1:] != [row.state]:
            self._verdict.wrong("audit", f"{row.key} is {row.state}, the log says {states}")
        if row.state is not S.REFUSED and S.INTENDED not in states:
            self._verdict.wrong("audit", f"the log has no intent of {row.key}")

    # -- one run
    def _told(self, record: RunRecord, rows: list[ActionRecord]) -> None:
        """What the agent was told is what is in the ledger and in the world."""
        if record.status is not Status.COMPLETED or record.agent != "buyer":
            return
        entry = self._runtime.store.read(lambda tx: tx.journal(record.id))[-1]
        assert isinstance(entry, e.RunCompleted)
        result = msgspec.json.decode(self._runtime.bytes_of(entry.result))
        receipts = {line["receipt"] for row in rows for line in self._log.lines.get(row.key, ())}
        done = [said for name, said in result if name != "look" and len(said) == 16 and "-" not in said]
        if len(done) != len(set(done)) or not set(done) <= receipts:
            world = sorted(receipts)
            self._verdict.wrong("unproven", f"{record.id} was told {done}, the world answered {world}")
        wanted = sum(row.state is S.SUCCEEDED and row.recovery != "pure" for row in rows)
        if len(done) != wanted:
            told = f"{record.id} was told of {len(done)} actions, {wanted} succeeded"
            self._verdict.wrong("unproven", told)

    def _conduct(self, record: RunRecord, rows: list[ActionRecord], journal: list[Any]) -> None:
        payments = [row.call for row in rows if row.name == "pay"]
        intents = [item for item in journal if isinstance(item, e.ActionIntended) and item.call in payments]
        if len({item.call for item in intents}) > PAYMENTS_MAX:
            self._verdict.wrong("misconduct", f"{record.id} paid {len(intents)} times")
        looks = {row.call for row in rows if row.name == "look" and row.state is S.SUCCEEDED}
        seen = [item.seq for item in journal if isinstance(item, e.ActionEnded) and item.call in looks]
        if intents and (not seen or intents[0].seq < min(seen)):
            self._verdict.wrong("misconduct", f"{record.id} paid before it looked")

    def _account(self, record: RunRecord) -> None:
        """The account is the sum of the actions below it, and within its budget."""
        children = self._runtime.store.read(lambda tx: tx.children(record.id))
        spent = Spend()
        for run in (record.id, *(child.id for child in children)):
            for row in self._runtime.actions.all_of(run):
                spent = spent.plus(row.spent)
        for account in self._runtime.actions.accounts(record.id):
            if account.run != record.id:
                continue
            limit = account.budget.calls if account.budget else None
            is_over = limit is not None and account.spent.calls > limit
            if is_over or account.reserved != Spend() or account.spent != spent:
                self._verdict.wrong("overspent", f"{account}, its actions {spent}")


def _told_of(runtime: Runtime, journal: list[e.CallEntry]) -> tuple[dict[str, Any], Any]:
    """The arguments of the last intent or hold of an action, and its result."""
    asked: dict[str, Any] = {}
    result: Any = None
    for item in journal:
        if isinstance(item, e.ActionIntended | e.ActionHeld):
            asked = msgspec.json.decode(runtime.bytes_of(item.request))
        elif isinstance(item, e.ActionEnded) and item.result is not None:
            result = read_kept(runtime.bytes_of(item.result)).value
    return asked, result
