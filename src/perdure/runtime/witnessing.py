"""Witnesses of the audit log: each new head is sent to all of them, beside everything else; what they say is kept.

Nothing waits for a witness: one that is away is asked again, at growing intervals. One that refuses says that the log is not what it
was, so that is a record of the log and an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from perdure.core.audit import AuditRecord
from perdure.core.errors import AuditInvalidError, DefinitionError, InputInvalidError, PerdureError
from perdure.governance.checkpoints import Checkpoint, cosigned_at_s, parse_checkpoint
from perdure.governance.merkle import Proof, consistency_proof
from perdure.governance.notes import COSIGNS, VerifierKey
from perdure.ports import Store, Transaction

if TYPE_CHECKING:
    import httpx2

    from perdure.governance.witness import Refused

log = logging.getLogger("perdure.audit")
STATES = "witnesses"  # the fact that holds what is known of each
WITNESSES_MAX = 16  # each puts a line of 100 bytes under every head
RETRY_S = 1.0  # until a witness that did not answer is asked again; doubled each time
RETRY_S_MAX = 60.0
FAREWELL_S = 1.0  # for the last head, when the runtime stops


class WitnessRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A witness, from the configuration.

    Attributes:
        name: its name; that of its key.
        url: its address, below which ``/add-checkpoint`` is.
        key: its verifier key as text (``name+id+base64``), which it prints when it starts.
    """

    name: str
    url: str
    key: str

    @property
    def verifier(self) -> VerifierKey:
        """Its key.

        Raises:
            DefinitionError: it is no key of a witness, or of another name.
        """
        try:
            found = VerifierKey.parse(self.key)
        except InputInvalidError as error:
            raise DefinitionError(
                f"the key of witness `{self.name}` cannot be read: {error.message}"
            ) from error
        if found.kind != COSIGNS or found.name != self.name:
            raise DefinitionError(
                f"the key of witness `{self.name}` is of `{found.name}`, or no key that cosigns; give what the witness printed"
            )
        return found


def checked_witnesses(rules: Sequence[WitnessRule]) -> None:
    """Look at witnesses before anything begins.

    Raises:
        DefinitionError: a key or address cannot be used, two have one name, or there are too many.
    """
    if len({rule.verifier.name for rule in rules}) < len(rules) or len(rules) > WITNESSES_MAX:
        raise DefinitionError(f"expected at most {WITNESSES_MAX} witnesses, each with its own name")
    for rule in rules:
        if not rule.url.startswith(("https://", "http://")):
            raise DefinitionError(f"the address of witness `{rule.name}` is no http or https address")


class WitnessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a witness.

    Attributes:
        name: its name.
        state: ``new`` (not asked yet), ``cosigned``, ``away`` (it did not answer and is asked again), ``refused``.
        size: how many records the last head had that it cosigned.
        at_ms: when that state began, or for ``cosigned`` the last time.
        code: of a refusal: ``fork``, ``rollback``, ``origin-unknown``, ``signature``, ``malformed``.
        why: what it said.
    """

    name: str
    state: Literal["new", "cosigned", "away", "refused"] = "new"
    size: int = 0
    at_ms: int = 0
    code: str = ""
    why: str = ""


def statuses(tx: Transaction) -> dict[str, WitnessStatus]:
    """What is known of each witness, by name."""
    return msgspec.json.decode(tx.fact(STATES) or "{}", type=dict[str, WitnessStatus])


@dataclass(slots=True)
class _Link:
    """One witness, as long as this runtime is open."""

    rule: WitnessRule
    key: VerifierKey
    client: httpx2.AsyncClient
    status: WitnessStatus
    is_due: asyncio.Event = field(default_factory=asyncio.Event)


class Witnesses:
    """Asks witnesses for their cosignatures.

    Args:
        rules: who they are.
        store: whose audit log it is.
        now_ms: the time of day.
    """

    def __init__(self, rules: Sequence[WitnessRule], store: Store, now_ms: Callable[[], int]) -> None:
        self._rules = rules
        self._store = store
        self._now_ms = now_ms
        self._links: list[_Link] = []

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Callable[[], None]]:
        """Ask while this is entered; gives what is called when there is a new head, and asks once more on leaving."""
        if not self._rules:
            yield lambda: None
            return
        from perdure.hosting.witness_client import witness_client  # slow to import: only where there is one

        known = await self._store.transact(self._begin)
        async with contextlib.AsyncExitStack() as stack:
            for rule in self._rules:
                client = await stack.enter_async_context(witness_client(rule.url))
                self._links.append(_Link(rule, rule.verifier, client, known[rule.name]))
            tasks = [
                asyncio.create_task(self._follow(link), name=f"perdure-witness-{link.rule.name}")
                for link in self._links
            ]
            self._look()  # what was signed before this runtime opened
            try:
                yield self._look
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_S):
                        await asyncio.gather(*map(self._ask, self._links), return_exceptions=True)

    def _begin(self, tx: Transaction) -> dict[str, WitnessStatus]:
        """Forget witnesses that are not configured any more."""
        before = statuses(tx)
        found = {rule.name: before.get(rule.name, WitnessStatus(name=rule.name)) for rule in self._rules}
        tx.set_fact(STATES, msgspec.json.encode(found).decode())
        return found

    def _look(self) -> None:
        for link in self._links:
            link.is_due.set()

    async def _follow(self, link: _Link) -> None:
        retry_s = RETRY_S
        while True:
            await link.is_due.wait()
            link.is_due.clear()
            try:
                is_cosigned = await self._ask(link)
            except Exception:
                # A mistake of ours: it is told, and neither ends the asking nor touches the runs.
                log.exception("asking the witness `%s` failed", link.rule.name)
                is_cosigned = False
            if is_cosigned:
                retry_s = RETRY_S
                continue
            link.is_due.set()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def _ask(self, link: _Link) -> bool:
        """Ask about the newest head, whether it is cosigned now."""
        from perdure.hosting.witness_client import ask_witness

        try:
            note = self._store.read(lambda tx: tx.latest_checkpoint()) or ""
            head = parse_checkpoint(note) if note else None
            if head is None or _is_cosigned(note, link.key):
                return True
            answer = await ask_witness(
                link.client,
                note,
                lambda old: self._prove(old, head),
                link.key,
                old=min(link.status.size, head.size),
            )
            if isinstance(answer, str):
                await self._cosigned(link, answer, head)
                return True
            await self._refused(link, answer)
        except PerdureError as error:
            # It is away, or the store is: the next time covers what this one would have.
            await self._away(link, error)
        return False

    def _prove(self, old: int, head: Checkpoint) -> Proof:
        return self._store.read(lambda tx: consistency_proof(tx.audit_hash, old, head.size))

    async def _cosigned(self, link: _Link, note: str, head: Checkpoint) -> None:
        if link.status.state in ("away", "refused"):
            log.warning("the witness `%s` cosigns again", link.rule.name)
        status = WitnessStatus(name=link.rule.name, state="cosigned", size=head.size, at_ms=self._now_ms())
        await self._keep(link, status, lambda tx: tx.put_checkpoint(note))

    async def _refused(self, link: _Link, refused: Refused) -> None:
        """Loud, but once: a record of it makes a new head, which would be refused again."""
        before = link.status
        if (before.state, before.code) == ("refused", refused.code):
            return
        log.error(
            "the witness `%s` refuses the head of the audit log (%s): %s",
            before.name,
            refused.code,
            refused.message,
        )
        now_ms = self._now_ms()
        status = WitnessStatus(
            name=before.name,
            state="refused",
            size=before.size,
            at_ms=now_ms,
            code=refused.code,
            why=refused.message,
        )
        record = AuditRecord(
            kind="witness",
            at_ms=now_ms,
            name=before.name,
            codes=(refused.code,),
            refs={"note": refused.message, "status": str(refused.status)},
        )
        await self._keep(link, status, lambda tx: tx.audit(record))

    async def _away(self, link: _Link, error: PerdureError) -> None:
        before = link.status
        if before.state == "away":
            return
        log.warning("the witness `%s` is asked again later: %s", before.name, error.message)
        status = WitnessStatus(
            name=before.name, state="away", size=before.size, at_ms=self._now_ms(), why=error.message
        )
        with contextlib.suppress(PerdureError):  # if it is the store, it will be told with the next state
            await self._keep(link, status, lambda _: None)

    async def _keep(self, link: _Link, status: WitnessStatus, work: Callable[[Transaction], object]) -> None:
        def write(tx: Transaction) -> None:
            work(tx)
            tx.set_fact(STATES, msgspec.json.encode({**statuses(tx), status.name: status}).decode())

        await self._store.transact(write)
        link.status = status


def _is_cosigned(note: str, key: VerifierKey) -> bool:
    """Whether the cosignature is there and good: who writes the database could add a line that is not."""
    try:
        return cosigned_at_s(note, key) > 0
    except AuditInvalidError:
        return False
