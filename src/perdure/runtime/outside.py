"""The way out of a runtime: joins the gateway with upstreams, tools, secrets and hosted programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.agents.agent import Agent
from perdure.core.errors import DefinitionError
from perdure.core.limits import Settings
from perdure.core.models import Upstream
from perdure.core.tools import ToolSpec
from perdure.core.workers import WorkerRules
from perdure.engines.embedded.acts import Outside
from perdure.gateway.catalogue import Catalogue, Toolbox
from perdure.gateway.gateway import Gateway
from perdure.gateway.governance import Governance
from perdure.ports import Secrets, Telemetry, Tool, Toolset
from perdure.runtime.agent_tools import AgentsToolset
from perdure.runtime.resourcing import ResourcePlan, ResourceRules
from perdure.runtime.rulebook import Rulebook, Rules
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.runtime.walls import SandboxRules

PROGRAMS = "programs"  # the folder of workspaces, in the data directory


@dataclass(frozen=True, kw_only=True)
class World:
    """What a runtime may reach.

    Attributes:
        upstreams: who answers model requests.
        toolsets: MCP servers, OpenAPI documents, databases, by their names.
        secrets: resolves ``secret://`` references; by default environment, files and keyring.
        agents: the runtime's own agents as tools.
        rules: what actions are judged by.
        sandboxes: where code is executed.
        workers: where agent code runs.
        resources: what agents may take; of each agent in :func:`reach`.
    """

    upstreams: Sequence[Upstream] = ()
    toolsets: Sequence[Toolset] = ()
    secrets: Secrets | None = field(default=None)
    agents: AgentsToolset | None = field(default=None)
    rules: Rules = field(default_factory=Rules)
    sandboxes: SandboxRules = field(default_factory=SandboxRules)
    workers: WorkerRules = field(default_factory=WorkerRules)
    resources: ResourceRules = field(default_factory=ResourceRules)


@asynccontextmanager
async def reach(
    world: World,
    agents: Mapping[str, Agent],
    *,
    folder: Path,
    settings: Settings,
    telemetry: Telemetry | None,
    governance: Governance | None = None,
    rules: Rulebook | None = None,
) -> AsyncIterator[Outside]:
    """Everything that the engine needs to act; closed on leaving.

    Raises:
        DefinitionError: an agent's charter names a toolset that is not there, or a configuration cannot work.
    """
    from perdure.gateway.prices import load_table
    from perdure.gateway.redact import Redactor
    from perdure.models.upstreams import ConfiguredUpstreams
    from perdure.runtime.secrets import LocalSecrets, environment_without

    secrets = world.secrets or LocalSecrets.default(folder)
    if world.upstreams:
        await asyncio.to_thread(load_table)  # half a second, once a process: not while a call waits
    toolbox = Toolbox([*world.toolsets, world.agents or AgentsToolset(agents)])
    catalogues = {name: catalogue_of(agent, toolbox) for name, agent in agents.items()}
    if rules is not None and governance is not None:
        await rules.govern(governance, catalogues, secrets)
    upstreams = ConfiguredUpstreams(world.upstreams, secrets)
    gateway = Gateway(
        upstreams=upstreams,
        redactor=Redactor(secrets.known_values),
        payload_bytes_max=settings.payload_bytes_max,
        telemetry=telemetry,
        governance=governance,
    )
    programs = None
    if any(agent.program is not None for agent in agents.values()):
        from perdure.hosting.programs import LocalPrograms
        from perdure.sandboxes.programs import NamespacePrograms

        programs = LocalPrograms(
            (folder / PROGRAMS).absolute(),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            environment=environment_without(os.environ),
            result_bytes_max=settings.payload_bytes_max,
            walls=NamespacePrograms(),
            usual=world.sandboxes.programs,
            limits_of=ResourcePlan(world.resources, agents).limits_of,
        )
    try:
        yield Outside(gateway, catalogues, programs)
    finally:
        if programs is not None:
            await programs.close()
        await toolbox.close()
        await upstreams.close()
        if rules is not None:
            await rules.close()


def catalogue_of(agent: Agent, toolbox: Toolbox) -> Catalogue:
    """The tools of an agent's charter.

    Raises:
        DefinitionError: it names a toolset that is not there.
    """
    own: list[Tool] = []
    charter: list[str] = []
    for item in agent.tools:
        if isinstance(item, str):
            name = item.partition(".")[0]
            if name not in toolbox:
                known = ", ".join(f"`{found}`" for found in toolbox.names) or "none"
                message = f"agent `{agent.name}` names toolset `{name}`; the runtime has {known}"
                raise DefinitionError(message, agent=agent.name)
            charter.append(item)
        elif is_tool(item):
            own.append(item)
        elif agent.model is None:
            kind = type(item).__name__
            raise DefinitionError(
                f"agent `{agent.name}` has a tool of type `{kind}`; make it one with `@tool`, or name a toolset",
                agent=agent.name,
            )
    return Catalogue(own, charter, toolbox)


def is_tool(item: Any) -> bool:
    """Whether something implements the ``Tool`` port."""
    return isinstance(getattr(item, "spec", None), ToolSpec) and callable(getattr(item, "call", None))
