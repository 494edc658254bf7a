"""Authority: the policies in force, asked for every link of the delegation chain."""

from __future__ import annotations

from typing import Protocol

from perdure.core.verdicts import Verdict, deny
from perdure.gateway.gates.case import Case
from perdure.governance.policy import PolicyRequest, PolicySet


class Policies(Protocol):
    """Where the policies in force are."""

    @property
    def digest(self) -> str:
        """Their digest."""
        ...

    async def current(self) -> PolicySet:
        """The policies in force.

        Raises:
            PolicyInvalidError: they cannot be used: nothing is allowed.
        """
        ...


class AuthorityGate:
    """Asks the policies."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    async def judge(self, case: Case) -> Verdict:
        """Its answer; while the policies cannot be used it is no."""
        try:
            policies = await self._policies.current()
        except Exception as error:  # noqa: BLE001 - whatever it is: a check that cannot be made
            return deny("policy-invalid", f"the policies cannot be used, so nothing is allowed: {error}")
        flow = None if case.memory is None else case.memory.flow_of(case)
        return policies.decide(
            PolicyRequest(
                chain=case.chain,
                name=case.name,
                is_model=case.what == "model",
                arguments=case.arguments,
                risk=case.risk,
                at_ms=case.at_ms,
                labels=frozenset() if flow is None else flow.labels,
                sources=frozenset() if flow is None else flow.sources,
                approved=case.is_release,
                confidence=case.confidence,
                budget_left_usd_micros=case.budget_left() if policies.asks_for_budget else None,
            )
        )
