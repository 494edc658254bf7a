"""Measure of drift: how much of it is found, and how often there is a false alarm, over seeded traces.

python -m bench.drift [--windows 500]

The traces are synthetic: an agent with two goals, each with its own mix of tools, sizes and gaps. In every kind of drift a
part of a window's actions comes from somewhere else. The figures say what the tests can find, not what real agents do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from perdure.governance.drift import Baseline, Limits, Sample, compare, frozen

BASELINE = 500
SMALL_BASELINE = 100  # the least that is allowed: tools that are seldom used are missing in it
SIZES = (10, 20, 50)
GOALS: dict[str, dict[str, float]] = {
    "answer": {"search": 40, "read": 35, "note": 15, "reply": 8, "ask": 2},
    "refund": {"look_up": 35, "read": 25, "refund": 20, "reply": 19, "escalate": 1},
}
BYTES, GAP_MS = (5.0, 0.6), (7.0, 0.8)  # of log-normal distributions
KINDS: dict[str, float] = {  # what share of the actions of a window is another's
    "new-verb": 0.2,
    "other-goal": 0.5,
    "mix": 0.5,
    "sizes": 0.5,
    "gaps": 0.5,
}


def normal(chance: Random, goal: str) -> Sample:
    """One action as it should be."""
    mix = GOALS[goal]
    return _sample(chance, chance.choices(list(mix), list(mix.values()))[0])


def drifted(chance: Random, goal: str, kind: str) -> Sample:
    """One action that is not."""
    match kind:
        case "new-verb":
            return _sample(chance, "export")
        case "other-goal":
            return normal(chance, "refund" if goal == "answer" else "answer")
        case "mix":  # tools that it has, in another proportion: the rarer ones
            return _sample(
                chance, sorted(GOALS[goal], key=lambda name: GOALS[goal][name])[chance.randrange(2)]
            )
        case "sizes":
            return _sample(chance, normal(chance, goal).names["tool"], bytes_factor=4)
        case _:
            return _sample(chance, normal(chance, goal).names["tool"], gap_factor=0.1)


def window(chance: Random, goal: str, size: int, kind: str = "") -> list[Sample]:
    """A window; with a kind of drift, at least one of its actions is drifted."""
    made = [normal(chance, goal) for _ in range(size)]
    if kind:
        places = [place for place in range(size) if chance.random() < KINDS[kind]] or [chance.randrange(size)]
        for place in places:
            made[place] = drifted(chance, goal, kind)
    return made


def measure(*, windows: int = 500, seed: int = 1) -> dict[str, Any]:
    """Detection and false alarms, in percent of windows, for each size; with all tests and with divergence alone.

    Args:
        windows: of each goal, kind and size.
        seed: of the traces; the same seed gives the same figures.
    """
    chance = Random(seed)
    baselines = {goal: _baseline(chance, goal, BASELINE) for goal in GOALS}
    rows: dict[str, Any] = {}
    compared, spent_s = 0, 0.0
    for size in SIZES:
        found: dict[str, Any] = {}
        for kind in ("", *KINDS):
            made = [
                (baselines[goal], window(chance, goal, size, kind)) for goal in GOALS for _ in range(windows)
            ]
            began = time.perf_counter()
            everything = _share(made, _is_drift)
            spent_s += time.perf_counter() - began
            compared += len(made)
            found[kind or "false_alarms"] = {"all": everything, "divergence_alone": _share(made, _diverges)}
        small = [
            (goal, _baseline(chance, goal, SMALL_BASELINE)) for goal in GOALS for _ in range(windows // 5)
        ]
        made = [(baseline, window(chance, goal, size)) for goal, baseline in small for _ in range(5)]
        found["false_alarms_of_small_baselines"] = {
            "all": _share(made, _is_drift),
            "divergence_alone": _share(made, _diverges),
        }
        rows[str(size)] = found
    return {
        "baseline": BASELINE,
        "small_baseline": SMALL_BASELINE,
        "windows_of_each": windows * len(GOALS),
        "percent": rows,
        "us_of_a_comparison": round(spent_s / compared * 1e6),
    }


def _baseline(chance: Random, goal: str, size: int) -> Baseline:
    return frozen("desk", goal, [normal(chance, goal) for _ in range(size)])


def _sample(chance: Random, tool: str, *, bytes_factor: float = 1, gap_factor: float = 1) -> Sample:
    size = round(chance.lognormvariate(*BYTES) * bytes_factor)
    gap_ms = round(chance.lognormvariate(*GAP_MS) * gap_factor)
    return Sample(names={"tool": tool}, numbers={"arguments_bytes": size, "gap_ms": gap_ms})


def _share(
    made: list[tuple[Baseline, list[Sample]]], judge: Callable[[Baseline, list[Sample]], bool]
) -> float:
    return round(100 * sum(judge(baseline, samples) for baseline, samples in made) / len(made), 1)


def _is_drift(baseline: Baseline, samples: list[Sample]) -> bool:
    return compare(baseline, samples).found == "drift"


def _diverges(baseline: Baseline, samples: list[Sample]) -> bool:
    report = compare(baseline, samples, limits=Limits(novel_min=len(samples) + 1))
    return any(feature.is_drift for feature in report.features if feature.test == "divergence")


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=500)
    chosen = parser.parse_args()
    print(json.dumps(measure(windows=chosen.windows), indent=1))


if __name__ == "__main__":
    main()
