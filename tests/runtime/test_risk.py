"""The agency-risk index on real runs: what an agent declares is what gates see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, Run, Runtime, agent, process, tool
from perdure.core.actions import ActionState
from perdure.core.errors import DefinitionError
from perdure.core.verdicts import ALLOW, Verdict
from perdure.gateway.gates.case import Case
from perdure.governance.risk import CRITERIA
from perdure.runtime.config import world_from
from perdure.runtime.judging import Judging
from perdure.runtime.rulebook import Rules
from perdure.runtime.secrets import LocalSecrets

MODEST: dict[str, str | int] = {criterion.fact: 0 for criterion in CRITERIA} | {"tools": 1, "effects": 3}
BOLD: dict[str, str | int] = {criterion.fact: 2 for criterion in CRITERIA} | {"effects": 3}


@tool
async def pay(to: str) -> str:
    """Pay."""
    return f"paid {to}"


@agent("modest", tools=[pay], agency=MODEST)
async def modest(run: Run, to: str) -> Any:
    return await run.act(pay, to=to)


@agent("bold", tools=[pay], agency=BOLD, risk="low")
async def bold(run: Run, to: str) -> Any:
    with run.confidence(70):
        return await run.act(pay, to=to)


class Seen:
    """A gate that only looks."""

    def __init__(self) -> None:
        self.risks: list[str] = []

    async def judge(self, case: Case) -> Verdict:
        self.risks.append(case.risk)
        return ALLOW


async def _nothing(run: Run) -> None:
    del run


@pytest.mark.parametrize(
    ("options", "risk"),
    [
        ({}, "medium"),
        ({"risk": "low"}, "low"),
        ({"agency": MODEST}, "low"),
        ({"agency": MODEST, "risk": "high"}, "high"),
        ({"agency": BOLD}, "high"),
        ({"agency": BOLD, "risk": "low"}, "high"),
        ({"agency": BOLD, "risk": "critical"}, "critical"),
        ({"agency": {}}, "critical"),
    ],
)
def test_the_tier_follows_from_the_index_unless_a_stricter_one_is_set(options: Any, risk: str) -> None:
    assert Agent("a", handler=_nothing, **options).risk == risk
    assert process("p", ["true"], **options).risk == risk


@pytest.mark.parametrize(
    ("agency", "tools", "message"),
    [
        ({"plans": 1}, [], "the agency of agent `a`: a charter has no `plans`"),
        (MODEST | {"effects": "read"}, [pay], "declared as `read`, its tools show `irreversible`"),
        (MODEST | {"tools": "few"}, ["agents.desk"], "declared as `few`, its tools show `agents`"),
    ],
)
def test_an_agency_that_cannot_be_true_is_no_definition(agency: Any, tools: Any, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Agent("a", handler=_nothing, tools=tools, agency=agency)
    assert message in caught.value.message


def test_the_tools_of_a_toolset_are_not_known_here_so_what_is_not_said_of_them_counts_the_most() -> None:
    rest = {fact: value for fact, value in MODEST.items() if fact not in ("tools", "effects")}
    made = Agent("a", handler=_nothing, tools=[pay, "shop"], agency=rest)
    assert made.risk_index is not None
    assert made.risk_index.of("autonomy") == 6
    known = Agent("a", handler=_nothing, tools=[pay], agency=rest)
    assert known.risk_index is not None
    assert known.risk_index.of("autonomy") == 4


async def test_gates_and_policies_see_the_tier(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.cedar").write_text(
        '@id("careful") permit (principal, action == Action::"pay", resource) '
        'when { context.governance.risk == "low" };'
    )
    seen = Seen()
    async with Runtime.open(
        tmp_path / "d", agents=[modest, bold], rules=Rules(policies=tmp_path / "p", gates=[seen])
    ) as runtime:
        assert await (await runtime.start("modest", "x")).result() == "paid x"
        denied = await runtime.start("bold", "x")
        with pytest.raises(Exception, match="no policy allows it to agent `bold`"):
            await denied.result()
        assert seen.risks == ["low"], "who is denied by a policy, no other gate is asked about"


async def test_a_gate_sees_the_stricter_tier(tmp_path: Path) -> None:
    seen = Seen()
    async with Runtime.open(tmp_path / "d", agents=[bold], rules=Rules(gates=[seen])) as runtime:
        assert await (await runtime.start("bold", "x")).result() == "paid x"
        [row] = runtime.actions.rows()
        assert Judging(runtime).request(row.key).risk == "high", "so that explain and backtest see it, too"
    assert seen.risks == ["high"]


@pytest.mark.parametrize(("high", "state"), [(90, ActionState.HELD), (60, ActionState.SUCCEEDED)])
async def test_how_sure_an_agent_must_be_goes_by_its_tier(
    tmp_path: Path, high: int, state: ActionState
) -> None:
    (tmp_path / "perdure.toml").write_text(
        f"[governance.confidence_min]\nlow = 80\nmedium = 80\nhigh = {high}\ncritical = 99\n"
    )
    rules = world_from(tmp_path / "perdure.toml", {}, LocalSecrets.default(tmp_path)).rules
    async with Runtime.open(tmp_path / "d", agents=[bold], rules=rules) as runtime:
        handle = await runtime.start("bold", "x")
        with runtime.changes(handle.id) as changed:
            while not [row for row in runtime.actions.rows() if row.state is state]:
                await runtime.wait_for(changed)
                changed.clear()


@pytest.mark.parametrize("text", ["low = 80", "low = 80\nmedium = 80\nhigh = 0\ncritical = 1", "lax = 1"])
def test_a_confidence_for_each_tier_or_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "perdure.toml").write_text(f"[governance.confidence_min]\n{text}\n")
    with pytest.raises(DefinitionError, match="confidence_min"):
        world_from(tmp_path / "perdure.toml", {}, LocalSecrets.default(tmp_path))
