"""Measure of drift: how much of it is found, and how often there is a false alarm, over seeded traces.

python -m bench.drift [--windows 500]

The traces are synthetic: an agent with two goals, each with its own mix of tools, sizes and gaps. In every kind of drift a
part of a window's actions comes from somewhere else. The figures say what the tests can find, not what real agents do.

The second part is of whole runs, as the runtime compares them: agents whose actions stand for themselves (``even``) and agents of
which every run has a mix of its own (``moody``), which a test that takes actions for independent would call drift.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from perdure.governance import behaviour
from perdure.governance.behaviour import Behaviour
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


RUNS = (50, 200)  # of a baseline: the least that is allowed, and one that is better
ALPHAS = {"when asked": 0.01, "by itself": 0.001}
DRIFTS: dict[
    str, tuple[str, float, float]
] = {  # what is done otherwise, in what share of the runs, how much longer they are
    "none": ("", 0, 1),
    "new-verb": ("export", 0.1, 1),
    "mix": ("note", 0.5, 1),
    "longer": ("", 0, 2),
}


def one_run(chance: Random, *, moody: bool, drift: str) -> Behaviour:
    """What one run did."""
    other, share, longer = DRIFTS[drift]
    weights = [
        chance.gammavariate(weight / 10, 1) + 1e-9 if moody else weight for weight in GOALS["answer"].values()
    ]
    verbs: dict[str, int] = {}
    for tool in chance.choices(list(GOALS["answer"]), weights, k=round(longer * chance.randint(3, 9))):
        verbs[tool] = verbs.get(tool, 0) + 1
    if other and chance.random() < share:
        verbs[other] = verbs.get(other, 0) + 3
    total = sum(verbs.values())
    tokens = round(chance.lognormvariate(*BYTES) * total)
    sums = {"actions": total, "refusals": 0, "tokens": tokens, "usd_micros": tokens * 3}
    return Behaviour(run=str(chance.random()), verbs=verbs, numbers=sums)


def measure_runs(*, windows: int = 500, seed: int = 1) -> dict[str, Any]:
    """The percentage of windows of whole runs in which drift was found; those of ``none`` are false alarms.

    Args:
        windows: of each kind and size; every tenth has a baseline of its own.
        seed: of the traces.
    """
    chance = Random(seed)
    rows: dict[str, Any] = {}
    for moody in (False, True):
        for size in RUNS:
            for window in SIZES[1:]:
                found = {drift: dict.fromkeys(ALPHAS, 0) for drift in DRIFTS}
                for turn in range(windows):
                    if turn % 10 == 0:
                        made = [one_run(chance, moody=moody, drift="none") for _ in range(size)]
                        known = behaviour.freeze("desk", "answer", made, by="bench", at_ms=0)
                    for drift in DRIFTS:
                        seen = [one_run(chance, moody=moody, drift=drift) for _ in range(window)]
                        for name, alpha in ALPHAS.items():
                            report = behaviour.check(known, seen, alpha=alpha)
                            found[drift][name] += report.found == "drift"
                rows[f"{'moody' if moody else 'even'}, baseline {size}, window {window}"] = {
                    drift: {name: round(100 * count / windows, 1) for name, count in counts.items()}
                    for drift, counts in found.items()
                }
    return {"windows_of_each": windows, "percent": rows}


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
    found = {"actions": measure(windows=chosen.windows), "runs": measure_runs(windows=chosen.windows)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
