"""Conduct: rules over the sequence of the run's own actions."""

from __future__ import annotations

from perdure.core.verdicts import ALLOW, Verdict, deny
from perdure.gateway.gates.case import Case


class ConductGate:
    """Asks the automata of the run."""

    async def judge(self, case: Case) -> Verdict:
        """Its answer; without a memory of the run it is no."""
        if case.what != "tool":
            return ALLOW
        if case.memory is None:
            return deny("conduct-unknown", "nothing is known of what the run has done")
        return case.memory.judge(case)
