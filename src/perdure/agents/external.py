"""``external``: an agent whose code is in a worker program of another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.agents.agent import Agent
from perdure.agents.run import Run
from perdure.core.actions import Budget
from perdure.core.errors import DefinitionError
from perdure.core.principals import Risk
from perdure.core.records import Conflict


async def _elsewhere(run: Run, given: Any = None) -> Any:  # noqa: ARG001 - the signature says what its input may be
    raise DefinitionError("this agent's code is in a worker program; the runtime must be opened to drive it")


def external(
    name: str,
    command: Sequence[str],
    *,
    version: str,
    tools: Sequence[Any] = (),
    concurrency: int | None = None,
    conflict: Conflict = "enqueue",
    subscribes: Sequence[str] = (),
    budget: Budget | None = None,
    roles: Sequence[str] = (),
    agency: Mapping[str, str | int] | None = None,
    risk: Risk | None = None,
) -> Agent:
    """An agent whose code is in a program that speaks the worker protocol (``docs/worker-protocol.md``).

    Its runs are always in worker processes. Agents with the same command share them.

    Args:
        name: how runs are started by; the worker must have an agent of that name.
        command: the program and its arguments; run without a shell.
        version: pins the code; the worker must say the same.
        tools: what it may use; they stay in the runtime.
        concurrency: runs of this agent that execute at once; ``None`` is without limit of its own.
        conflict: what a second run of a busy session does, as for ``Agent``.
        subscribes: topics; each publication starts a run.
        budget: what each run may use.
        roles: what policies may call it by.
        agency: what it may do on its own, as for ``Agent``.
        risk: its tier, as for ``Agent``.

    Raises:
        DefinitionError: this cannot work.
    """
    if not command or not all(isinstance(item, str) and item for item in command):
        raise DefinitionError(f"a worker's command must be a list of words, found `{command!r:.200}`")
    return Agent(
        name, handler=_elsewhere, command=command, version=version, tools=tools, concurrency=concurrency, conflict=conflict,
        subscribes=subscribes, budget=budget, roles=roles, agency=agency, risk=risk,
    )  # fmt: skip
