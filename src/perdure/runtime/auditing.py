"""The audit log as an operator sees it: its head, proofs, verification, export, erasure, and the signer of checkpoints."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from perdure.core.audit import AuditLeaf, AuditRecord
from perdure.core.errors import (
    ActionUnknownError,
    InputInvalidError,
    PerdureError,
    UsageError,
)
from perdure.gateway.vault import Vault
from perdure.governance.checkpoints import checkpoint, parse_checkpoint, sign_checkpoint
from perdure.governance.key_chain import key_record
from perdure.governance.notes import VerifierKey
from perdure.ports import Store, Transaction
from perdure.runtime.actions import parts
from perdure.runtime.log_keys import Chain, LogKeys, chain_of, set_chain
from perdure.runtime.witnessing import Witnesses, WitnessRule, WitnessStatus, statuses

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime
    from perdure.runtime.verifying import Verified

log = logging.getLogger("perdure.audit")
SIGN_S = 1.0  # how often a new head is signed, if there is one
Form = Literal["jsonl", "ocsf", "dsse"]


async def sign_head(store: Store, keys: LogKeys, now_ms: int) -> str:
    """Sign the head of the log, if it has grown since the last time; the newest signed head (empty without records).

    Raises:
        DataDirInvalidError: the key in force is not in the data directory.
    """

    def look(tx: Transaction) -> tuple[int, bytes, str, Chain]:
        return *tx.audit_head(), tx.latest_checkpoint() or "", chain_of(tx)

    size, root, last, chain = store.read(look)
    if size == (parse_checkpoint(last).size if last else 0):
        return last
    # A rotation after this look names the new key in a later record: up to that one, what is signed here counts.
    note = sign_checkpoint(checkpoint(keys.origin, size, root, now_ms), keys.signer(chain))
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

    def verifier(self, *, current: bool = False) -> str:
        """A public key of the log as text (C2SP signed-note).

        Args:
            current: the one in force, for a witness; by default the first one, from which a verifier follows the others.
        """
        keys = self._keys()
        if not current:
            return keys.first.text
        return VerifierKey.of(keys.origin, keys.signer(self._runtime.store.read(chain_of))).text

    async def rotate_key(self, *, by: str, reason: str = "") -> str:
        """Let a new key sign the log from now on; its public half. The old one names it in a record, signs that, and is destroyed.

        Args:
            by: who decides.
            reason: why; it is in the record.

        Raises:
            DataDirInvalidError: the keys cannot be read or written.
        """
        keys, store, now_ms = self._keys(), self._runtime.store, self._runtime.now_ms()
        with keys.rotating(store.read(chain_of)) as new:

            def work(tx: Transaction) -> None:
                chain, (index, _) = chain_of(tx), tx.audit_head()
                old = keys.signer(chain)
                tx.audit(key_record(index, old, new, at_ms=now_ms, by=by, reason=reason))
                set_chain(tx, Chain(new.text, (*chain.records, index)))
                head = checkpoint(keys.origin, *tx.audit_head(), now_ms)
                tx.put_checkpoint(sign_checkpoint(head, old))  # the last thing that it signs
                tx.put_checkpoint(
                    sign_checkpoint(head, keys.signer(chain_of(tx)))
                )  # the first thing that this one does

            await store.transact(work)
        return new.text

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

        def work(tx: Transaction) -> bytes:
            size = parse_checkpoint(note).size
            named = [tx.audit_records(at - 1, 1)[0] for at in chain_of(tx).records if at < size]
            return exports.prove(leaves[-1], note, tx.audit_hash, named)

        return self._runtime.store.read(work)

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
                    private = keys.signer(store.read(chain_of))
                    yield exports.envelope(exports.statement(keys.origin, leaves), keys.origin, private)
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
