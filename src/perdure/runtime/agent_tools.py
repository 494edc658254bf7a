"""Agents as tools: the toolset ``agents``, through which an agent (or a hosted program) starts another and waits for its result.

The child's idempotency key is that of the action, so a repeat after a crash finds the same run; its spend counts in the budget of
the run that started it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.agents.tool import schema_of
from perdure.core.errors import PerdureError, ToolUnreachableError
from perdure.core.labels import Labels
from perdure.core.tools import AGENTS, ToolOutput, ToolSpec, ToolUse, is_tool_name
from perdure.core.values import pack
from perdure.engines.embedded.waits import outcome_of
from perdure.ports import Tool
from perdure.runtime.handle import RunHandle

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

WAIT_MS = 7 * 24 * 3_600_000  # a child may wait for a human; whoever wants less sets a deadline


class AgentsToolset:
    """The agents of a runtime, as tools. Implements ``Toolset``.

    Args:
        agents: definitions by name; those whose name cannot be a tool's are left out.
    """

    name = AGENTS

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = {name: agent for name, agent in agents.items() if is_tool_name(name)}
        self.runtime: Runtime | None = None  # set when it is open

    async def open(self) -> None:
        """Nothing to connect to."""

    async def tools(self) -> Sequence[Tool]:
        """One for each agent."""
        return [AgentTool(self, agent) for agent in self._agents.values()]

    async def close(self) -> None:
        """Let go of the runtime."""
        self.runtime = None


class AgentTool:
    """One agent. Implements ``Tool``; may be repeated, for the same key finds the same run."""

    def __init__(self, toolset: AgentsToolset, agent: Agent) -> None:
        self._toolset = toolset
        self._agent = agent
        self.spec = ToolSpec(
            name=agent.name,
            description=(agent.__doc__ or "").strip()
            or f"Start agent `{agent.name}` and wait for its result.",
            parameters=_parameters(agent),
            recovery="idempotent",
            effect="irreversible",
            source=f"agent:{agent.name}",
            timeout_ms=WAIT_MS,
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        """Start a child of the acting run, or find it, and wait for its end."""
        runtime = self._toolset.runtime
        engine = None if runtime is None else runtime.engine
        if runtime is None or engine is None:
            raise ToolUnreachableError(f"agent `{self._agent.name}` cannot be started: the runtime is closed")
        given = use.arguments.get("input") if _is_plain(self._agent) else use.arguments
        payload, blobs = pack(to_json(given), runtime.settings.payload_bytes_max)
        above = engine.hosts.get(use.run)
        if above is None:
            raise ToolUnreachableError(f"run `{use.run}` is not in memory any more, so nobody can act for it")
        payload = above.labelled(payload, to_json(given), self._agent.parameters.names)
        new = engine.new_run(
            self._agent, payload, blobs, idempotency_key=use.key, parent=use.run, principals=above.principals
        )
        record = await engine.start(new)
        handle = RunHandle(runtime, record.id)
        try:
            result = await handle.result()
        except PerdureError as error:  # it says what the child has put into it
            error.facts["labels"] = _labels(handle)
            raise
        return ToolOutput(value=result, labels=_labels(handle))


def _labels(handle: RunHandle) -> Labels:
    """Where the parts of a result, or the words of an error, come from, as the child knew it."""
    payload, failure = outcome_of(handle.journal(after=handle.record().seq - 1)[-1])
    if failure is not None:
        return failure.labels
    return () if payload is None else payload.labels


def _is_plain(agent: Agent) -> bool:
    """Whether an agent takes its input as it is: hosted programs and model agents do."""
    return agent.program is not None or agent.model is not None


def _parameters(agent: Agent) -> dict[str, Any]:
    if _is_plain(agent) or agent.handler is None:
        told = {"input": {"description": "What to work on."}}
        return {"type": "object", "properties": told, "required": ["input"], "additionalProperties": False}
    return schema_of(agent.handler, agent.name, skip=1)
