"""The audit log as an operator sees it: its head, proofs, verification, export, erasure, and the signer of checkpoints."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure.core.audit import AuditRecord, Checkpoint
from perdure.core.errors import (
    ActionUnknownError,
    CorruptError,
    DataDirInvalidError,
    InputInvalidError,
    PerdureError,
    UsageError,
)
from perdure.gateway.vault import Vault
from perdure.governance.checkpoints import Head, Signer, is_signed, read_note, read_verifier
from perdure.governance.exports import dsse, ocsf
from perdure.governance.merkle import Frontier, inclusion, leaf_hash, root
from perdure.ports import Store, Transaction
from perdure.runtime.actions import parts

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

log = logging.getLogger("perdure.audit")
SIGN_S = 1.0  # how often a new head is signed, if there is one
LOG_KEYS = "audit.key"  # in the data directory: the seed of the log's key, and the master key of the details
PUBLIC = "audit.pub"
SEED_BYTES = 32
PROGRESS = 50_000  # records between two signs of life
PROBLEMS_MAX = 50
OCSF_PRODUCT = "0.3"


@dataclass(frozen=True, slots=True)
class LogKeys:
    """What a data directory signs and seals with."""

    signer: Signer
    master: bytes


def log_keys(folder: Path, origin: str) -> LogKeys:
    """The keys of a data directory, made once; the file is readable by its owner only.

    Raises:
        DataDirInvalidError: it cannot be read or written, or is damaged.
    """
    path = folder / LOG_KEYS
    try:
        if not path.exists():
            part = folder / f".{LOG_KEYS}-{os.getpid()}"
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"log": os.urandom(SEED_BYTES).hex(), "master": os.urandom(SEED_BYTES).hex()}, file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, path)  # whoever comes first
            except FileExistsError:
                pass
            finally:
                part.unlink()
        found = json.loads(path.read_text(encoding="utf-8"))
        signer = Signer(origin, bytes.fromhex(found["log"]))
        (folder / PUBLIC).write_text(f"{signer.verifier}\n", encoding="utf-8")
        return LogKeys(signer, bytes.fromhex(found["master"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirInvalidError(f"the keys of the audit log in `{path}` cannot be used: {error}") from error


def origin_of(runtime_id: str) -> str:
    """What a log is called."""
    return f"perdure.log/{runtime_id}"


async def sign_head(store: Store, signer: Signer, now_ms: int) -> Checkpoint | None:
    """Sign the head of the log, if it has grown since the last time."""

    def head(tx: Transaction) -> tuple[int, bytes, int]:
        last = tx.last_checkpoint()
        size, found = tx.audit_head()
        return size, found, last.size if last else 0

    size, found, signed = store.read(head)
    if size == signed:
        return None
    made = Checkpoint(size=size, note=signer.sign(Head(signer.name, size, found)), at_ms=now_ms)
    await store.transact(lambda tx: tx.put_checkpoint(made))
    return made


@asynccontextmanager
async def signing(store: Store, signer: Signer, now_ms: Callable[[], int]) -> AsyncIterator[None]:
    """Sign new heads while this is entered, and once more on leaving."""

    async def work() -> None:
        while True:
            await asyncio.sleep(SIGN_S)
            try:
                await sign_head(store, signer, now_ms())
            except PerdureError as error:  # the next one covers what this one would have
                log.warning("the head of the audit log was not signed: %s", error)

    task = asyncio.create_task(work(), name="perdure-audit")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            await sign_head(store, signer, now_ms())
        except PerdureError as error:
            log.warning("the last head of the audit log was not signed: %s", error)


@dataclass(slots=True)
class Verified:
    """What a verification found."""

    size: int = 0
    checkpoints: int = 0
    signed_size: int = 0
    root: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def tell(self, problem: str) -> None:
        """Note a problem."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class Audit:
    """``runtime.audit``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.keys: LogKeys | None = None

    # -- looking
    def records(
        self, action: str | None = None, *, run: str | None = None
    ) -> list[tuple[int, dict[str, Any]]]:
        """Records of an action or a run, with their places."""
        if action is not None:
            name, call = parts(action)
            rows = self._runtime.store.read(lambda tx: tx.audit_of(name, call))
        else:
            rows = self._runtime.store.read(lambda tx: tx.audit_of(run or ""))
        return [(row.index, row.data) for row in rows]

    def details(self, place: int) -> bytes:
        """The decrypted details of a record.

        Raises:
            InputInvalidError: there are none, or they were erased.
        """
        keys = self._keys()

        def work(tx: Transaction) -> bytes:
            found = tx.audit_sealed(place)
            if found is None:
                raise InputInvalidError(f"record {place} has no details")
            return Vault(keys.master, self._runtime.entropy).unseal(tx, *found)

        return self._runtime.store.read(work)

    def verifier(self) -> str:
        """The public key of the log as text."""
        return self._keys().signer.verifier

    def _keys(self) -> LogKeys:
        if self.keys is None:
            raise UsageError("this runtime has no audit key: it was not opened on a data directory")
        return self.keys

    # -- proving
    async def prove(self, action: str) -> dict[str, Any]:
        """A bundle that shows, without the log, what the log says of an action: records, proofs, a signed head.

        Raises:
            ActionUnknownError: the log says nothing of it.
        """
        keys = self._keys()
        await sign_head(self._runtime.store, keys.signer, self._runtime.now_ms())
        run, call = parts(action)

        def work(tx: Transaction) -> dict[str, Any]:
            head = tx.last_checkpoint()
            rows = tx.audit_of(run, call)
            if head is None or not rows:
                raise ActionUnknownError(f"the audit log says nothing of action `{action}`", action=action)
            proofs = [
                {
                    "place": row.index,
                    "leaf": row.leaf.decode(),
                    "proof": [
                        base64.b64encode(item).decode()
                        for item in inclusion(row.index, head.size, tx.audit_node)
                    ],
                }
                for row in rows
            ]
            return {"type": "perdure-audit-proof/1", "action": action, "key": keys.signer.verifier, "checkpoint": head.note, "records": proofs}  # fmt: skip

        return self._runtime.store.read(work)

    async def checkpoint(self) -> str:
        """Sign the head now; the newest signed head."""
        await sign_head(self._runtime.store, self._keys().signer, self._runtime.now_ms())
        found = self._runtime.store.read(lambda tx: tx.last_checkpoint())
        return "" if found is None else found.note

    def export(self, form: Literal["jsonl", "ocsf", "dsse"] = "jsonl") -> Iterator[str]:
        """The log as lines of JSON.

        Args:
            form: ``jsonl``: a header, every leaf in its order, every checkpoint, which ``verify_file`` reads; ``ocsf``: events
                of class API Activity; ``dsse``: each record in a signed envelope.
        """
        keys = self._keys()
        if form == "jsonl":
            yield json.dumps({"type": "perdure-audit/1", "key": keys.signer.verifier})
        start = 0
        size = self._runtime.store.read(lambda tx: tx.audit_size())
        while start < size:
            end = min(size, start + PROGRESS)
            rows = self._runtime.store.read(lambda tx, a=start, b=end: list(tx.audit_rows(a, b)))  # type: ignore[misc]
            for row in rows:
                if form == "jsonl":
                    yield json.dumps({"leaf": row.leaf.decode()})
                elif form == "ocsf":
                    yield ocsf(row, OCSF_PRODUCT)
                else:
                    yield dsse(row, keys.signer.sign_bytes, keys.signer.verifier)
            start = end
        if form != "jsonl":
            return
        for item in self._runtime.store.read(lambda tx: tx.checkpoints()):
            if item.size <= size:
                yield json.dumps({"checkpoint": item.note})

    # -- verifying
    def verify(
        self,
        *,
        key: str | None = None,
        known: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Verified:
        """Look at every record, every hash and every signature, and hold the ledger against the log.

        Args:
            key: the public key of the log, kept elsewhere; by default that of the data directory, which whoever changes
                the directory could change too.
            known: a checkpoint that was kept elsewhere: the log must continue it.
            progress: is told how many of how many records were looked at.
        """
        text = key or self.verifier()
        name, public = read_verifier(text)
        return self._runtime.store.read(lambda tx: _verify(tx, name, public, known, progress))

    async def erase(self, subject: str, *, by: str, reason: str = "") -> bool:
        """Destroy the key of a subject: the encrypted details about it are gone, the log and its proofs stay.

        Args:
            subject: such as ``user:anna``.
            by: who decides.
            reason: why.

        Returns:
            Whether there was a key.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> bool:
            was = tx.drop_subject_key(subject)
            if was:
                tx.audit(AuditRecord(kind="erased", at_ms=now_ms, by=by, note=reason))
            return was

        return await self._runtime.store.transact(work)


