"""Hold: an agent that is not sure, or a checker that is not, asks a person."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.core.principals import Risk
from perdure.core.verdicts import ALLOW, Demand, Verdict, hold
from perdure.gateway.gates.case import Case


class ConfidenceGate:
    """Holds an action that is no read when its confidence is known and low.

    Args:
        percent_min: from this confidence on it goes on, by the risk of the agent.
        demand: what releases it.
    """

    def __init__(self, percent_min: Mapping[Risk, int], demand: Demand | None = None) -> None:
        self._percent_min = percent_min
        self._demand = demand or Demand()

    async def judge(self, case: Case) -> Verdict:
        """Its answer."""
        least = self._percent_min[case.risk]
        if case.confidence is None or case.confidence >= least or case.effect == "read":
            return ALLOW
        message = f"confidence is {case.confidence} percent, below {least}"
        return hold("confidence-low", message, self._demand)
