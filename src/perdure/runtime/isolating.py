"""Which agents run in worker processes, and what those are started as."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from perdure.agents.agent import Agent
from perdure.core.errors import DefinitionError
from perdure.core.limits import Settings
from perdure.core.workers import Isolation, WorkerRules
from perdure.engines.isolated.places import WorkerPlaces, places
from perdure.engines.isolated.process import WorkerApp
from perdure.runtime.secrets import environment_without
from perdure.runtime.system import SystemEntropy

WORKER = "perdure.engines.isolated.worker"


def rules_of(isolation: Isolation | WorkerRules) -> WorkerRules:
    """Rules from a word or as they are.

    Raises:
        DefinitionError: there is no such isolation.
    """
    if isinstance(isolation, WorkerRules):
        return isolation
    try:
        return msgspec.convert({"isolation": isolation}, WorkerRules)
    except msgspec.ValidationError as error:
        raise DefinitionError(f"`isolation` is `none` or `process`, found `{isolation!r:.80}`") from error


def apps_of(agents: Mapping[str, Agent], rules: WorkerRules) -> list[WorkerApp]:
    """What worker processes are started as: one app of all Python agents, and one for each other command.

    Raises:
        DefinitionError: an agent cannot run in another process.
    """
    env = environment_without(os.environ)
    found: list[WorkerApp] = []
    commands: dict[tuple[str, ...], dict[str, str]] = {}
    local: list[Agent] = []
    for agent in agents.values():
        if agent.command is not None:
            commands.setdefault(agent.command, {})[agent.name] = agent.version
        elif rules.isolation != "none" and agent.program is None:
            local.append(_checked(agent))
    for command, versions in commands.items():
        found.append(WorkerApp(name=command[-1], command=command, agents=versions, env=env))
    if local:
        modules = sorted({agent.handler.__module__ for agent in local if agent.handler is not None})
        app = {"path": [item for item in sys.path if item], "modules": modules}
        found.append(
            WorkerApp(
                name=", ".join(modules),
                command=(sys.executable, "-P", "-m", WORKER),
                agents={agent.name: agent.version for agent in local},
                env={**env, "PERDURE_WORKER_APP": msgspec.json.encode(app).decode()},
                has_mark=True,
            )
        )
    return found


def _checked(agent: Agent) -> Agent:
    if agent.model is not None:
        raise DefinitionError(
            f"agent `{agent.name}` is a model loop, whose model is asked with keys: it cannot run in a worker process; "
            'write it with `run.model`, host it with `process(...)`, or set `isolation = "none"`',
            agent=agent.name,
        )
    if agent.handler is not None and agent.handler.__module__ == "__main__":
        raise DefinitionError(
            f"agent `{agent.name}` is defined in the main script, which a worker process cannot import; "
            "define it in a module of its own",
            agent=agent.name,
        )
    return agent


@asynccontextmanager
async def isolated(
    agents: Mapping[str, Agent], isolation: Isolation | WorkerRules, settings: Settings
) -> AsyncIterator[WorkerPlaces | None]:
    """Worker processes for those agents that need them; ended on leaving.

    Raises:
        DefinitionError: an agent cannot run in another process.
        SandboxUnavailableError: they cannot be had here.
    """
    rules = rules_of(isolation)
    apps = apps_of(agents, rules)
    if not apps:
        yield None
        return
    async with places(apps, rules, settings, SystemEntropy().bits) as made:
        yield made
