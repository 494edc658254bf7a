"""What a gate may look at, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from perdure.core.actions import What
from perdure.core.principals import Chain, Risk
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import Verdict
from perdure.gateway.memory import RunMemory


def _no_budget() -> int | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One action on its way through the gates.

    Attributes:
        run: who acts.
        call: the number of the call.
        agent: the name of the run's agent.
        risk: the tier of the agent.
        chain: the run, then who it acts for.
        what: ``tool`` or ``model``.
        name: the tool as the agent calls it, or the model.
        arguments: of a tool; empty for a model request.
        spec: of a tool.
        at_ms: the time.
        confidence: in percent, if the agent or a checker has said so.
        memory: what the run has seen and done.
        body: of a model request.
        is_release: it was held and is judged again.
        budget_left: what is left of the tightest budget of money above it, in millionths of a dollar; ``None`` if there is none.
    """

    run: str
    call: int
    agent: str
    risk: Risk
    chain: Chain
    what: What
    name: str
    at_ms: int
    arguments: dict[str, Any] = field(default_factory=dict)
    spec: ToolSpec | None = None
    confidence: int | None = None
    memory: RunMemory | None = None
    body: bytes = b""
    is_release: bool = False
    budget_left: Callable[[], int | None] = _no_budget

    @property
    def effect(self) -> str:
        """What it does to the world; a model request only reads."""
        return "read" if self.spec is None else self.spec.effect


class Gate(Protocol):
    """One check of an action."""

    async def judge(self, case: Case) -> Verdict:
        """Its answer. Whatever it raises counts as a denial."""
        ...
