"""Unmodified programs survive ``kill -9`` of themselves and of the runtime: nothing is paid for twice, nothing is done twice.

The provider mints random ids and words for each answer, so only the journal can give an answer again. Every call boundary is
tried with the quickest program; the others are killed at some.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from pathlib import Path

import pytest

from perdure import Runtime
from perdure.core.actions import ActionState
from perdure.core.errors import ActionUnknownError
from tests.hosted.driver import Desk, desk, kill, until

FRAMEWORKS = ("pydantic_ai", "openai_agents", "langgraph", "node")
IDEAL = {"seq": (5, 4, 2), "par": (4, 4, 1)}  # model requests, calls of tools, bookings
pytestmark = pytest.mark.timeout(280)


def check(made: Desk, result: dict[str, object], *, lost: int = 0) -> None:
    """The counts are the ideal ones, and a pure replay gives the same answer without asking anybody."""
    made.rows()  # learns the id of the run
    requests, uses, bookings = IDEAL[made.env.get("MODEL", "seq")]
    asked = len(made.provider_calls())
    # A request that was intended when the runtime was killed may or may not have reached the provider.
    assert requests <= asked <= requests + lost, made.told()
    assert sum(call["tool"] == "book" for call in made.tool_calls()) == bookings, made.told()
    assert len(made.tool_calls()) >= uses, made.told()
    assert result["calls"] == requests + uses
    executed = len(made.tool_calls())
    replayed = made.result(made.exec("--replay", made.run))
    assert replayed["result"] == result["result"]
    assert str(result["result"]).startswith("FINAL All booked, reference ")
    assert replayed["replayed"] == requests + uses
    assert len(made.provider_calls()) == asked
    assert len(made.tool_calls()) == executed


def lost_requests(made: Desk) -> int:
    """Model requests that were under way when the runtime was killed: the only ones that are asked for again."""
    return len(made.rows(where="state = 'lost'"))


VARIANTS = {
    "pydantic_ai": {"NONDET": "1", "STREAM": "1"},
    "openai_agents": {"NONDET": "1"},
    "langgraph": {"NONDET": "1", "MODEL": "par"},
    "node": {"NONDET": "1"},
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_program_goes_on(tmp_path: Path, framework: str) -> None:
    boundaries = range(1, 9) if framework == "node" else (3, 6)
    with desk(tmp_path, framework, env=VARIANTS[framework]) as made:
        process, known = made.exec(), None
        for boundary in boundaries:
            until(lambda: made.ended() >= boundary, made.told)  # noqa: B023
            known = made.kill_program(known)
        check(made, made.result(process))
        assert made.levels() & {"causal", "masked", "ordinal"}, "the prompts differ, so not all can be exact"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_runtime_goes_on(tmp_path: Path, framework: str) -> None:
    boundaries = (1, 2, 4, 5, 7, 8) if framework == "node" else (4,)
    with desk(tmp_path, framework, env=VARIANTS[framework], latency_ms=50) as made:
        process = made.exec()
        for boundary in boundaries:
            until(lambda: made.ended() >= boundary, made.told)  # noqa: B023
            kill(process)
            process = made.exec()
        result = finished(made, process)
        check(made, result, lost=lost_requests(made))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    env = {"NONDET": "1", "MODEL": "par", "STREAM": "1"}
    with desk(tmp_path, "node", env=env, latency_ms=60) as made:
        process, known = made.exec(), None
        until(lambda: made.rows(), made.told)
        for _ in range(4):
            try:
                process.wait(timeout=chance.uniform(0.4, 1.8))
                break
            except subprocess.TimeoutExpired:  # it is still at work: kill one of both
                if chance.random() < 0.5 and made.program() != known:
                    known = made.kill_program(known)
                else:
                    kill(process)
                    process = made.exec()
        check(made, finished(made, process), lost=lost_requests(made))


@pytest.mark.parametrize("decision", ["happened", "did-not-happen", "retry"])
def test_a_runtime_killed_in_a_tool_leaves_one_doubtful_action(tmp_path: Path, decision: str) -> None:
    with desk(tmp_path, "node", env={"NONDET": "1"}, pause_s=1.0) as made:
        process = made.exec()
        until(lambda: [call for call in made.tool_calls() if call["tool"] == "book"], made.told)
        kill(process)
        process = made.exec()
        until(lambda: made.rows(where="state = 'unknown'"), made.told)
        assert [row[1] for row in made.rows(where="state = 'unknown'")] == ["book"]
        assert len([call for call in made.tool_calls() if call["tool"] == "book"]) == 1
        kill(process)
        asyncio.run(settle(made, decision))
        result = finished(made, made.exec())
        booked = [call["argument"] for call in made.tool_calls() if call["tool"] == "book"]
        again = ["flight"] if decision == "retry" else []
        assert booked == ["flight", *again, "hotel"]
        assert str(result["result"]).startswith("FINAL All booked")
        assert not made.rows(where="state IN ('unknown', 'held', 'intended')")


def test_a_client_that_gives_up_and_tries_again_pays_once(tmp_path: Path) -> None:
    with desk(tmp_path, "node", env={"OPENAI_TIMEOUT_MS": "700"}) as made:
        made.fault(fault="hang", times=1, seconds=2.0)
        result = made.result(made.exec())
        check(made, result)
        assert "retry" in made.levels()


# -- helpers
def finished(made: Desk, process) -> dict[str, object]:
    """The result; what became doubtful on the way is decided by what the tools' log says."""

    def over_or_stuck() -> bool:
        return process.poll() is not None or bool(made.rows(where="state = 'unknown'"))

    while True:
        until(over_or_stuck, made.told)
        if process.poll() is not None:
            return made.result(process)
        done = len(made.rows(where="state = 'succeeded' AND name = 'book'"))
        really = sum(call["tool"] == "book" for call in made.tool_calls())
        asyncio.run(settle(made, "happened" if really > done else "retry"))
        until(lambda: not made.rows(where="state = 'unknown'"), made.told)


async def settle(made: Desk, decision: str) -> None:
    async with Runtime.open(made.data, beside=True) as runtime:
        for row in runtime.actions.waiting():
            assert row.state is ActionState.UNKNOWN
            result = (
                {"content": [{"type": "text", "text": "booked as seen by hand"}]}
                if decision == "happened"
                else None
            )
            with contextlib.suppress(ActionUnknownError):  # the run has not taken up the decision yet
                await runtime.actions.settle(row.key, decision, by="test", result=result)
