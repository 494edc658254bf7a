"""What ``conduct ...`` does."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.agents import Agent
from perdure.cli.apps import choose, load, split
from perdure.cli.output import Out
from perdure.governance.risk import DIMENSIONS, POINTS_MAX


def risk(target: str, out: Out) -> None:
    """List the agents of an app with their risk, or every criterion of one."""
    app, name = split(target)
    agents = load(app)
    if name is not None:
        chosen = choose(agents, name, app)
        agents = [agent for agent in agents if agent.name == chosen]
    agents.sort(key=lambda agent: agent.name)
    if out.json:
        for agent in agents:
            out.emit(_told(agent))
        return
    heads = ("agent", "risk", "tier", "index", "points", *DIMENSIONS)
    out.table(heads, [_row(agent) for agent in agents])
    if name is None or agents[0].risk_index is None:
        return
    out.text()
    rows = [
        [mark.dimension, mark.criterion, str(mark.points), mark.why] for mark in agents[0].risk_index.marks
    ]
    out.table(("dimension", "criterion", "points", "why"), rows)


def _row(agent: Agent) -> list[str]:
    found = agent.risk_index
    if found is None:
        return [agent.name, agent.risk, "not declared", "", "", *("" for _ in DIMENSIONS)]
    shares = [f"{found.of(dimension)}/12" for dimension in DIMENSIONS]
    return [agent.name, agent.risk, found.tier, f"{found.index:.2f}", f"{found.points}/{POINTS_MAX}", *shares]


def _told(agent: Agent) -> dict[str, Any]:
    told: dict[str, Any] = {"agent": agent.name, "risk": agent.risk, "declared": agent.risk_index is not None}
    if (found := agent.risk_index) is not None:
        told |= {
            "tier": found.tier,
            "index": round(found.index, 4),
            "points": found.points,
            "marks": [msgspec.to_builtins(mark) for mark in found.marks],
        }
    return told
