"""Approvals as a person sees them: what waits, what it would do, and what was signed about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionFilter, ActionRecord, ActionState
from perdure.core.approvals import GrantRecord
from perdure.core.errors import ActionUnknownError, InputInvalidError, UsageError
from perdure.core.principals import Principal
from perdure.core.verdicts import Demand, Reason
from perdure.engines.embedded import works
from perdure.gateway import ledger
from perdure.gateway.records import note
from perdure.governance.claims import ActionClaim, claim_of, display
from perdure.governance.grant_errors import (
    GrantQuorumMissingError,
    GrantRefusedError,
    GrantRoleMissingError,
    GrantUsedError,
)
from perdure.governance.groups import group_of
from perdure.governance.passkey_registration import request_options
from perdure.governance.passkeys import MixedGranted, RelyingParty, challenge, envelope, is_passkey, library
from perdure.governance.signed import envelopes, joined, read_statement, verify
from perdure.governance.statements import Decision, Statement, statement_of
from perdure.governance.statements import also as also_told
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a page needs to have a decision signed with a passkey.

    Attributes:
        statement: what is decided; keep it, only its hash is in the signature.
        options: for ``navigator.credentials.get``.
    """

    statement: Statement
    options: dict[str, Any]


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
        signed = tuple(tx.grants(run, call))
        return Pending(
            record=row,
            claim=claim,
            reasons=last.reasons,
            demands=last.demands,
            due_ms=last.due_ms,
            asked=last.asked,
            shown=display(claim, last.reasons, _also(signed)),
            signed=signed,
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
        also: int = 0,
        free: Sequence[str] = (),
    ) -> Statement:
        """What a person signs, with their own key, outside of the runtime.

        Args:
            action: its id.
            decision: what is decided.
            reason: told to the agent.
            arguments: for ``approve_edited``, the arguments to go on with.
            life_s: for how many seconds it counts.
            also: so many more actions of the same shape, of the same run.
            free: arguments that may be anything in those.

        Raises:
            ActionUnknownError: the action waits for no grant.
            UsageError: the group cannot be one.
            InputInvalidError: an argument is a number that not every reader reads alike.
        """
        found = self.show(action)
        if (also or free) and decision != "approve":
            raise UsageError("more actions are approved only together with this one, as it is")
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
            group=group_of(found.claim, found.reasons, also + 1, free) if also or free else None,
        )

    def ask(
        self,
        action: str,
        decision: Decision,
        *,
        rp_id: str | None = None,
        reason: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> Asked:
        """A decision for a passkey to sign; a decision to go on that waits for more signatures is taken up.

        Args:
            action: its id.
            decision: what is decided.
            rp_id: the domain of the page that asks; needed if passkeys of several are registered.
            reason: told to the agent.
            arguments: for ``approve_edited``, the arguments to go on with.

        Raises:
            ActionUnknownError: the action waits for no grant.
            UsageError: there is no passkey, or of several domains, and none was named.
        """
        keys = [row for row in self._runtime.keys.rows() if row.kind == "passkey" and row.revoked_ms is None]
        domains = sorted({RelyingParty.of(key).id for key in keys})
        if rp_id is None and len(domains) == 1:
            rp_id = domains[0]
        if rp_id not in domains:
            known = (
                ", ".join(f"`{name}`" for name in domains) or "none; `perdure keys invite` begins with one"
            )
            raise UsageError(f"expected the domain of a registered passkey; there are: {known}")
        unfinished = self.unfinished(action) if decision == "approve" and not reason else None
        if unfinished is not None:
            statement = read_statement(unfinished.token)
        else:
            statement = self.statement(action, decision, reason=reason, arguments=arguments)
        return Asked(statement=statement, options=request_options(challenge(statement), rp_id, keys))

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

        if is_passkey(token):
            library()  # takes a quarter of a second: not within the transaction

        def work(tx: Transaction) -> Submitted:
            pending = self._pending(tx, run, call)
            jti = read_statement(token).jti
            known = tx.grant(jti)
            whole, counted = token, tuple[str, ...]()
            if known is not None and known.used_ms is None and (known.run, known.call) == (run, call):
                counted = envelopes(known.token)
                if is_passkey(token) or is_passkey(known.token):
                    whole = joined(known.token, token)  # each person hands in their own
            signed, missing = self._verified(tx, pending, whole, counted, audience, now_ms)
            found = signed.granted
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
            grant = GrantRecord(jti=jti, run=run, call=call, token=whole, at_ms=now_ms)
            works.submit_grant(tx, grant, ruling, now_ms=now_ms, limit=limit)
            count(tx, signed.sign_counts)
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
        self,
        tx: Transaction,
        pending: Pending,
        token: str,
        counted: Sequence[str],
        audience: str,
        now_ms: int,
    ) -> tuple[MixedGranted, str]:
        """A decision that counts as far as it goes, and what is still missing."""
        keys = {key.kid: key for key in tx.approver_keys()}

        def check(demands: Sequence[Demand]) -> MixedGranted:
            return verify(
                token, claim=pending.claim, reasons=pending.reasons, keys=keys, demands=demands, audience=audience,
                now_ms=now_ms, counted=counted,
            )  # fmt: skip

        anybody = Demand(roles=tuple(role for demand in pending.demands for role in demand.roles))
        found = check([anybody])  # also one signature of several must be of somebody who is asked
        if found.granted.statement.decision == "reject":
            return found, ""
        try:
            return check(pending.demands), ""
        except (GrantQuorumMissingError, GrantRoleMissingError) as error:
            return found, error.message

    def unfinished(self, action: str) -> GrantRecord | None:
        """The newest decision to go on that waits for more signatures; not one that has expired, or lost a key since.

        Raises:
            ActionUnknownError: the action waits for no grant.
        """
        run, call = parts(action)
        audience, now_ms = self.audience, self._runtime.now_ms()

        def look(tx: Transaction) -> GrantRecord | None:
            pending = self._pending(tx, run, call)
            for grant in reversed(pending.signed):
                if grant.used_ms is not None or read_statement(grant.token).decision == "reject":
                    continue
                try:
                    self._verified(tx, pending, grant.token, envelopes(grant.token), audience, now_ms)
                except GrantRefusedError:
                    continue
                return grant
            return None

        return self._runtime.store.read(look)


def passkey_token(statement: Statement, response: str) -> str:
    """What is handed in for a passkey.

    Args:
        statement: what was asked for.
        response: what ``PublicKeyCredential.toJSON`` gave, as JSON.

    Raises:
        InputInvalidError: it is no response of a passkey.
    """
    try:
        found = msgspec.json.decode(response.encode())
        return envelope(statement, found["id"], found["response"])
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputInvalidError(
            "this is no response of a passkey; expected what `PublicKeyCredential.toJSON` gives"
        ) from error


def count(tx: Transaction, counts: Mapping[str, int]) -> None:
    """Keep the counters of passkeys; they only go up."""
    for key in tx.approver_keys():
        if counts.get(key.kid, 0) > key.sign_count:
            tx.put_key(msgspec.structs.replace(key, sign_count=counts[key.kid]))


def runtime_id(tx: Transaction, fresh: str) -> str:
    """The id of a data directory, made once."""
    known = tx.fact(RUNTIME_ID)
    if known is None:
        tx.set_fact(RUNTIME_ID, fresh)
    return known or fresh


def _also(signed: Sequence[GrantRecord]) -> str:
    """What else somebody has begun to sign."""
    for grant in reversed(signed):
        statement = read_statement(grant.token)
        if grant.used_ms is None and statement.decision != "reject":
            return also_told(statement.group)
    return ""
