"""Conduct: rules over the sequence of the run's own actions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

from perdure.core.errors import PerdureError
from perdure.core.verdicts import ALLOW, Verdict, deny
from perdure.gateway.gates.case import Case
from perdure.governance.conduct import Event
from perdure.governance.conduct_rules import Rule, check_tools


class ConductGate:
    """Asks the automata of the run.

    Args:
        rules: of this runtime.
        tools: the names of every tool that an agent may have; asked once.
    """

    def __init__(self, rules: Sequence[Rule], tools: Callable[[], Awaitable[Collection[str]]]) -> None:
        self._rules = rules
        self._tools = tools
        self._is_checked = False

    async def judge(self, case: Case) -> Verdict:
        """Its answer; while a rule names a tool that is not there it is no."""
        if case.what != "tool":
            return ALLOW
        if not self._is_checked:
            try:
                check_tools(self._rules, await self._tools())
            except PerdureError as error:
                return deny(
                    "conduct-invalid",
                    f"the conduct rules cannot be used, so nothing is allowed: {error.message}",
                )
            self._is_checked = True
        if case.memory is None:
            return deny("conduct-unknown", "nothing is known of what the run has done")
        event = Event(name=case.name, effect=case.effect, at_ms=case.at_ms, arguments=case.arguments)
        return case.memory.conduct.judge(event)
