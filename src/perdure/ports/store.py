"""The store: everything durable goes through ``transact``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from perdure.core.actions import Account, ActionFilter, ActionRecord, ActionState, Budget, Served, Spend
from perdure.core.approvals import Containment, GrantRecord, KeyRecord
from perdure.core.audit import AuditLeaf, AuditRecord
from perdure.core.entries import AnyEntry, Entry
from perdure.core.records import Mail, Question, RunFilter, RunRecord, Schedule, Status
from perdure.core.values import Payload

T = TypeVar("T")


class Transaction(Protocol):
    """What a work may do inside one transaction. Plain calls: a work must not await or touch the world.

    Writes of a run under a lease take its ``fence`` and raise ``FenceError`` when another worker holds a newer one.
    """

    # -- runs
    def insert_run(self, run: RunRecord, entries: Sequence[Entry], blobs: Mapping[str, bytes]) -> RunRecord:
        """Add a run with its first entries; the row that is there already if its id or idempotency key is taken."""
        ...

    def run(self, run_id: str) -> RunRecord | None:
        """The row of a run."""
        ...

    def runs(self, want: RunFilter) -> list[RunRecord]:
        """Rows, newest first."""
        ...

    def session_runs(self, agent: str, session: str) -> list[RunRecord]:
        """The unfinished runs of a session, oldest first."""
        ...

    def ended_runs(
        self, agent: str, after_ms: int, until_ms: int, limit: int, skip: int = 0
    ) -> list[RunRecord]:
        """Runs of an agent that ended after a time and until another, the last to end first, without the first ``skip``."""
        ...

    def append(self, run_id: str, fence: int, entries: Sequence[Entry], blobs: Mapping[str, bytes]) -> None:
        """Append to a journal; each ``seq`` must follow the last one."""
        ...

    def move(
        self,
        run_id: str,
        fence: int,
        status: Status,
        *,
        now_ms: int,
        wake_ms: int | None = None,
        code: str | None = None,
    ) -> None:
        """Set the status of a run under its lease; leaving ``running`` gives the lease back."""
        ...

    def set_status(self, run_id: str, before: Status, after: Status, *, now_ms: int) -> bool:
        """Set the status of a run without a lease, if it is ``before``; whether it was."""
        ...

    def request_cancel(self, run_id: str, reason: str, code: str) -> None:
        """Note that the run must be cancelled; the first request counts."""
        ...

    def journal(self, run_id: str, after: int = 0, limit: int | None = None) -> list[AnyEntry]:
        """Entries with ``seq`` over ``after``, in order."""
        ...

    def blob(self, name: str) -> bytes:
        """The bytes of a blob."""
        ...

    def children(self, run_id: str) -> list[RunRecord]:
        """The runs that this run started, oldest first."""
        ...

    # -- leases
    def renew(self, worker: str, until_ms: int) -> None:
        """Extend a worker's lease, or begin it."""
        ...

    def retire(self, worker: str) -> None:
        """End a worker's lease at once."""
        ...

    def release_expired(self, now_ms: int, *, others_than: str | None = None) -> int:
        """Queue the running runs of workers without a lease (of all but one, if given); how many there were."""
        ...

    def wake_due(self, now_ms: int, limit: int) -> int:
        """Queue waiting runs whose time has come; how many."""
        ...

    def claim(
        self,
        worker: str,
        now_ms: int,
        *,
        room: Mapping[str, int],
        limit: int,
        suspects: bool,
        skip: Collection[str] = (),
    ) -> list[RunRecord]:
        """Take the leases of queued runs, by priority then age, with a new fence each.

        Args:
            worker: who takes them.
            now_ms: the time.
            room: how many runs of each agent the worker has room for; other agents are left alone.
            limit: how many at most.
            suspects: whether one run that was in flight at two crashes or more may be among them.
            skip: runs to leave alone.
        """
        ...

    def seize(self, run_id: str, worker: str, statuses: Collection[Status]) -> RunRecord | None:
        """Take the lease of one run if it is in one of ``statuses``, with a new fence; the row before that."""
        ...

    def next_wake_ms(self) -> int | None:
        """When the next waiting run or schedule is due."""
        ...

    # -- mail
    def deliver(
        self,
        run_id: str,
        topic: str,
        body: Payload,
        blobs: Mapping[str, bytes],
        *,
        sender: str,
        now_ms: int,
        key: str | None,
    ) -> int:
        """Put a message into a mailbox, once per ``key``; its id (0 for one that was there already)."""
        ...

    def take(self, run_id: str, topic: str) -> Mail | None:
        """Remove and return the oldest message of a topic."""
        ...

    def has_mail(self, run_id: str, topic: str) -> bool:
        """Whether a message of that topic waits."""
        ...

    # -- questions, state, schedules
    def open_question(self, question: Question) -> None:
        """List a question."""
        ...

    def close_question(self, run_id: str, call: int) -> None:
        """Take a question off the list."""
        ...

    def questions(self, run_id: str | None) -> list[Question]:
        """Open questions, oldest first."""
        ...

    def state(self, agent: str, session: str, key: str) -> Payload | None:
        """A value of a session's state."""
        ...

    def set_state(
        self, agent: str, session: str, key: str, value: Payload | None, blobs: Mapping[str, bytes]
    ) -> None:
        """Set or (with ``None``) delete a value of a session's state."""
        ...

    def schedules(self, due_ms: int | None = None) -> list[Schedule]:
        """Schedules by name; only the due ones if a time is given."""
        ...

    def put_schedule(self, schedule: Schedule) -> None:
        """Add or replace a schedule."""
        ...

    def drop_schedule(self, name: str) -> bool:
        """Remove a schedule; whether it was there."""
        ...

    # -- actions and accounts
    def put_action(self, action: ActionRecord) -> None:
        """Add a row to the ledger."""
        ...

    def change_action(self, before: ActionState, action: ActionRecord) -> None:
        """Replace a row that is in state ``before``; it is a broken invariant if it is not."""
        ...

    def action(self, run_id: str, call: int) -> ActionRecord | None:
        """One row of the ledger."""
        ...

    def actions(self, want: ActionFilter) -> list[ActionRecord]:
        """Rows, newest first."""
        ...

    def actions_since(self, since_ms: int, limit: int) -> list[ActionRecord]:
        """Rows of the ledger that were intended since then, newest first."""
        ...

    def run_actions(self, run_id: str) -> list[ActionRecord]:
        """Every row of one run, in call order."""
        ...

    def undoing(self, run_id: str) -> list[ActionRecord]:
        """Rows of any run that undo, or were to undo, actions of this run."""
        ...

    def note_served(self, served: Served) -> None:
        """Remember which row answered an attempt of a hosted program."""
        ...

    def served(self, run_id: str) -> list[Served]:
        """What was answered from the journal, in order."""
        ...

    def accounts(self, run_id: str) -> list[Account]:
        """The account of a run and of each run above it, the nearest first."""
        ...

    def book(self, run_id: str, reserved: Spend, spent: Spend) -> None:
        """Add to what a run and each run above it have reserved and spent; negative amounts take away."""
        ...

    def set_budget(self, run_id: str, budget: Budget | None) -> None:
        """Give a run a budget, or take it away."""
        ...

    # -- approval and containment
    def put_key(self, key: KeyRecord) -> None:
        """Add an approver's key, or change its person, roles, revocation or counter."""
        ...

    def approver_keys(self) -> list[KeyRecord]:
        """Every approver's key, also the revoked ones, oldest first."""
        ...

    def put_grant(self, grant: GrantRecord) -> None:
        """Keep a signed decision about an action; one that was used stays as it is."""
        ...

    def grants(self, run_id: str, call: int) -> list[GrantRecord]:
        """What was signed about one action, oldest first."""
        ...

    def grant(self, jti: str) -> GrantRecord | None:
        """One signed decision."""
        ...

    def use_grant(self, jti: str, now_ms: int) -> bool:
        """Use a grant up; ``False`` if it was used before, or is not there."""
        ...

    def run_grants(self, run_id: str) -> list[GrantRecord]:
        """What was signed about actions of a run, oldest first."""
        ...

    def use_group(self, jti: str, run_id: str, call: int, more: int, now_ms: int) -> bool:
        """Use a group grant for one action more; ``False`` if ``more`` were released with it already, or this one was."""
        ...

    def fact(self, name: str) -> str | None:
        """What is known of this store under a name, such as its id."""
        ...

    def set_fact(self, name: str, value: str) -> None:
        """Set what is known under a name."""
        ...

    def contain(self, containment: Containment) -> None:
        """Set the containment of a scope."""
        ...

    def lift(self, scope: str) -> bool:
        """Take the containment of a scope away; whether there was one."""
        ...

    def containments(self) -> list[Containment]:
        """What is contained, by scope."""
        ...

    # -- the audit log
    def audit(self, record: AuditRecord, sealed: bytes = b"", subject: str = "") -> int:
        """Append a record to the log and to its tree; its place, from 0.

        Args:
            record: what happened; ``record.sealed`` is set from ``sealed``.
            sealed: details to be kept beside the log (see ``governance.sealed``).
            subject: whose key sealed them.

        Raises:
            InputInvalidError: the record is not what a record may be (see ``core.audit.encode_record``).
        """
        ...

    def audit_records(self, after: int = -1, limit: int | None = None) -> list[AuditLeaf]:
        """Records with a place over ``after``, in order."""
        ...

    def audit_of(self, run: str, call: int | None = None) -> list[AuditLeaf]:
        """The records about a run, or about one call of it, in order."""
        ...

    def audit_head(self) -> tuple[int, bytes]:
        """How many records there are, and the root hash over them."""
        ...

    def audit_hash(self, level: int, index: int) -> bytes:
        """The hash of the ``2**level`` records from ``index * 2**level`` on (``governance.merkle.Hashes``).

        Raises:
            AuditInvalidError: they are not all there.
        """
        ...

    def put_checkpoint(self, note: str) -> None:
        """Keep a signed checkpoint; to one with the same text its signatures are added (one of the same key replaces).

        It is a broken invariant if the log is shorter, or as long and has another root. The signature is not checked.

        Raises:
            AuditInvalidError: it is no checkpoint.
        """
        ...

    def checkpoints(self, after: int = -1, limit: int | None = None) -> list[str]:
        """Signed checkpoints of more than ``after`` records, the smallest first."""
        ...

    def latest_checkpoint(self) -> str | None:
        """The checkpoint of the most records; of those of one size, the last that was made."""
        ...

    def audit_sealed(self, index: int) -> tuple[str, bytes] | None:
        """The subject (empty once erased) and the sealed details of a record."""
        ...

    def subject_key(self, subject: str) -> bytes | None:
        """The wrapped data key of a subject; ``None`` if there is none, or it was erased."""
        ...

    def put_subject_key(self, subject: str, wrapped: bytes) -> None:
        """Set the wrapped data key of a subject. Another data key than before makes its earlier details unreadable."""
        ...

    def drop_subject_key(self, subject: str) -> bool:
        """Erase a subject: its key, and its name beside the sealed details; whether there was a key. Proofs stay valid."""
        ...


class Store(Protocol):
    """Where everything durable is."""

    def transact(self, work: Callable[[Transaction], T]) -> Awaitable[T]:
        """Run ``work`` in one write transaction; awaiting gives what it returned, durable by then.

        Works are applied in the order of the calls, also if they are awaited later. What ``work`` raises undoes its writes and is raised here.

        Raises:
            UnavailableError: the outcome is unknown (or, with a more specific class, nothing was written).
            CorruptError: the store is damaged.
        """
        ...

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work``, which only reads, on what is durable now."""
        ...

    def changed_elsewhere(self) -> bool:
        """Whether another process has written since the last call."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then close."""
        ...
