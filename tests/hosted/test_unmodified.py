"""Unmodified programs survive ``kill -9`` of themselves and of the runtime: nothing is paid for twice, nothing is done twice.

The provider mints random ids and words for each answer, so only the journal can give an answer again. Every call boundary is
tried with the quickest program; the others are killed at some.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from perdure import Runtime
from perdure.core.actions import ActionState
from perdure.core.errors import ActionUnknownError
from tests.hosted.driver import Desk, desk, kill, until

FRAMEWORKS = ("pydantic_ai", "openai_agents", "langgraph", "node")
#: How many results of tools each model request of the script holds, uses of tools, bookings.
IDEAL = {"seq": ([0, 1, 2, 3, 4], 4, 2), "par": ([0, 1, 3, 4], 4, 1)}
PARALLEL = 2  # lookups that one kill of the runtime may hit
LATENCY_MS = 60  # so that a kill at a boundary comes before the next answer
HOUR_S = 3_600.0  # a pause that only a kill ends
SEEN = {"content": [{"type": "text", "text": "booked as seen by hand"}]}
pytestmark = pytest.mark.timeout(280)


def check(made: Desk, result: dict[str, object], *, kills: int = 0) -> None:
    """The counts are the ideal ones, and a pure replay gives the same answer without asking anybody.

    ``kills`` is how often the runtime was killed: each may have hit one model request under way, which is asked for again,
    and lookups, which may be repeated. Nothing else may. Repetitions are read from the provider's log, not from our ledger.
    """
    made.rows()  # learns the id of the run
    held, uses, bookings = IDEAL[made.env.get("MODEL", "seq")]
    asked = [call["results"] for call in made.provider_calls()]
    repeated = len(asked) - len(held)
    assert sorted(set(asked)) == held, made.told()
    # A request is in the ledger before it is sent, so one that was lost need not have reached the provider.
    assert repeated <= min(kills, len(made.rows(where="state = 'lost'"))), made.told()
    executed = [call["tool"] for call in made.tool_calls()]
    assert executed.count("book") == bookings, made.told()
    lookups = uses - bookings
    assert lookups <= executed.count("lookup") <= lookups + PARALLEL * kills, made.told()
    assert result["calls"] == len(held) + uses
    replayed = made.result(made.exec("--replay", made.run))
    assert replayed["result"] == result["result"]
    assert str(result["result"]).startswith("FINAL All booked, reference ")
    assert replayed["replayed"] == len(held) + uses
    assert len(made.provider_calls()) == len(asked)
    assert len(made.tool_calls()) == len(executed)


VARIANTS = {
    "pydantic_ai": {"NONDET": "1", "STREAM": "1"},
    "openai_agents": {"NONDET": "1"},
    "langgraph": {"NONDET": "1", "MODEL": "par"},
    "node": {"NONDET": "1"},
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_program_goes_on(tmp_path: Path, framework: str) -> None:
    boundaries = range(9) if framework == "node" else (3, 6)
    with desk(tmp_path, framework, env=VARIANTS[framework], latency_ms=LATENCY_MS) as made:
        process, known = made.exec(), None
        for boundary in boundaries:
            reach(made, boundary)
            known = made.kill_program(known)
        check(made, made.result(process))
        assert made.levels() & {"causal", "masked", "ordinal"}, "the prompts differ, so not all can be exact"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_runtime_goes_on(tmp_path: Path, framework: str) -> None:
    boundaries = range(9) if framework == "node" else (4,)
    env = VARIANTS[framework] | ({} if framework == "node" else {"STREAM": "1"})
    with desk(tmp_path, framework, env=env, latency_ms=LATENCY_MS) as made:
        process = made.exec()
        for boundary in boundaries:
            reach(made, boundary)
            kill(process)
            process = made.exec()
        check(made, finished(made, process), kills=len(boundaries))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    env = {"NONDET": "1", "MODEL": "par", "STREAM": "1"}
    victims = ["program", "runtime", chance.choice(["program", "runtime"])]  # both, whatever the seed
    chance.shuffle(victims)
    with desk(tmp_path, "node", env=env, latency_ms=LATENCY_MS) as made:
        process, known = made.exec(), None
        for victim, boundary in zip(victims, sorted(chance.sample(range(7), len(victims))), strict=True):
            reach(made, boundary)
            time.sleep(chance.uniform(0, LATENCY_MS / 1000))  # anywhere in the call that comes next
            if victim == "program":
                known = made.kill_program(known)
            else:
                known = made.program()  # dies with it
                kill(process)
                process = made.exec()
        check(made, finished(made, process), kills=victims.count("runtime"))


@pytest.mark.parametrize(
    ("where", "decision", "really"),
    [
        ("after", "happened", ["flight", "hotel"]),
        ("before", "did-not-happen", ["hotel"]),
        ("before", "retry", ["flight", "hotel"]),
        ("after", "retry", ["flight", "flight", "hotel"]),  # only because a person said so
    ],
)
def test_a_runtime_killed_in_a_tool_leaves_one_doubtful_action(
    tmp_path: Path, where: str, decision: str, really: list[str]
) -> None:
    pauses = {"pause_s": HOUR_S} if where == "after" else {"pause_before_s": HOUR_S}
    with desk(tmp_path, "node", env={"NONDET": "1"}, **pauses) as made:
        process = made.exec()
        until(lambda: len(booked(made)) if where == "after" else made.asked(), made.told)
        kill(process)
        process = made.exec()
        [(call, name, _)] = until(lambda: made.rows(where="state = 'unknown'"), made.told)
        assert name == "book"
        assert (booked(made), made.asked()) == (["flight"] if where == "after" else [], 1), (
            "nothing is repeated"
        )
        kill(process)
        made.settle(call, decision, *(["--result", json.dumps(SEEN)] if decision == "happened" else []))
        result = finished(made, made.exec())
        assert booked(made) == really
        assert str(result["result"]).startswith("FINAL All booked")
        assert not made.rows(where="state IN ('unknown', 'held', 'intended')")


def test_a_client_that_gives_up_and_tries_again_pays_once(tmp_path: Path) -> None:
    with desk(tmp_path, "node", env={"OPENAI_TIMEOUT_MS": "700"}) as made:
        made.fault(fault="hang", times=1, seconds=2.0)
        result = made.result(made.exec())
        check(made, result)
        assert "retry" in made.levels()


# -- helpers
def reach(made: Desk, boundary: int) -> None:
    """Wait until a program runs and so many calls have ended; what a kill left doubtful on the way is decided."""

    def reached() -> bool:
        settle_doubtful(made)  # else a boundary behind a doubtful action would never come
        return made.program() is not None and made.ended() >= boundary

    until(reached, made.told)


def finished(made: Desk, process: subprocess.Popen[str]) -> dict[str, object]:
    """The result; what became doubtful on the way is decided by what the tools' log says."""

    def is_over() -> bool:
        settle_doubtful(made)
        return process.poll() is not None

    until(is_over, made.told)
    return made.result(process)


def booked(made: Desk) -> list[str]:
    """What was really booked."""
    return [call["argument"] for call in made.tool_calls() if call["tool"] == "book"]


def settle_doubtful(made: Desk) -> None:
    """Decide about doubtful actions by what the tools' log says."""
    if made.rows(where="state = 'unknown'"):
        done = len(made.rows(where="state = 'succeeded' AND name = 'book'"))
        asyncio.run(settle(made, "happened" if len(booked(made)) > done else "retry"))


async def settle(made: Desk, decision: str) -> None:
    async with Runtime.open(made.data, beside=True) as runtime:
        for row in runtime.actions.waiting():
            assert row.state is ActionState.UNKNOWN
            result = SEEN if decision == "happened" else None
            with contextlib.suppress(ActionUnknownError):  # the run has not taken up the decision yet
                await runtime.actions.settle(row.key, decision, by="test", result=result)
