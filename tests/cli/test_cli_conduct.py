"""``conduct ...``: risk and drift, as a person and a program use them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from perdure import Runtime, Settings
from perdure.cli.apps import load
from perdure.governance.behaviour import RUNS_MIN
from tests.cli.conftest import Cli

APP = """
from perdure import Run, agent, tool

@tool(effect="read")
async def look(what: str) -> str:
    "Look."
    return what

@tool(effect="read")
async def export(what: str) -> str:
    "Export."
    return what

@agent("desk", tools=[look, export], agency={"planning": "fixed", "goals": "single", "strategy": "fixed", "domains": "one",
    "reacts-to": "answers", "speaks-with": "users", "memory": "run", "runs-for": "hours", "state": "journal",
    "knowledge": "given"})
async def desk(run: Run, verb: str) -> str:
    return str(await run.act(verb, what="x"))

@agent("silent", risk="high")
async def silent(run: Run) -> None:
    "Says nothing of itself."
"""


@pytest.fixture
def app(cli: Cli) -> Cli:
    cli.folder.joinpath("desk.py").write_text(APP)
    return cli


def test_risk_lists_the_index_of_each_agent_and_explains_one(app: Cli) -> None:
    text = app.ok("conduct", "risk", "desk.py")
    assert text.splitlines()[0].split() == [
        "AGENT", "RISK", "TIER", "INDEX", "POINTS", "AUTONOMY", "ADAPTABILITY", "CONTINUITY",
    ]  # fmt: skip
    assert text.splitlines()[1].split()[1:5] == ["medium", "medium", "0.25", "9/36"]
    assert "not declared" in text.splitlines()[2]
    one = app.ok("conduct", "risk", "desk.py:desk")
    assert "interaction adaptation" in one
    assert "`speaks-with` is `users`" in one
    assert "silent" not in one
    desk, silent = app.lines("conduct", "risk", str(app.folder / "desk.py"))
    assert (desk["agent"], desk["declared"], len(desk["marks"])) == ("desk", True, 12)
    assert desk["points"] == sum(mark["points"] for mark in desk["marks"])
    assert silent == {"agent": "silent", "risk": "high", "declared": False}


def played(app: Cli, count: int, verb: str = "look") -> None:
    """Many runs in this process: as many processes would take a minute."""

    async def work() -> None:
        agents, settings = load(str(app.folder / "desk.py")), Settings(durability="relaxed")
        async with Runtime.open(app.data, agents=agents, settings=settings) as runtime:
            handles = [await runtime.start("desk", verb) for _ in range(count)]
            for handle in handles:
                await handle.result()

    asyncio.run(work())


def test_drift_is_frozen_checked_and_listed(app: Cli) -> None:
    played(app, RUNS_MIN - 1)
    few = app("conduct", "drift", "freeze", "desk")
    assert few.returncode == 2
    assert "agent `desk` has 49 ended runs for the goal `desk`, a baseline needs at least 50" in few.stderr
    assert app.lines("conduct", "drift", "list") == []
    played(app, 1)
    text = app.ok("conduct", "drift", "freeze", "desk")
    assert text == "agent desk, goal desk: 50 actions of 50 runs are the baseline now\n"
    [one] = app.lines("conduct", "drift", "list")
    assert (one["agent"], one["goal"], one["runs"], one["verbs"]) == ("desk", "desk", 50, {"tool:look": 50})
    assert "tool:look" in app.ok("conduct", "drift", "list")
    played(app, 9)
    early = app("conduct", "drift", "check", "desk")
    assert early.returncode == 1
    assert "it cannot be said: 9 runs have ended since the baseline was frozen, 10 are needed" in early.stdout
    played(app, 1)
    assert "it acts as before" in app.ok("conduct", "drift", "check", "desk")
    app.ok("run", "desk.py:desk", "export", "--goal", "backup")
    assert app.lines("conduct", "drift", "check", "desk")[0]["found"] == "none", "that was another goal"
    run = app.lines("runs", "list")[0]["id"]
    assert app.lines("runs", "show", run)[0]["goal"] == "backup"
    app.ok("run", "desk.py:desk", "export")
    found = app("conduct", "drift", "check", "desk", "--window", "10", "--json")
    told = json.loads(found.stdout)
    assert (found.returncode, told["found"], told["features"][0]["new"]) == (1, "drift", ["tool:export"])
    assert "never used for this goal before: `tool:export`" in app("conduct", "drift", "check", "desk").stdout
    assert "no baseline" in app("conduct", "drift", "check", "silent").stdout


def test_what_follows_is_shown_by_contain(app: Cli) -> None:
    played(app, RUNS_MIN)
    app.ok("conduct", "drift", "freeze", "desk")
    played(app, 1, "export")
    Path(app.folder / "perdure.toml").write_text(
        '[governance.drift]\ncontain = "restrict"\nevery_s = 0.1\nwindow = 10\n'
    )
    app.begin("work", "desk.py")
    [one] = app.until(lambda: app.lines("contain", "list"))
    assert (one["scope"], one["level"], one["by"]) == ("agent:desk", "restrict", "perdure.drift")
    assert "goal `desk`: never used for this goal before: `tool:export`" in app.ok("contain", "list")
