"""The second half of the oracle: what must hold of actions and budgets, from the committed rows alone.

The numbers go on from the oracle's: 10 no effect without a durable intent; 11 an opaque or queryable tool touches the
world once, and once more for each decision ``retry``; 12 accounts are the sums over the ledger, and never over a budget;
13 states change by the table, under the lease; 14 the ledger and the journals agree; 15 after healing nothing is open; 16 the audit
log tells of every change of an action, in order, and its tree is that of its records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core import entries as e
from perdure.core.actions import Account, ActionFilter, ActionRecord, ActionState, Spend
from perdure.core.records import RunFilter, RunRecord
from perdure.core.values import decode
from perdure.governance.merkle import Frontier, leaf_hash
from perdure.kernel.actions import FIRST, TRANSITIONS

if TYPE_CHECKING:
    from perdure.testing.oracle import Oracle
    from perdure.testing.world import World

S = ActionState
NOTHING = Spend()
_ALLOWED = {(before.value, after.value) for _, befores, after in TRANSITIONS for before in befores}
_FIRST = {state.value for state in FIRST}
_OPEN = tuple(state for state in S if state.is_open)
_ENDED = ("completed", "failed", "cancelled")
_spend = msgspec.json.Decoder(Spend).decode
_LIMITED = ("tokens", "usd_micros", "calls")

# What this oracle sees of each commit, beside the tables that ``store`` watches.
WATCH = """
CREATE TEMP TABLE seen_actions (
    run INTEGER, call INTEGER, before TEXT, after TEXT, reserved TEXT, spent TEXT, worker TEXT, status TEXT
);
CREATE TEMP TRIGGER see_action AFTER INSERT ON main.actions BEGIN
    INSERT INTO seen_actions SELECT new.run, new.call, '', new.state, new.reserved, new.spent, worker, status
    FROM main.runs WHERE key = new.run;
END;
CREATE TEMP TRIGGER see_action_change AFTER UPDATE ON main.actions BEGIN
    INSERT INTO seen_actions SELECT new.run, new.call, old.state, new.state, new.reserved, new.spent, worker, status
    FROM main.runs WHERE key = new.run;
END;
CREATE TEMP TRIGGER see_action_gone AFTER DELETE ON main.actions BEGIN
    INSERT INTO seen_actions VALUES (old.run, old.call, old.state, 'deleted', '{}', '{}', NULL, '');
END;
CREATE TEMP TABLE seen_decisions (run INTEGER, call INTEGER, state TEXT, body BLOB);
CREATE TEMP TRIGGER see_decision AFTER INSERT ON main.mail WHEN new.topic LIKE 'perdure.action/%' BEGIN
    INSERT INTO seen_decisions SELECT run, call, state, new.body FROM main.actions
    WHERE run = new.run AND 'perdure.action/' || call = new.topic;
END;
CREATE TEMP TABLE seen_accounts (run INTEGER);
CREATE TEMP TRIGGER see_account AFTER INSERT ON main.accounts BEGIN INSERT INTO seen_accounts VALUES (new.run); END;
CREATE TEMP TRIGGER see_account_change AFTER UPDATE ON main.accounts BEGIN
    INSERT INTO seen_accounts VALUES (new.run);
