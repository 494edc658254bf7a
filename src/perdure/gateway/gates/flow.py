"""Flow: what the arguments of an action are made from, held against what its tool declares."""

from __future__ import annotations

from perdure.core.verdicts import Verdict, deny
from perdure.gateway.gates.case import Case


class FlowGate:
    """Asks what the run has seen."""

    async def judge(self, case: Case) -> Verdict:
        """Its answer; where it is not known what the run has seen, it is no."""
        seen = None if case.memory is None else case.memory.seen
        if seen is None:
            return deny("flow-unknown", "nothing is known of what the run has seen")
        return seen.judge(case)
