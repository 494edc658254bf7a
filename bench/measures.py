"""Conducts the measures: rounds of all subjects in turn, then what is measured once."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import processes
from bench.plan import Plan
from bench.servers import cache

Say = Callable[[str], None]
Result = dict[str, Any]


def all_measures(plan: Plan, names: list[str], say: Say, *, with_gateway: bool) -> Result:
    """Everything that ``plan`` asks for, of the subjects called ``names``, and of the gateway."""
    results: Result = {"plan": plan.name, "machine": machine()}
    results["rounds"] = rounds(plan, names, say) if names else []
    if "perdure" in names:
        results["parked"] = parked(plan, say)
        results["recovery"] = [recovery(runs, say) for runs in plan.recovery_runs]
    turns = {"perdure": plan.perdure_turns, "langgraph": plan.langgraph_turns}
    results["storage"] = {name: storage(name, points, say) for name, points in turns.items() if name in names}
    if with_gateway:
        results["gateway"] = gateway(plan, say)
    return results


def rounds(plan: Plan, names: list[str], say: Say) -> list[dict[str, Result]]:
    """Latency and throughput: A B C, A B C, …, so that a slow minute of the machine hits all alike."""
    done: list[dict[str, Result]] = []
    for number in range(1, plan.rounds + 1):
        row: dict[str, Result] = {}
        for name in names:
            if any("error" in earlier[name] for earlier in done):
                row[name] = next(earlier[name] for earlier in done if "error" in earlier[name])
                continue
            say(f"round {number} of {plan.rounds}: {name}")
            with processes.folder() as path:
                options = {
                    "directory": str(path),
                    "latency_s": plan.latency_s,
                    "throughput_s": plan.throughput_s,
                }
                row[name] = processes.measure(name, "speed", options, timeout_s=300)
        done.append(row)
    return done


def parked(plan: Plan, say: Say) -> Result:
    """Memory of parked runs and the time to wake one."""
    say(f"{plan.parked_runs:,} parked runs")
    with processes.folder() as path:
        return processes.measure("perdure", "parked", {"directory": str(path), "runs": plan.parked_runs})


def recovery(runs: int, say: Say) -> Result:
    """Kill a process in the middle of ``runs`` runs, start another."""
    say(f"kill -9 with {runs:,} unfinished runs")
    with processes.folder() as path:
        options = {"directory": str(path), "runs": runs}
        made = processes.measure("perdure", "recovery", {**options, "phase": "make"})
        if "killed" not in made:
            return {"error": made.get("error", "the first process was not killed"), "runs": runs}
        began = time.monotonic()
        result = processes.measure("perdure", "recovery", {**options, "phase": "resume", "began": began})
        return {"runs": runs, **result}


def storage(name: str, points: tuple[int, ...], say: Say) -> Result:
    """The database of one long session."""
    say(f"a session of {points[-1]:,} turns: {name}")
    with processes.folder() as path:
        return processes.measure(name, "storage", {"directory": str(path), "points": list(points)})


def gateway(plan: Plan, say: Say) -> Result:
    """The gateway beside a bare proxy, its replays and a kill; rounds of its own, for each has three processes."""
    say(f"gateway and bare proxy, {plan.rounds} round(s)")
    with processes.folder() as path:
        options = {
            "directory": str(path),
            "rounds": plan.rounds,
            "seconds": plan.gateway_s,
            "calls": plan.gateway_calls,
        }
        return processes.measure("perdure", "gateway", options)


def machine() -> Result:
    """What the figures depend on."""
    return {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": os.getloadavg()[0],
        "filesystem": _filesystem(cache()),
    }


def _filesystem(path: Path) -> str:
    """The type of the file system of ``path``: on tmpfs a commit costs nothing and no figure means anything."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split(" ")
        if (path.resolve() == Path(mount) or Path(mount) in path.resolve().parents) and len(mount) >= len(
            best
        ):
            best, kind = mount, found
    return kind
