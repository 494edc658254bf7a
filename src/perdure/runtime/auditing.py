"""The audit log as an operator sees it: its head, proofs, verification, export, erasure, and the signer of checkpoints."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from perdure.core.audit import AuditLeaf, AuditRecord
from perdure.core.errors import (
    ActionUnknownError,
    DataDirInvalidError,
    InputInvalidError,
    PerdureError,
    UsageError,
)
from perdure.gateway.vault import Vault
from perdure.governance.checkpoints import checkpoint, parse_checkpoint, sign_checkpoint
from perdure.governance.notes import VerifierKey
from perdure.ports import Store, Transaction
from perdure.runtime.actions import parts
from perdure.runtime.witnessing import Witnesses, WitnessRule, WitnessStatus, statuses

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from perdure.runtime.runtime import Runtime
    from perdure.runtime.verifying import Verified

log = logging.getLogger("perdure.audit")
SIGN_S = 1.0  # how often a new head is signed, if there is one
LOG_KEYS = "audit.key"  # in the data directory: the seed of the log's key, and the master key of the details
PUBLIC = "audit.pub"
SEED_BYTES = 32
Form = Literal["jsonl", "ocsf", "dsse"]


@dataclass(frozen=True, slots=True)
class LogKeys:
    """What a data directory signs and seals with."""

    origin: str
    private: Ed25519PrivateKey
    master: bytes

    @property
    def verifier(self) -> VerifierKey:
        """The public key."""
        return VerifierKey.of(self.origin, self.private)


def log_keys(folder: Path, origin: str) -> LogKeys:
    """The keys of a data directory, made once; the file is readable by its owner only.

    Raises:
        DataDirInvalidError: it cannot be read or written, or is damaged.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found["log"]))
        keys = LogKeys(origin, private, bytes.fromhex(found["master"]))
        public, text = folder / PUBLIC, f"{keys.verifier.text}\n"
        if not public.exists() or public.read_text(encoding="utf-8") != text:
            public.write_text(text, encoding="utf-8")
        return keys
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirInvalidError(f"the keys of the audit log in `{path}` cannot be used: {error}") from error


def origin_of(runtime_id: str) -> str:
    """What a log is called."""
    return f"perdure.log/{runtime_id}"


async def sign_head(store: Store, keys: LogKeys, now_ms: int) -> str:
    """Sign the head of the log, if it has grown since the last time; the newest signed head (empty without records)."""

    def look(tx: Transaction) -> tuple[int, bytes, str]:
        return *tx.audit_head(), tx.latest_checkpoint() or ""

    size, root, last = store.read(look)
    if size == (parse_checkpoint(last).size if last else 0):
        return last
    note = sign_checkpoint(checkpoint(keys.origin, size, root, now_ms), keys.private)
    await store.transact(lambda tx: tx.put_checkpoint(note))
    return note


@asynccontextmanager
async def signing(
    store: Store, keys: LogKeys, now_ms: Callable[[], int], witnesses: Sequence[WitnessRule] = ()
) -> AsyncIterator[None]:
    """Sign new heads while this is entered, and once more on leaving; witnesses are asked to cosign them."""

    async def sign() -> None:
        try:
            await sign_head(store, keys, now_ms())
            is_new()
        except PerdureError as error:  # the next one covers what this one would have
            log.warning("the head of the audit log was not signed: %s", error)

    async def work() -> None:
        while True:
            await asyncio.sleep(SIGN_S)
            await sign()

    async with Witnesses(witnesses, store, now_ms).asking() as is_new:
        task = asyncio.create_task(work(), name="perdure-audit")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await sign()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatus:
    """The log as it stands.

    Attributes:
        size: how many records there are.
        signed: how many of them the newest head covers.
        signed_ms: when that was signed.
        key: the public key of the log.
        witnesses: what is known of each.
    """

    size: int
    signed: int
    signed_ms: int | None
    key: str
    witnesses: tuple[WitnessStatus, ...]


