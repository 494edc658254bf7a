"""``process``: an agent whose code is a program of any language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.agents.program import Divergence, Kind, Program
from perdure.agents.requests import ProgramCall
from perdure.agents.run import Run
from perdure.core.actions import Budget
from perdure.core.principals import Risk
from perdure.core.resources import Resources
from perdure.core.values import decode, digest


async def _host(run: Run, given: Any = None) -> Any:
    """The code of a run of a hosted program: one durable call that lasts as long as the program does."""
    data = to_json(given)
    return await run.calls.issue(ProgramCall("program", digest(data), decode, data))


def process(
    name: str,
    command: Sequence[str],
    *,
    tools: Sequence[Any] = (),
    budget: Budget | None = None,
    resources: Resources | None = None,
    env: Mapping[str, str] | None = None,
    kind: Kind = "command",
    restarts_max: int = 3,
    backoff: float = 0.5,
    divergence: Divergence = "ask",
    hold: float = 30.0,
    cwd: str | None = None,
    concurrency: int | None = None,
    version: str | None = None,
    roles: Sequence[str] = (),
    agency: Mapping[str, str | int] | None = None,
    risk: Risk | None = None,
    sandbox: Literal["namespace", "process"] | None = None,
    steady: bool = False,
    shows: Sequence[str] = (),
    writes: Sequence[str] = (),
) -> Agent:
    """An agent that is an unmodified program: it is started with the gateway's addresses in its environment.

    After a crash, of the program or of the runtime, it is started again and answered from the journal up to where it was.

    Args:
        name: how runs are started by.
        command: the program and its arguments; run without a shell.
        tools: what it may use over MCP: tools and names of toolsets.
        budget: what each run may use.
        resources: what must be free for it to start, and what each attempt may take; its limits need a wall.
        env: variables that it gets beside those of the gateway.
        kind: ``command``, or ``agentcore`` for a program that answers ``/invocations`` and ``/ping``.
        restarts_max: restarts in a row, without a new call in between, after which the run fails.
        backoff: seconds before the first restart; doubles after each.
        divergence: when a restarted program asks for something else than before: ``fail``, ``live`` or ``ask``.
        hold: seconds that it may do nothing but wait for a decision before it is stopped and its run parked.
        cwd: the folder to start it in; by default its workspace.
        concurrency: programs of this agent at once.
        version: pins the program; by default a digest of command and variables.
        roles: what policies may call it by.
        agency: what it may do on its own, as for ``Agent``.
        risk: its tier, as for ``Agent``.
        sandbox: the wall that it runs behind: ``namespace``, or ``process`` for a plain process of this user; by default what the
            runtime is configured with.
        steady: make chance and the time of day the same on every attempt, so that restarted programs of Python or Node.js ask for the
            very same things again. Not for programs whose cryptography draws from these.
        shows: files and folders that it may read there, beside ``cwd``, its interpreter and the files that its command names.
        writes: folders that it may change there, beside its workspace.

    Raises:
        DefinitionError: this cannot work.
    """
    made = Program(
        command=tuple(command), env=dict(env or {}), kind=kind, restarts_max=restarts_max,
        backoff_ms=round(backoff * 1000), divergence=divergence, hold_ms=round(hold * 1000), cwd=cwd,
        sandbox=sandbox, steady=steady, shows=tuple(shows), writes=tuple(writes),
    )  # fmt: skip
    return Agent(
        name, handler=_host, tools=tools, budget=budget, resources=resources, program=made, concurrency=concurrency,
        version=version or made.version, roles=roles, agency=agency, risk=risk,
    )  # fmt: skip
