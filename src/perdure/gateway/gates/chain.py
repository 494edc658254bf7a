"""All gates in their order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from perdure.core.verdicts import ALLOW, Verdict, both, deny
from perdure.gateway.gates.case import Case, Gate

log = logging.getLogger("perdure.gates")


class Gates:
    """Asks gates in order.

    Args:
        gates: in order.
    """

    def __init__(self, gates: Sequence[Gate] = ()) -> None:
        self._gates = tuple(gates)

    async def judge(self, case: Case) -> Verdict:
        """The verdict of all gates: the first denial ends it, holds add up, changed arguments go on to the gates that follow."""
        found = ALLOW
        for gate in self._gates:
            try:
                verdict = await gate.judge(case)
            except Exception as error:
                log.exception("a gate failed, so action %s/%s is denied", case.run, case.call)
                kind = type(error).__name__
                verdict = deny("gate-failed", f"gate `{type(gate).__name__}` could not judge: {kind}")
            found = both(found, verdict)
            if verdict.is_deny:
                return found
            if verdict.kind == "modify" and verdict.arguments is not None:
                case = replace(case, arguments=msgspec.json.decode(verdict.arguments))
        return found
