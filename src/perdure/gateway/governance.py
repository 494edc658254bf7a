"""What the gateway goes by: the gates, and what was signed about held actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.errors import UsageError
from perdure.core.principals import Chain
from perdure.core.verdicts import Demand, Reason, Verdict
from perdure.gateway.gates.case import Case, Gate
from perdure.gateway.gates.chain import Gates
from perdure.gateway.memory import RunMemory
from perdure.gateway.seat import Act, Seat
from perdure.gateway.vault import Vault
from perdure.governance.claims import ActionClaim, claim_of
from perdure.governance.grant_errors import (
    GrantArgumentsInvalidError,
    GrantMissingError,
    GrantRefusedError,
    GrantUsedError,
)
from perdure.governance.groups import Repeat
from perdure.governance.signed import envelopes, read_statement, verify
from perdure.governance.statements import Statement
from perdure.ports import Transaction


class Governance:
    """The gates and what they go by.

    Args:
        gates: in order.
        audience: the id of this runtime: a grant for another one is worth nothing here.
        memory: makes what is remembered of a run; ``None`` where no gate asks for it.
        vault: encrypts what is kept beside the audit log; without it nothing is.
    """

    def __init__(
        self,
        gates: Sequence[Gate] = (),
        *,
        audience: str = "",
        memory: Callable[[], RunMemory] | None = None,
        vault: Vault | None = None,
    ) -> None:
        self._gates = Gates(gates)
        self.audience = audience
        self.memory = memory
        self._vault = vault

    def go_by(self, gates: Sequence[Gate]) -> None:
        """Set the gates, in their order."""
        self._gates = Gates(gates)

    async def judge(self, seat: Seat, act: Act, *, is_release: bool = False) -> Verdict:
        """What the gates say that need no transaction."""
        return await self._gates.judge(case_of(seat, act, is_release=is_release))

    def sealer(self, seat: Seat, act: Act) -> Callable[[Transaction], tuple[str, bytes]] | None:
        """Makes the encrypted arguments of an act, for the subject on whose behalf it is done."""
        vault = self._vault
        if vault is None or act.what != "tool":
            return None
        subject = subject_of(seat.principals)
        data = act.stored or act.request
        return lambda tx: (subject, vault.seal(tx, subject, data))

    # -- grants
    def claim(self, seat: Seat, act: Act, arguments: bytes, policy: str) -> ActionClaim:
        """The action as it would be done under these policies; what was signed must be the same."""
        return claim_of(
            seat.run_id,
            act.call,
            act.name,
            tool_digest=act.spec.digest if act.spec else "",
            arguments=arguments,
            chain=seat.principals,
            policy=policy,
        )

    def changed_arguments(self, seat: Seat, act: Act) -> bytes | None:
        """The arguments that an approver wants instead, as JSON; not verified yet."""
        for grant in reversed(seat.grants(act.call)):
            if grant.used_ms is not None:
                continue
            statement = read_statement(grant.token)
            if statement.decision == "approve":
                return None
            if statement.arguments is not None:
                return _changes(statement)
        return None

    def use_grant(
        self,
        tx: Transaction,
        claim: ActionClaim,
        shown: Sequence[Reason],
        demands: Sequence[Demand],
        now_ms: int,
        changed: bytes | None = None,
    ) -> str:
        """Use up a grant that releases an action; its id.

        Args:
            tx: the transaction of the intent.
            claim: the action.
            shown: the reasons that its approver was shown.
            demands: what is asked for.
            now_ms: the time.
            changed: the arguments that it would go on with instead, as JSON: the grant must be for these.

        Raises:
            GrantRefusedError: there is none; of those that are there, why the newest does not count.
        """
        keys = {key.kid: key for key in tx.approver_keys()}
        error: GrantRefusedError | None = None
        for grant in reversed(tx.grants(claim.run, claim.seq)):
            if grant.used_ms is not None:
                error = error or GrantUsedError(f"grant `{grant.jti}` has released an action already")
                continue
            try:
                granted = verify(
                    grant.token, claim=claim, reasons=shown, keys=keys, demands=demands, audience=self.audience,
                    now_ms=now_ms, counted=envelopes(grant.token),
                ).granted  # fmt: skip
            except GrantRefusedError as refused:
                error = error or refused
                continue
            except (
                UsageError
            ) as missing:  # what verifies passkeys is not installed any more: then nothing does
                error = error or GrantRefusedError(missing.message)
                continue
            if (
                _changes(granted.statement) != changed
            ):  # those of one decision, with the signatures of another
                error = error or GrantArgumentsInvalidError(f"grant `{grant.jti}` is for other arguments")
                continue
            if granted.statement.decision != "reject" and tx.use_grant(grant.jti, now_ms):
                return grant.jti
        raise error or GrantMissingError("nobody has signed anything about it")

    def use_group(
        self,
        tx: Transaction,
        claim: ActionClaim,
        reasons: Sequence[Reason],
        demands: Sequence[Demand],
        now_ms: int,
    ) -> str:
        """Use a group grant of the run that an action is in; its id, empty if there is none.

        Args:
            tx: the transaction of the intent.
            claim: the action.
            reasons: why it would be held.
            demands: what is asked for.
            now_ms: the time.
        """
        keys: dict[str, KeyRecord] | None = None
        repeat = Repeat(**msgspec.structs.asdict(claim))
        for grant in tx.run_grants(claim.run):
            if grant.used_ms is None or (group := read_statement(grant.token).group) is None:
                continue
            keys = keys or {key.kid: key for key in tx.approver_keys()}
            try:
                verify(
                    grant.token, claim=repeat, reasons=reasons, keys=keys, demands=demands, audience=self.audience,
                    now_ms=now_ms, counted=envelopes(grant.token),
                )  # fmt: skip
            except (GrantRefusedError, UsageError):
                continue  # then it is held, and somebody is asked
            if tx.use_group(grant.jti, claim.run, claim.seq, group.count - 1, now_ms):
                return grant.jti
        return ""


def _changes(statement: Statement) -> bytes | None:
    """The arguments that an approver wants instead, as JSON."""
    return None if statement.arguments is None else msgspec.json.encode(statement.arguments)


def subject_of(chain: Chain) -> str:
    """Whose data an action is about: the user or service at the end of the chain, else its agent."""
    for principal in reversed(chain):
        if principal.kind != "agent":
            return f"{principal.kind}:{principal.name}"
    return f"agent:{chain[0].name}" if chain else ""


def case_of(seat: Seat, act: Act, *, is_release: bool = False) -> Case:
    """What gates are told of an act."""
    is_tool = act.what == "tool"
    return Case(
        run=seat.run_id,
        call=act.call,
        agent=seat.agent,
        risk=seat.risk,
        chain=seat.principals,
        what=act.what,
        name=act.name,
        at_ms=seat.now_ms(),
        arguments=msgspec.json.decode(act.request) if is_tool else {},
        spec=act.spec,
        confidence=act.confidence,
        memory=seat.memory,
        body=b"" if is_tool else act.request,
        is_release=is_release,
        budget_left=seat.budget_left,
    )