def _verify(
    tx: Transaction,
    name: str,
    public: bytes,
    known: str | None,
    progress: Callable[[int, int], None] | None,
) -> Verified:
    found = Verified()
    size = tx.audit_size()
    notes = {item.size: item.note for item in tx.checkpoints()}
    kept = None if known is None else read_note(known)[0]
    frontier = Frontier()
    states: dict[tuple[str, int], str] = {}
    for row in tx.audit_rows():
        if row.index != frontier.size:
            found.tell(f"record {frontier.size} is missing")
            break
        if _stored(tx, row.index) != leaf_hash(row.leaf):
            found.tell(f"record {row.index} is not what was written: {row.leaf[:200]!r}")
        data = row.data
        if data.get("state") and data.get("run"):
            states[data["run"], data.get("call", 0)] = data["state"]
        frontier.append(row.leaf)
        if (note := notes.pop(frontier.size, None)) is not None:
            _check_note(found, note, frontier, name, public)
        if kept is not None and kept.size == frontier.size and kept.root != frontier.root:
            found.tell(
                f"the first {kept.size} records are not those of the checkpoint that was kept: rewritten or forked"
            )
        if progress is not None and frontier.size % PROGRESS == 0:
            progress(frontier.size, size)
    found.size, found.root = frontier.size, frontier.root.hex()
    for beyond in sorted(notes):
        found.tell(
            f"a checkpoint was signed over {beyond} records, the log has {frontier.size}: its end was cut off"
        )
    if kept is not None and kept.size > frontier.size:
        found.tell(
            f"the checkpoint that was kept has {kept.size} records, the log {frontier.size}: its end was cut off"
        )
    try:
        is_fitting = root(frontier.size, tx.audit_node) == frontier.root
    except CorruptError:
        is_fitting = False
    if not is_fitting:
        found.tell("the stored hashes do not fit the records")
    if found.signed_size < frontier.size and not found.checkpoints and frontier.size:
        found.tell("no head of the log is signed")
    _check_ledger(tx, states, found)
    return found


