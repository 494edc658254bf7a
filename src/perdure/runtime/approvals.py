"""Approvals as a person sees them: what waits, what it would do, and what was signed about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionFilter, ActionRecord, ActionState
from perdure.core.approvals import GrantRecord, KeyRecord
from perdure.core.audit import AuditRecord
from perdure.core.errors import ActionUnknownError, UsageError
from perdure.core.principals import Principal
from perdure.core.verdicts import Demand, Reason
from perdure.engines.embedded import works
from perdure.gateway import ledger
from perdure.gateway.records import note
from perdure.governance.claims import ActionClaim, claim_of, display
from perdure.governance.grant_errors import GrantQuorumMissingError, GrantRoleMissingError, GrantUsedError
from perdure.governance.grants import Decision, Granted, Statement, read_statement, statement_of, verify
from perdure.ports import Transaction
from perdure.runtime.actions import parts

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

KID_SHOWN = 12  # characters of a key's id
RUNTIME_ID = "runtime"  # the fact that holds the id of a data directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A held action that only a grant releases.

    Attributes:
        record: its row.
        claim: what would be done.
        reasons: why it is held.
        demands: who must sign.
        due_ms: until when; then it is escalated or denied.
        asked: how often it was escalated.
        shown: the text for the approver; its digest is signed.
        signed: signed decisions that are there, the newest last.
    """

    record: ActionRecord
    claim: ActionClaim
    reasons: tuple[Reason, ...]
    demands: tuple[Demand, ...]
    due_ms: int | None
    asked: int
    shown: str
    signed: tuple[GrantRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of a signed decision.

    Attributes:
        state: ``released``, ``rejected``, or ``waiting`` for more signatures.
        persons: who has signed so far.
        missing: what is still asked for.
    """

    state: Literal["released", "rejected", "waiting"]
    persons: tuple[str, ...]
    missing: str = ""


class Approvals:
    """``runtime.approvals``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # -- looking
    def pending(self, limit: int = 1_000) -> list[Pending]:
        """What waits for a grant, the oldest first."""

        def work(
            tx: Transaction,
        ) -> list[Pending]:  # one view: whoever drives the runs may move them on meanwhile
            rows = tx.actions(ActionFilter(state=(ActionState.HELD,), limit=limit))
            waiting = [row for row in reversed(rows) if row.code == ledger.APPROVAL_NEEDED]
            return [self._pending(tx, row.run, row.call) for row in waiting]

        return self._runtime.store.read(work)

    def show(self, action: str) -> Pending:
        """One held action.

        Raises:
            ActionUnknownError: there is none, or it waits for no grant.
        """
        run, call = parts(action)
        return self._runtime.store.read(lambda tx: self._pending(tx, run, call))

    def _pending(self, tx: Transaction, run: str, call: int) -> Pending:
        row = ledger.found(tx, run, call)
        journal = tx.journal(run, row.intent_seq - 1)
        held = [item for item in journal if isinstance(item, e.ActionHeld) and item.call == call]
        if row.state is not ActionState.HELD or row.code != ledger.APPROVAL_NEEDED or not held:
            raise ActionUnknownError(
                f"action `{row.key}` is {row.state} and waits for no grant",
                action=row.key,
                state=row.state.value,
            )
        last = held[-1]
        started = tx.journal(run, 0, 1)[0]
        chain = (Principal(kind="agent", name=row.agent, run=run), *getattr(started, "principals", ()))
        asked = tx.blob(last.request.blob) if last.request.blob else bytes(last.request.inline)
        claim = claim_of(
            run, call, row.name, tool_digest=last.tool, arguments=asked, chain=chain, policy=last.policy
        )
        return Pending(
            record=row,
            claim=claim,
            reasons=last.reasons,
            demands=last.demands,
            due_ms=last.due_ms,
            asked=last.asked,
            shown=display(claim, last.reasons),
            signed=tuple(tx.grants(run, call)),
        )

    # -- deciding
    def statement(
        self,
        action: str,
        decision: Decision,
        *,
        reason: str = "",
        arguments: dict[str, Any] | None = None,
        life_s: int = 3_600,
    ) -> Statement:
        """What a person signs, with their own key, outside of the runtime.

        Raises:
            ActionUnknownError: the action waits for no grant.
            InputInvalidError: an argument is a number that not every reader reads alike.
        """
        found = self.show(action)
        return statement_of(
            found.claim,
            found.reasons,
            audience=self.audience,
            jti=self._runtime.new_id(),
            now_s=self._runtime.now_ms() // 1000,
            decision=decision,
            reason=reason,
            arguments=arguments,
            life_s=life_s,
        )

    @property
    def audience(self) -> str:
        """The id of this runtime."""
        return self._runtime.store.read(lambda tx: tx.fact(RUNTIME_ID)) or ""

    async def submit(self, action: str, token: str) -> Submitted:
        """Hand in a signed decision. Durable on return; with all the signatures that are asked for, its run goes on soon after.

        Raises:
            ActionUnknownError: the action waits for no grant, or was decided already.
            GrantRefusedError: it does not count; the subclass says why. Nothing has changed.
        """
        run, call = parts(action)
        now_ms = self._runtime.now_ms()
        limit = self._runtime.settings.payload_bytes_max
        audience = self.audience

        def work(tx: Transaction) -> Submitted:
            pending = self._pending(tx, run, call)
            found, missing = self._verified(tx, pending, token, audience, now_ms)
            jti = found.statement.jti
            known = tx.grant(jti)
            if known is not None and (known.used_ms is not None or (known.run, known.call) != (run, call)):
                raise GrantUsedError(f"grant `{jti}` was used already, or is about another action")
            is_reject = found.statement.decision == "reject"
            ruling = None
            if not missing:
                ruling = ledger.Ruling(
                    decision="reject" if is_reject else "grant",
                    by=", ".join(found.persons),
                    reason=found.statement.reason,
                )
            grant = GrantRecord(jti=jti, run=run, call=call, token=token, at_ms=now_ms)
            works.submit_grant(tx, grant, ruling, now_ms=now_ms, limit=limit)
            kids = ",".join(kid[:KID_SHOWN] for kid in found.kids)
            text = f"{found.statement.decision}, SHA-256 {found.digest}, keys {kids}"
            note(
                tx,
                pending.record,
                now_ms,
                kind="rejected" if is_reject else "granted",
                by=", ".join(found.persons),
                grant=jti,
                text=text,
            )
            state: Any = "waiting" if missing else "rejected" if is_reject else "released"
            return Submitted(state=state, persons=found.persons, missing=missing)

        submitted = await self._runtime.store.transact(work)
        self._runtime.look_after([run])
        return submitted

    def _verified(
        self, tx: Transaction, pending: Pending, token: str, audience: str, now_ms: int
    ) -> tuple[Granted, str]:
        """A decision that counts as far as it goes, and what is still missing."""
        keys = {key.kid: key for key in tx.approver_keys()}

        def check(demands: Sequence[Demand]) -> Granted:
            return verify(
                token, claim=pending.claim, reasons=pending.reasons, keys=keys, demands=demands, audience=audience,
                now_ms=now_ms,
            )  # fmt: skip

        anybody = Demand(roles=tuple(role for demand in pending.demands for role in demand.roles))
        found = check([anybody])  # also one signature of several must be of somebody who is asked
        if found.statement.decision == "reject":
            return found, ""
        try:
            return check(pending.demands), ""
        except (GrantQuorumMissingError, GrantRoleMissingError) as error:
            return found, error.message

    def unfinished(self, action: str) -> GrantRecord | None:
        """The newest decision to go on that waits for more signatures."""
        for grant in reversed(self.show(action).signed):
            if grant.used_ms is None and read_statement(grant.token).decision != "reject":
                return grant
        return None


class Keys:
    """``runtime.keys``: the registered public keys of approvers."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def rows(self) -> list[KeyRecord]:
        """Every key, also the revoked ones, oldest first."""
        return self._runtime.store.read(lambda tx: tx.approver_keys())

    async def register(self, keys: Sequence[KeyRecord], *, by: str) -> None:
        """Register keys; those that are there get the new person and roles. Durable on return.

        Raises:
            UsageError: a key was revoked; a revoked key never counts again.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> None:
            revoked = {key.kid for key in tx.approver_keys() if key.revoked_ms is not None}
            for key in keys:
                if key.kid in revoked:
                    raise UsageError(f"key `{key.kid}` was revoked; make a new one with `perdure keys new`")
                tx.put_key(key)
                text = f"registered for {key.person}: {', '.join(key.roles)}"
                tx.audit(AuditRecord(kind="keys", at_ms=now_ms, name=key.kid, by=by, refs={"note": text}))

        await self._runtime.store.transact(work)

    async def revoke(self, kid: str, *, by: str, reason: str = "") -> KeyRecord:
        """Revoke a key: nothing that it has signed and that was not used counts any more. Durable on return.

        Raises:
            UsageError: there is none, or several begin like that.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> KeyRecord:
            found = [key for key in tx.approver_keys() if key.kid.startswith(kid)]
            if len(found) != 1:
                raise UsageError(
                    f"{len(found)} keys begin with `{kid}`, expected one; `perdure keys list` shows them"
                )
            key = msgspec.structs.replace(found[0], revoked_ms=found[0].revoked_ms or now_ms)
            tx.put_key(key)
            tx.audit(
                AuditRecord(
                    kind="keys", at_ms=now_ms, name=key.kid, by=by, refs={"note": f"revoked: {reason}"}
                )
            )
            return key

        return await self._runtime.store.transact(work)


def runtime_id(tx: Transaction, fresh: str) -> str:
    """The id of a data directory, made once."""
    known = tx.fact(RUNTIME_ID)
    if known is None:
        tx.set_fact(RUNTIME_ID, fresh)
    return known or fresh