class Audit:
    """``runtime.audit``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.keys: LogKeys | None = None

    # -- looking
    def records(self, action: str | None = None, *, run: str = "") -> list[AuditLeaf]:
        """Records of an action, or of a run, in order."""
        if action is not None:
            name, call = parts(action)
            return self._runtime.store.read(lambda tx: tx.audit_of(name, call))
        return self._runtime.store.read(lambda tx: tx.audit_of(run))

    def details(self, index: int) -> bytes:
        """The decrypted details of a record.

        Raises:
            InputInvalidError: there are none, or they were erased.
        """
        vault = Vault(self._keys().master, self._runtime.entropy)

        def work(tx: Transaction) -> bytes:
            found = tx.audit_sealed(index)
            if found is None:
                raise InputInvalidError(f"record {index} has no details")
            return vault.unseal(tx, *found)

        return self._runtime.store.read(work)

    def verifier(self) -> str:
        """The public key of the log as text (C2SP signed-note)."""
        return self._keys().verifier.text

    def _keys(self) -> LogKeys:
        if self.keys is None:
            raise UsageError("this runtime has no audit key: it was not opened on a data directory")
        return self.keys

    # -- proving
    async def checkpoint(self) -> str:
        """Sign the head now; the newest signed head.

        Raises:
            UsageError: the log is empty.
        """
        note = await sign_head(self._runtime.store, self._keys(), self._runtime.now_ms())
        if not note:
            raise UsageError("the audit log has no records yet")
        return note

    async def prove(self, action: str, index: int | None = None) -> bytes:
        """A bundle that shows, without the log, what one record of it says of an action; ``verify_file --proof`` reads it.

        Args:
            action: its id, ``run/call``.
            index: the place of the record; by default the last one about it.

        Raises:
            ActionUnknownError: the log says nothing of it there.
        """
        from perdure.governance import exports

        note = await self.checkpoint()
        leaves = [leaf for leaf in self.records(action) if index in (None, leaf.index)]
        if not leaves:
            raise ActionUnknownError(f"the audit log says nothing of action `{action}`", action=action)
        return self._runtime.store.read(lambda tx: exports.prove(leaves[-1], note, tx.audit_hash))

    def export(self, form: Form = "jsonl") -> Iterator[bytes]:
        """The log, line by line.

        Args:
            form: ``jsonl``: what ``verify_file`` reads; ``ocsf``: events of class API Activity; ``dsse``: signed envelopes with
                an in-toto statement about some records each.
        """
        from importlib.metadata import version  # slow to import, like those below: where they are used

        from perdure.governance import exports

        keys, store = self._keys(), self._runtime.store

        def page(after: int, limit: int) -> list[AuditLeaf]:
            return store.read(lambda tx: tx.audit_records(after, limit))

        match form:
            case "jsonl":
                notes = store.read(lambda tx: tx.checkpoints())
                yield from exports.export_lines(keys.origin, exports.paged(page), notes)
            case "ocsf":
                for leaf in exports.paged(page):
                    yield json.dumps(exports.ocsf(leaf, keys.origin, version("perdure"))).encode() + b"\n"
            case "dsse":
                after = -1
                while leaves := page(after, exports.STATEMENTS_MAX):
                    yield exports.envelope(exports.statement(keys.origin, leaves), keys.origin, keys.private)
                    after = leaves[-1].index

    # -- verifying
    def verify(
        self,
        *,
        key: str | None = None,
        known: str | Sequence[str] | None = None,
        witnesses: Sequence[str] = (),
        quorum: int | None = None,
    ) -> Verified:
        """Look at every record, every hash and every signature, and hold the ledger against the log.

        Args:
            key: the public key of the log, kept elsewhere; by default that of the data directory, which whoever changes
                the directory could change too.
            known: checkpoints that were kept elsewhere: the log must continue them.
            witnesses: verifier keys of witnesses; a head must be cosigned by ``quorum`` of them.
            quorum: how many; by default all.

        Raises:
            InputInvalidError: a key is none, or the quorum does not fit.
        """
        from perdure.governance import verify_file
        from perdure.runtime.verifying import verified

        try:
            expected = verify_file.read_key(key or self.verifier())
        except ValueError as error:
            raise InputInvalidError(f"a verifier key is `name+id+key`: {error}") from error
        cosigners = [VerifierKey.parse(text) for text in witnesses]
        kept = [known] if isinstance(known, str) else list(known or ())
        return self._runtime.store.read(lambda tx: verified(tx, expected, kept, cosigners, quorum))

    async def ask(self, url: str) -> str:
        """The checkpoint of this log that a witness cosigned last, to be given to ``verify``; empty if it has cosigned none.

        Raises:
            DefinitionError: that is no address.
            UnavailableError: it did not answer.
        """
        from perdure.hosting.witness_client import latest_of, witness_client

        async with witness_client(url) as client:
            return await latest_of(client, self._keys().origin)

    def status(self) -> LogStatus:
        """How far the log is signed, and what is known of its witnesses."""

        def look(tx: Transaction) -> LogStatus:
            note = tx.latest_checkpoint()
            head = parse_checkpoint(note) if note else None
            return LogStatus(
                size=tx.audit_head()[0],
                signed=head.size if head else 0,
                signed_ms=head.at_ms if head else None,
                key=self.verifier(),
                witnesses=tuple(statuses(tx).values()),
            )

        return self._runtime.store.read(look)

    async def erase(self, subject: str, *, by: str, reason: str = "") -> bool:
        """Destroy the key of a subject: the encrypted details about it are gone, the log and its proofs stay.

        Args:
            subject: such as ``user:anna``.
            by: who decides.
            reason: why; without personal data, for it stays.

        Returns:
            Whether there was a key.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> bool:
            was = tx.drop_subject_key(subject)
            if was:
                tx.audit(AuditRecord(kind="erased", at_ms=now_ms, by=by, refs={"reason": reason}))
            return was

        return await self._runtime.store.transact(work)