END;
"""


class LedgerOracle:
    """Watches the actions of one world."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._world = world
        self._demand = oracle.demand
        self.touched: Counter[str] = Counter()  # by key: how often a tool reached the world
        self._intended: set[str] = set()  # keys whose intent is durable
        self._retries: Counter[str] = Counter()  # by key: durable decisions to send it again
        self._permits: Counter[str] = Counter()  # by key: how often somebody said so while it was in doubt
        self._states: dict[str, str] = {}  # by key: before the commit that is looked at
        self._rows: dict[str, tuple[Spend, Spend]] = {}  # by key: reserved, spent
        self._used: dict[str, list[Spend]] = defaultdict(
            lambda: [NOTHING, NOTHING]
        )  # by run, with its children

    # -- the world is touched
    def effect(self, recovery: str, key: str) -> None:
        """A tool reaches the world."""
        self._world.log("act", recovery, key)
        self._demand(
            10, key in self._intended, f"{recovery} {key} reached the world, its intent is not durable"
        )
        if recovery in ("opaque", "queryable"):
            times, allowed = self.touched[key] + 1, 1 + self._retries[key]
            self._demand(
                11, times <= allowed, f"{recovery} {key} reached the world {times} times, {allowed} allowed"
            )
            if times > 1:
                self._world.sometimes["opaque tool repeated by decision"] += 1
        elif self.touched[key]:
            self._world.sometimes[f"{recovery} tool repeated"] += 1
        self.touched[key] += 1

    def asked(self, key: str) -> None:
        """A model request leaves the process."""
        self._world.log("ask", key)
        self._demand(10, key in self._intended, f"model request {key} was sent, its intent is not durable")

    # -- at every commit
    def entry(self, run: str, entry: e.AnyEntry) -> None:
        """An entry is durable now."""
        if not isinstance(entry, e.CallEntry):
            return
        key = f"{run}/{entry.call}"
        sometimes = self._world.sometimes
        match entry:
            case e.ActionIntended():
                self._intended.add(key)
            case e.ActionDecided(decision="retry") if self._is_doubtful(key):
                self._retries[key] += 1
                allowed = self._retries[key] <= self._permits[key]
                self._demand(11, allowed, f"{key} goes on by a decision that was not about its doubt")
                sometimes["decided: retry"] += 1
            case e.ActionDecided():
                sometimes["decided: let the held one go on"] += 1
            case e.ActionEnded(state=state, decided_by=by):
                sometimes[f"action {state}"] += 1
                if by == "probe":
                    sometimes["decided by the probe"] += 1
                elif by:
                    sometimes[f"decided: {state}"] += 1

    def _is_doubtful(self, key: str) -> bool:
        """Whether the entry's own commit took the action out of ``unknown`` (the rows are looked at afterwards)."""
        return self._states.get(key) == S.UNKNOWN

    def begin(self) -> None:
        """Look at decisions, and at what states actions had before a commit; its entries are shown after that."""
        execute = self._world.disk.connection.execute
        found = execute(
            "SELECT r.id, s.call, s.before FROM seen_actions s JOIN runs r ON r.key = s.run ORDER BY s.rowid DESC"
        )
        self._states = {f"{run}/{call}": before for run, call, before in found.fetchall()}
        for run, call, state, body in execute(
            "SELECT r.id, s.call, s.state, s.body FROM seen_decisions s JOIN runs r ON r.key = s.run"
        ).fetchall():
            self._permits[f"{run}/{call}"] += (
                state == S.UNKNOWN and decode(body)["inline"]["decision"] == "retry"
            )
        execute("DELETE FROM temp.seen_decisions")

    def committed(self, worker: str) -> None:
        """Look at what a commit did to the ledger and the accounts."""
        execute = self._world.disk.connection.execute
        touched: set[str] = set()
        for run, call, before, after, reserved, spent, holder, status in execute(
            "SELECT r.id, s.call, s.before, s.after, s.reserved, s.spent, s.worker, s.status FROM seen_actions s "
            "JOIN runs r ON r.key = s.run ORDER BY s.rowid"
        ).fetchall():
            key = f"{run}/{call}"
            legal = after in _FIRST if not before else (before, after) in _ALLOWED
            self._demand(13, legal, f"action {key} went from `{before}` to `{after}`")
            held = status in _ENDED or (status == "running" and holder == worker)
            self._demand(
                13, held, f"{worker or 'a client'} moved action {key} of a run {status} under `{holder}`"
            )
            if after == S.INTENDED:
                self._demand(
                    14, key in self._intended, f"action {key} is intended, its journal does not say so"
                )
            if status in _ENDED:
                self._world.sometimes["settled after the end of its run"] += 1
            if before == S.HELD and after == S.INTENDED:
                self._world.sometimes["held action released"] += 1
            touched.add(run)
            self._count(run, key, _spend(reserved), _spend(spent))
        for (run,) in execute("SELECT r.id FROM seen_accounts s JOIN runs r ON r.key = s.run").fetchall():
            touched.add(run)
        for run in sorted(touched):
            self._accounts(run)
        execute("DELETE FROM temp.seen_actions")
        execute("DELETE FROM temp.seen_accounts")

    def _count(self, run: str, key: str, reserved: Spend, spent: Spend) -> None:
        before = self._rows.get(key, (NOTHING, NOTHING))
        self._rows[key] = (reserved, spent)
        name: str | None = run
        while name is not None:
            sums = self._used[name]
            sums[0] = sums[0].plus(reserved).minus(before[0])
            sums[1] = sums[1].plus(spent).minus(before[1])
            row = self._world.disk.read(lambda tx, name=name: tx.run(str(name)))  # type: ignore[misc]
            name = None if row is None else row.parent

    def _accounts(self, run: str) -> None:
        for account in self._world.disk.read(lambda tx: tx.accounts(run)):
            reserved, spent = self._used[account.run]
            same = (account.reserved, account.spent) == (reserved, spent)
            self._demand(
                12, same,
                f"the account of {account.run} says {account.reserved}, {account.spent}; its ledger {reserved}, {spent}",
            )  # fmt: skip
            self._within(account)

    def _within(self, account: Account) -> None:
        used = account.reserved.plus(account.spent)
        for part in _LIMITED:
            limit = getattr(account.budget, part, None)
            amount = getattr(used, part)
            self._demand(12, amount >= 0, f"{account.run} used {amount} {part}")
            over = limit is not None and amount > limit
            self._demand(12, not over, f"{account.run} used {amount} {part} of {limit}")

    # -- at the end
    def open(self) -> list[ActionRecord]:
        """Actions whose end is still to come."""
        return self._world.disk.read(lambda tx: tx.actions(ActionFilter(state=_OPEN, limit=10_000)))

    def finished(self) -> None:
        """Everything that must hold when the world has healed and everybody has decided."""
        for action in self.open():
            self._demand(15, False, f"action {action.key} ({action.recovery}) is still {action.state}")
        for run in self._world.disk.read(lambda tx: tx.runs(RunFilter(limit=10_000))):
            rows = self._world.disk.read(lambda tx, name=run.id: tx.run_actions(name))  # type: ignore[misc]
            if not rows:
                continue
            journal = self._world.disk.read(lambda tx, name=run.id: tx.journal(name))  # type: ignore[misc]
            self._agrees(run, journal, rows)
            self._accounts(run.id)
            self._audited(run.id, rows)
        self._tree()

    def _audited(self, run: str, rows: list[ActionRecord]) -> None:
        """Every state that a row has had is a record, and the last one is the state it is in."""
        told: dict[int, list[str]] = defaultdict(list)
        for leaf in self._world.disk.read(lambda tx: tx.audit_of(run)):
            told[leaf.record.call or 0].append(leaf.record.state)
        for row in rows:
            states = told.pop(row.call, [])
            self._demand(16, states[-1:] == [row.state], f"{row.key} is {row.state}, the log says {states}")
            changes = [state for place, state in enumerate(states) if not place or states[place - 1] != state]
            first = bool(changes) and changes[0] in _FIRST
            legal = all(pair in _ALLOWED for pair in pairwise(changes))
            self._demand(16, first and legal, f"the log says of {row.key}: {states}")
        self._demand(16, not told, f"the log tells of actions of {run} that the ledger does not have: {told}")

    def _tree(self) -> None:
        frontier = Frontier(0, b"")
        for leaf in self._world.disk.read(lambda tx: tx.audit_records()):
            frontier, _ = frontier.append(leaf_hash(leaf.leaf))
        found = self._world.disk.read(lambda tx: tx.audit_head())
        self._demand(
            16,
            found == (frontier.size, frontier.root),
            "the head of the audit log is not that of its records",
        )

    def _agrees(self, run: RunRecord, journal: list[e.AnyEntry], rows: list[ActionRecord]) -> None:
        told = _told(journal)
        for row in rows:
            self._demand(15, row.reserved == NOTHING, f"{row.key} is {row.state} and keeps {row.reserved}")
            entry, intents = told.pop(row.call, (None, set()))
            self._demand(14, entry is not None, f"{row.key} is in the ledger and not in the journal")
            self._demand(
                14, row.intent_seq in intents, f"{row.key} says intent {row.intent_seq}, found {intents}"
            )
            if isinstance(entry, e.ActionEnded):
                same = (row.state, row.end_seq) == (entry.state, entry.seq)
                self._demand(14, same, f"{row.key} is {row.state} at {row.end_seq}, the journal says {entry}")
                self._happened(row, entry)
            else:  # what the run's end left open, and what was decided about it afterwards
                self._demand(
                    14, run.status.is_ended and row.end_seq is None, f"{row.key} has no end in the journal"
                )
        for call, (entry, _) in told.items():
            refused = isinstance(entry, e.ActionEnded) and entry.state == S.REFUSED
            self._demand(14, refused, f"{entry} of {run.id}/{call} is in the journal and not in the ledger")

    def _happened(self, row: ActionRecord, entry: e.ActionEnded) -> None:
        by_human = entry.decided_by not in ("", "probe")
        if row.what == "tool" and row.state is S.SUCCEEDED and not by_human:
            self._demand(11, self.touched[row.key], f"{row.key} is {row.state}, but never reached the world")
        if row.state is S.REFUSED:
            self._demand(10, not self.touched[row.key], f"{row.key} was refused, but reached the world")


def _told(journal: list[e.AnyEntry]) -> dict[int, tuple[Any, set[int]]]:
    """What a journal says of each action: its last entry, and where it was proposed or refused."""
    found: dict[int, tuple[Any, set[int]]] = {}
    for entry in journal:
        if isinstance(entry, e.ActionIntended | e.ActionHeld):
            intents = found[entry.call][1] if entry.call in found else set()
            found[entry.call] = (entry, {*intents, entry.seq})
        elif isinstance(entry, e.ActionDoubted | e.ActionDecided | e.ActionEnded):
            intents = found[entry.call][1] if entry.call in found else {entry.seq}
            found[entry.call] = (entry, intents)
    return found
