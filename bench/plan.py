"""How much is measured: the full plan and the quick one, which is for trying out and not for quoting."""

from __future__ import annotations

from dataclasses import dataclass

CHILD_S_MAX = 1_500  # one measurement in one process; longer is a hang


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds, time boxes (seconds) and sizes of each measure."""

    name: str
    rounds: int
    latency_s: float
    throughput_s: float
    parked_runs: int
    recovery_runs: tuple[int, ...]
    perdure_turns: tuple[int, ...]
    langgraph_turns: tuple[int, ...]
    gateway_s: float
    gateway_calls: int


FULL = Plan(
    name="full",
    rounds=3,
    latency_s=3,
    throughput_s=6,
    parked_runs=100_000,
    recovery_runs=(2_500, 5_000, 10_000),
    perdure_turns=(1_000, 5_000, 10_000),
    langgraph_turns=(500, 1_000, 2_000),
    gateway_s=4,
    gateway_calls=1_000,
)
QUICK = Plan(
    name="quick",
    rounds=1,
    latency_s=1,
    throughput_s=2,
    parked_runs=5_000,
    recovery_runs=(500, 1_000, 2_000),
    perdure_turns=(200, 1_000, 2_000),
    langgraph_turns=(100, 200, 400),
    gateway_s=1,
    gateway_calls=200,
)
