"""The oracle: what must hold in a simulated world, checked at every commit, at every step and at the end.

The numbers are those of the invariants: 1 no gap, no fork, no changed prefix; 2 folding and replaying is equal;
3 each accepted message is received once; 4 a key touches the world once, and a recorded step never runs again; 6 no
entry without the current lease; 8 one run of a session at a time; 9 everything ends after healing.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from perdure.core import entries as e
from perdure.core.actions import ACTION_TOPIC
from perdure.core.errors import BrokenInvariantError, PerdureError
from perdure.core.records import RunFilter, RunRecord, Status
from perdure.core.values import decode
from perdure.kernel.machine import TRANSITIONS
from perdure.kernel.run import RunState, fold
from perdure.testing.ledger_oracle import LedgerOracle
from perdure.testing.replay import replayed

if TYPE_CHECKING:
    from perdure.engines.embedded.engine import EmbeddedEngine
    from perdure.testing.world import World

_ALLOWED = {(before.value, after.value) for _, befores, after in TRANSITIONS for before in befores}
_ALLOWED.add((Status.BLOCKED.value, Status.RUNNING.value))  # for the time of the operator's transaction
STANDSTILL_S = 20.0  # virtual seconds; steps end sooner, and without faults nothing else takes time
_BY_ANYONE = (e.RunStarted, e.RunForked, e.RunUnblocked, e.RunMigrated)


class Violation(AssertionError):
    """An invariant does not hold."""


class Oracle:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.states: dict[str, RunState] = {}
        self.bodies: dict[str, list[int]] = defaultdict(list)
        self.recorded: set[str] = set()  # tokens that steps returned and that are durable
        self.actions: set[str] = set()  # actions whose step is recorded
        self.accepted: dict[str, list[tuple[int, str, Any]]] = defaultdict(list)  # by run: id, topic, body
        self._progress: dict[tuple[str, str], tuple[int, float]] = {}
        self.touched: dict[str, set[str]] = defaultdict(set)  # keys with which an action reached the world
        self.ledger = LedgerOracle(world, self)

    def demand(self, number: int, condition: object, message: str) -> None:
        """Fail the world unless ``condition`` holds."""
        if not condition:
            violation = Violation(f"invariant {number}: {message}")
            self._world.log("VIOLATION", violation)
            self._world.loop.fail(violation)
            raise violation

    # -- at every commit
    def committed(self, worker: str) -> None:
        """Look at what a commit of ``worker`` (empty: a client) has changed."""
        execute = self._world.disk.connection.execute
        names = []
        self.ledger.begin()
        for run, seq, body, holder, status in execute(
            "SELECT r.id, s.seq, s.body, s.worker, s.status FROM seen_entries s JOIN runs r ON r.key = s.run "
            "ORDER BY s.rowid"
        ).fetchall():
            entry = e.decode_entry(body)
            names.append(f"{run[-6:]}:{seq}:{type(entry).__name__}")
            self.demand(1, entry.seq == seq, f"entry {entry.seq} of {run} is at position {seq}")
            if not isinstance(entry, _BY_ANYONE):
                held = status == "running" and holder == worker
                self.demand(
                    6, held, f"{worker or 'a client'} wrote {entry} to {run}, {status} under `{holder}`"
                )
            self._entry(run, entry)
            self.ledger.entry(run, entry)
            self.bodies[run].append(zlib.crc32(body))
        for what, run, seq in execute("SELECT what, run, seq FROM seen_changes").fetchall():
            self.demand(1, False, f"entry {seq} of run {run} was {what}")
        for before, after in execute("SELECT before, after FROM seen_status").fetchall():
            self.demand(1, (before, after) in _ALLOWED, f"a run went from {before} to {after}")
        for run, number, topic, body in execute(
            "SELECT r.id, m.id, m.topic, m.body FROM seen_mail m JOIN runs r ON r.key = m.run ORDER BY m.id"
        ).fetchall():
            if not topic.startswith(ACTION_TOPIC):  # decisions are judged by what becomes of their actions
                self.accepted[run].append((number, topic, decode(body)))
        self.ledger.committed(worker)
        for table in ("seen_entries", "seen_changes", "seen_status", "seen_mail"):
            execute(f"DELETE FROM temp.{table}")
        if names:
            self._world.log("commit", worker or "client", *names)

    def _entry(self, run: str, entry: e.AnyEntry) -> None:
        try:
            self.states[run] = fold([entry], self.states.get(run))
        except BrokenInvariantError as error:
            self.demand(1, False, f"{run}: {error}")
        self._world.sometimes[type(entry).__name__] += 1
        if isinstance(entry, e.StepCompleted):
            token = decode(entry.result.inline)
            self.recorded.add(token)
            action = token.rpartition("#")[0]
            self.demand(4, action not in self.actions, f"{action} was recorded twice")
            self.actions.add(action)

    # -- at every step
    def step_begins(self, worker: str, action: str, seen: str) -> None:
        """A step was dispatched: ``seen`` is a result that its run has seen before."""
        run = action.split("/")[0]
        row = self._world.disk.read(lambda tx: tx.run(run))
        if row is None:
            self.demand(1, False, f"{action} begins, but its run is not there")
            return
        self.demand(1, not seen or seen in self.recorded, f"{action} saw {seen} before that was durable")
        if row.worker != worker:
            self._world.sometimes["step of a zombie"] += 1
            return
        self.demand(4, action not in self.actions, f"{action} runs again although it is recorded")
        if row.session is not None:
            ahead = self._world.disk.read(lambda tx: tx.session_runs(row.agent, str(row.session)))
            self.demand(
                8, ahead and ahead[0].id == run, f"{action} runs while {ahead and ahead[0].id} has not ended"
            )

    def effect(self, action: str, key: str) -> None:
        """A step reached the world with an idempotency key."""
        keys = self.touched[action]
        if key in keys:
            self._world.sometimes["idempotency key reused"] += 1
        keys.add(key)
        self.demand(4, len(keys) == 1, f"{action} touched the world {len(keys)} times: {sorted(keys)}")

    # -- at the end
    def unfinished(self) -> list[RunRecord]:
        """Runs that have not ended."""
        open_ones = tuple(item for item in Status if not item.is_ended)
        return self._world.disk.read(lambda tx: tx.runs(RunFilter(status=open_ones, limit=10_000)))

    def finished(self) -> None:
        """Everything that must hold when the world has healed."""
        rows = self._world.disk.read(lambda tx: tx.runs(RunFilter(limit=10_000)))
        for row in rows:
            journal = self._world.disk.read(lambda tx, run=row.id: tx.journal(run))  # type: ignore[misc]
            self._journal(row, journal)
            self._mail(row, journal)
        for action in self.actions:
            self.demand(4, action in self.touched, f"{action} is recorded, but never reached the world")
        self.ledger.finished()

    def at_rest(self, worker: str, engine: EmbeddedEngine) -> None:
        """Nothing is left behind in a worker when every run has ended."""
        executing = sorted(name for name, host in engine.hosts.items() if not host.is_parked)
        self.demand(
            9, not executing, f"{worker} still executes {executing}"
        )  # others' runs may still rest there
        self.demand(9, not any(engine.active.values()), f"{worker} counts {engine.active} as executing")
        self.demand(9, engine.suspect is None, f"{worker} still suspects {engine.suspect}")
        self.demand(9, not engine.accepting, f"{worker} still accepts {engine.accepting}")

    def progress(self, worker: str, engine: EmbeddedEngine) -> None:
        """A run that executes records something before long; one that only waits is parked (after healing)."""
        now_s = self._world.loop.time()
        for name, host in engine.hosts.items():
            seq, since_s = self._progress.get((worker, name), (-1, now_s))
            if host.is_parked or host.seq != seq:
                self._progress[worker, name] = (host.seq, now_s)
            elif now_s - since_s > STANDSTILL_S:
                self.demand(9, False, f"{worker} keeps {host.agent.name} {name}, busy {host.busy}, unparked")

    def _journal(self, row: RunRecord, journal: list[e.AnyEntry]) -> None:
        where = f"{row.agent} {row.id}"
        self.demand(9, row.status.is_ended, f"{where} is still {row.status} ({row.code})")
        found = [zlib.crc32(e.encode_entry(entry)) for entry in journal]
        self.demand(1, found == self.bodies[row.id], f"the journal of {where} is not what was committed")
        state = fold(journal)
        self.demand(2, state == fold(journal) == self.states[row.id], f"folding {where} twice differs")
        self.demand(
            2, state.status == row.status, f"{where} is {row.status}, its journal says {state.status}"
        )
        try:
            replayed(self._world, row, journal)
        except (PerdureError, Violation) as error:
            self.demand(2, False, f"replaying {where}: {error}")

    def _mail(self, row: RunRecord, journal: list[e.AnyEntry]) -> None:
        execute = self._world.disk.connection.execute
        query = "SELECT m.id FROM mail m JOIN runs r ON r.key = m.run WHERE r.id = ? AND m.topic NOT LIKE ?"
        left = {number for (number,) in execute(query, (row.id, f"{ACTION_TOPIC}%"))}
        found = {
            entry.message
            for entry in journal
            if isinstance(entry, e.MessageReceived | e.QuestionAnswered) and entry.message is not None
        }
        accepted = {number for number, _, _ in self.accepted[row.id]}
        self.demand(3, not left & found, f"{row.id} received messages {left & found} that are still there")
        self.demand(3, left | found == accepted, f"{row.id} lost {accepted - left - found}")
        if row.agent == "collector" and row.status is Status.COMPLETED:
            self._collected(row, journal[-1])

    def _collected(self, row: RunRecord, last: e.AnyEntry) -> None:
        got = decode(last.result.inline) if isinstance(last, e.RunCompleted) else None
        sent = [decode_body(body) for _, topic, body in self.accepted[row.id] if topic == "mail"]
        self.demand(3, isinstance(got, list) and len(set(got)) == len(got), f"{row.id} got {got}")
        expected = sent[: sent.index("stop")] if "stop" in sent else sent
        self.demand(3, got == expected, f"{row.id} collected {got}, accepted were {expected}")


def decode_body(payload: Any) -> Any:
    """The value in a payload as the mail table keeps it."""
    return payload.get("inline") if isinstance(payload, dict) else payload