def _stored(tx: Transaction, place: int) -> bytes:
    """The stored hash of a record; empty if there is none."""
    try:
        return tx.audit_node(0, place)
    except CorruptError:
        return b""


def _check_note(found: Verified, note: str, frontier: Frontier, name: str, public: bytes) -> None:
    head, _ = read_note(note)
    if not is_signed(note, name, public):
        found.tell(f"the checkpoint over {head.size} records is not signed with the key `{name}`")
    elif head.origin != name or head.root != frontier.root:
        found.tell(
            f"the first {head.size} records are not those that were signed: changed between here and the checkpoint before"
        )
    else:
        found.checkpoints += 1
        found.signed_size = head.size


def _check_ledger(tx: Transaction, states: dict[tuple[str, int], str], found: Verified) -> None:
    """Every row of the ledger is in the state that the log says it is in."""
    by_run: dict[str, dict[int, str]] = {}
    for (run, call), state in states.items():
        by_run.setdefault(run, {})[call] = state
    for run, calls in by_run.items():
        rows = {row.call: row for row in tx.run_actions(run)}
        for call, state in calls.items():
            row = rows.get(call)
            if row is None:
                found.tell(f"the log tells of action {run}/{call}, the ledger does not have it")
            elif row.state.value != state:
                found.tell(f"action {run}/{call} is `{row.state}` in the ledger and `{state}` in the log")
