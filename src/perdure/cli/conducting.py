"""What ``conduct ...`` does."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import msgspec

from perdure.agents import Agent
from perdure.cli import views
from perdure.cli.apps import choose, load, split
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.governance.behaviour import GoalBaseline, said
from perdure.governance.drift import Report
from perdure.governance.risk import DIMENSIONS, POINTS_MAX
from perdure.runtime import Runtime

ANSWERS = {"none": "it acts as before", "drift": "it does not act as before", "unknown": "it cannot be said"}


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


def freeze(data: Path, out: Out, agent: str, goal: str | None, *, runs: int) -> None:
    """Freeze a baseline."""

    async def work(runtime: Runtime) -> GoalBaseline:
        return await runtime.drift.freeze(agent, goal, by=getpass.getuser(), runs=runs)

    made = beside(data, work)
    if out.json:
        out.emit(_baseline_told(made))
        return
    out.text(
        f"agent {made.agent}, goal {made.goal}: {made.verbs.samples} actions of {made.runs} runs are the baseline now"
    )
    if made.single:
        out.note(
            f"{made.single} of its verbs came in one run only: expect a new one in about {made.new_verb_percent:.1f} "
            "percent of the runs, without any drift"
        )


def check(data: Path, out: Out, agent: str, goal: str | None, *, window: int) -> int:
    """Hold newer runs against a baseline; 1 unless they are as before."""

    async def work(runtime: Runtime) -> Report:
        return await runtime.drift.check(agent, goal, window=window)

    report = beside(data, work)
    if out.json:
        out.emit({"agent": agent, "goal": goal or agent, **msgspec.to_builtins(report)})
    else:
        rows = [
            [feature.feature, feature.test, "drift" if feature.is_drift else "", said(feature)]
            for feature in report.features
        ]
        if rows:
            out.table(("feature", "test", "", "what it says"), rows)
        out.text(ANSWERS[report.found] + (f": {report.why}" if report.why else ""))
    return 0 if report.found == "none" else 1


def baselines(data: Path, out: Out) -> None:
    """List what was frozen."""

    async def work(runtime: Runtime) -> list[GoalBaseline]:
        return await runtime.drift.baselines()

    found = beside(data, work)
    if out.json:
        for one in found:
            out.emit(_baseline_told(one))
        return
    rows = [
        [
            one.agent, one.goal, views.when(one.at_ms), one.by, str(one.runs), str(one.verbs.samples),
            ", ".join(one.known), f"{one.new_verb_percent:.1f} %",
        ]
        for one in found
    ]  # fmt: skip
    heads = ("agent", "goal", "frozen", "by", "runs", "actions", "verbs", "new verbs by chance")
    out.table(heads, rows, empty="nothing was frozen; `perdure conduct drift freeze AGENT` does it")


def _baseline_told(one: GoalBaseline) -> dict[str, Any]:
    return {
        "agent": one.agent,
        "goal": one.goal,
        "frozen_ms": one.at_ms,
        "by": one.by,
        "runs": one.runs,
        "actions": one.verbs.samples,
        "verbs": dict(one.known),
        "new_verb_percent": round(one.new_verb_percent, 2),
    }
