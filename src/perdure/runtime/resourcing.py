"""``[resources]`` of the configuration, joined with what agents say themselves and with what the machine has."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from perdure.agents.agent import Agent
from perdure.core.errors import DefinitionError
from perdure.core.resources import Limits, Requests, Resources, merged
from perdure.core.sandbox import SandboxLimits
from perdure.engines.embedded.admission import Admission
from perdure.kernel.quarantine import RULE_FACT, QuarantineRule
from perdure.ports import Store
from perdure.runtime.machine import machine


class ResourceRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[resources]`` of the configuration.

    Attributes:
        cpu: processors that runs may ask for together; by default those of the machine or of its control group.
        memory_bytes: the same of memory.
        quarantine: when agents that break their limits are quarantined.
        agents: by name; their requests replace those of the definition, of each limit the smaller one counts.
    """

    cpu: float | None = None
    memory_bytes: int | None = None
    quarantine: QuarantineRule = QuarantineRule()
    agents: Mapping[str, Resources] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.cpu is not None and self.cpu <= 0) or (
            self.memory_bytes is not None and self.memory_bytes <= 0
        ):
            raise DefinitionError("`cpu` and `memory_bytes` of `[resources]` are more than 0")


class ResourcePlan:
    """What each agent of a runtime may take.

    Args:
        rules: of the configuration.
        agents: the definitions, by name.

    Raises:
        DefinitionError: the rules name an agent that is not there.
    """

    def __init__(self, rules: ResourceRules | None, agents: Mapping[str, Agent]) -> None:
        self.rules = rules or ResourceRules()
        if rules is not None and agents and (unknown := set(rules.agents) - set(agents)):
            raise DefinitionError(
                f"`[resources.agents]` names `{min(unknown)}`; the agents are {', '.join(sorted(agents))}"
            )
        self._of = {
            name: merged(agent.resources, self.rules.agents.get(name)) for name, agent in agents.items()
        }

    def of(self, agent: str) -> Resources:
        """The resources of an agent."""
        return self._of.get(agent, Resources())

    def limits_of(self, agent: str) -> Limits | None:
        """Its limits, if it has any."""
        limits = self.of(agent).limits
        return None if limits == Limits() else limits

    def narrowed(self, base: SandboxLimits, agent: str) -> SandboxLimits | None:
        """The limits of its sandboxes, if they are narrower than those of all."""
        limits = self.limits_of(agent)
        return None if limits is None else limits.within(base)

    def admission(self) -> Admission:
        """Who may start beside whom.

        Raises:
            ResourcesTooLargeError: a run asks for more than there is.
        """
        here = machine()
        capacity = Requests(
            cpu=self.rules.cpu or here.cpu, memory_bytes=self.rules.memory_bytes or here.memory_bytes
        )
        return Admission(capacity, {name: each.requests for name, each in self._of.items()})

    async def begun(self, store: Store) -> Admission:
        """The admission of a runtime that begins; the rule of quarantine is kept where whoever records a breach finds it.

        Raises:
            ResourcesTooLargeError: a run asks for more than there is.
        """
        admission = self.admission()
        rule = msgspec.json.encode(self.rules.quarantine).decode()
        if store.read(lambda tx: tx.fact(RULE_FACT)) != rule:
            await store.transact(lambda tx: tx.set_fact(RULE_FACT, rule))
        return admission
