"""Policies as an operator works with them: check, test, explain, and try on what was done before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionRecord
from perdure.core.errors import ActionUnknownError
from perdure.core.principals import Chain, Principal, Risk
from perdure.core.verdicts import Verdict
from perdure.governance.policy import PolicyRequest, PolicySet
from perdure.ports import Transaction
from perdure.runtime.actions import parts

if TYPE_CHECKING:
    from perdure.agents.agent import Agent
    from perdure.runtime.runtime import Runtime

UNKNOWN_RISK: Risk = "medium"  # what an agent has that says nothing of itself, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A recorded action, what was decided then, and what a candidate says now."""

    action: str
    agent: str
    name: str
    at_ms: int
    before: str
    after: Verdict

    @property
    def is_changed(self) -> bool:
        """Whether the candidate decides otherwise."""
        return self.before != self.after.kind


def request_of(
    tx: Transaction,
    row: ActionRecord,
    agents: Mapping[str, Agent],
    bytes_of: Bytes,
    chains: dict[str, Chain],
) -> PolicyRequest:
    """The request that an action was, from its journal; ``chains`` keeps who its runs act for.

    The roles and the risk of its agent are those of now.

    Raises:
        ActionUnknownError: the journal does not have it any more.
    """
    found = tx.journal(row.run, row.intent_seq - 1, 1)
    asked = found[0] if found else None
    if not isinstance(asked, e.ActionIntended | e.ActionHeld):
        raise ActionUnknownError(f"the journal has no request of action `{row.key}`", action=row.key)
    if row.run not in chains:
        started = tx.journal(row.run, 0, 1)[0]
        roles = agents[row.agent].roles if row.agent in agents else ()
        own = Principal(kind="agent", name=row.agent, run=row.run, groups=roles)
        chains[row.run] = (own, *getattr(started, "principals", ()))
    is_model = row.what == "model"
    return PolicyRequest(
        chain=chains[row.run],
        name=row.name,
        is_model=is_model,
        arguments={} if is_model else msgspec.json.decode(bytes_of(asked)),
        risk=agents[row.agent].risk if row.agent in agents else UNKNOWN_RISK,
        at_ms=row.intended_ms,
    )


class Bytes:
    """Gives the request of an entry as JSON."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def __call__(self, entry: e.ActionIntended | e.ActionHeld) -> bytes:
        """The bytes."""
        payload = entry.request
        return self._tx.blob(payload.blob) if payload.blob else bytes(payload.inline)


class Judging:
    """``runtime.judging``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def request(self, action: str) -> PolicyRequest:
        """The request that an action was.

        Raises:
            ActionUnknownError: there is none.
        """
        run, call = parts(action)

        def work(tx: Transaction) -> PolicyRequest:
            row = tx.action(run, call)
            if row is None:
                raise ActionUnknownError(f"there is no action `{action}`", action=action)
            return request_of(tx, row, self._runtime.agents, Bytes(tx), {})

        return self._runtime.store.read(work)

    def backtest(
        self, candidate: PolicySet, *, since_ms: int = 0, limit: int = 1_000_000
    ) -> Iterator[Replayed]:
        """Judge recorded actions by other policies, the newest first; nothing is done.

        Labels, confidence and budgets of then are not known any more, so policies are asked without them.

        Args:
            candidate: the other policies.
            since_ms: only actions since then.
            limit: how many at most.
        """
        chains: dict[str, Chain] = {}
        for row in self._runtime.store.read(lambda tx: tx.actions_since(since_ms, limit)):
            judge = partial(self._replayed, row, candidate, chains)
            yield self._runtime.store.read(judge)

    def _replayed(
        self,
        row: ActionRecord,
        candidate: PolicySet,
        chains: dict[str, Chain],
        tx: Transaction,
    ) -> Replayed:
        try:
            after = candidate.decide(request_of(tx, row, self._runtime.agents, Bytes(tx), chains))
        except ActionUnknownError as error:
            from perdure.core.verdicts import deny

            after = deny(error.code, error.message)
        before = {"refused": "deny", "held": "hold"}.get(row.state.value, "allow")
        return Replayed(
            action=row.key, agent=row.agent, name=row.name, at_ms=row.intended_ms, before=before, after=after
        )
