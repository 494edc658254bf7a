"""``conduct ...``: risk and drift, as a person and a program use them."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli

APP = """
from perdure import Run, agent, tool

@tool(effect="read")
async def look(what: str) -> str:
    "Look."
    return what

@agent("desk", tools=[look], agency={"planning": "fixed", "goals": "single", "strategy": "fixed", "domains": "one",
    "reacts-to": "answers", "speaks-with": "users", "memory": "run", "runs-for": "hours", "state": "journal",
    "knowledge": "given"})
async def desk(run: Run, word: str) -> str:
    return str(await run.act(look, what=word))

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
