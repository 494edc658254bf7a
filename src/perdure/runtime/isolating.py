"""Which agents run in worker processes, and what those are started as."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from perdure.agents.agent import Agent
from perdure.core.errors import DefinitionError
from perdure.core.limits import Settings
from perdure.core.workers import Isolation, WorkerRules
from perdure.engines.isolated.places import WorkerPlaces, places
from perdure.engines.isolated.process import WorkerApp
from perdure.runtime.secrets import FILE, environment_without
from perdure.runtime.system import SystemEntropy
from perdure.sandboxes.walls import NOBODY, walled

WORKER = "perdure.engines.isolated.worker"
CONFIG = "perdure.toml"  # beside the app; it may hold what agent code need not know


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
        raise DefinitionError(
            f"`isolation` is `none`, `process` or `namespace`, found `{isolation!r:.80}`"
        ) from error


def apps_of(agents: Mapping[str, Agent], rules: WorkerRules, data: Path) -> list[WorkerApp]:
    """What worker processes are started as: one app of all Python agents, and one for each other command.

    Args:
        agents: definitions by name.
        rules: where their code runs.
        data: the data directory, which no wall shows.

    Raises:
        DefinitionError: an agent cannot run in another process.
        SandboxUnavailableError: there are no walls here.
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
        prefix = _wall(rules, data, [_folder(word) for word in command])
        found.append(WorkerApp(name=command[-1], command=command, agents=versions, env=env, prefix=prefix))
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
                prefix=_wall(rules, data, [*sys.path, sys.prefix, sys.base_prefix]),
            )
        )
    return found


def _wall(rules: WorkerRules, data: Path, shows: Sequence[str]) -> tuple[str, ...]:
    if rules.isolation != "namespace":
        return ()
    hides = [str(data), str(Path(FILE).absolute()), str(Path(CONFIG).absolute())]
    shown = [path for path in (*shows, *rules.shows) if path]
    return walled(shows=shown, hides=hides, cwd=str(Path.cwd()))


def _folder(word: str) -> str:
    """Where a word of a command is, if it is a program or a file: an interpreter with what it is installed with."""
    found = shutil.which(word) or word
    path = Path(found).resolve()
    if not path.is_file():
        return ""
    return str(path.parent.parent if path.parent.name == "bin" else path.parent)


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
    agents: Mapping[str, Agent], isolation: Isolation | WorkerRules, settings: Settings, data: Path
) -> AsyncIterator[WorkerPlaces | None]:
    """Worker processes for those agents that need them; ended on leaving.

    Raises:
        DefinitionError: an agent cannot run in another process.
        SandboxUnavailableError: they cannot be had here.
    """
    rules = rules_of(isolation)
    apps = apps_of(agents, rules, data)
    if not apps:
        yield None
        return
    owner = NOBODY if rules.isolation == "namespace" and os.getuid() == 0 else os.getuid()
    async with places(apps, rules, settings, SystemEntropy().bits, owner=owner) as made:
        yield made
