"""Simulated worlds hold, and are the same each time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.testing.simulate import live

SEEDS = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
#: The least fault plans with which a bug showed itself.
PLANS = {
    "claim committed, not answered": (15, ["store unknown#71"]),
    "timer recorded before its patch": (
        240,
        ["store slow#8", "store full#12", "store full#14", "store lost#23", "store slow#68", "store slow#173",
         "store slow#198"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [*range(25)])
def test_a_world_holds(seed: int) -> None:
    world, error = live(seed)
    assert error is None, error
    assert world.disk.commits


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bug_that_was_found_stays_away(seed: int) -> None:
    assert live(seed)[1] is None


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_showed_a_bug_holds(name: str) -> None:
    seed, plan = PLANS[name]
    assert live(seed, only=frozenset(plan))[1] is None


def test_a_seed_is_the_same_world_each_time() -> None:
    assert live(3)[0].trace == live(3)[0].trace
    assert live(3)[0].hash() != live(4)[0].hash()


def test_a_seed_is_the_same_world_under_another_hash_seed() -> None:
    seeds = (0, 3, 6)
    found = {}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [
            sys.executable,
            "-m",
            "perdure.testing.simulate",
            "--first",
            "0",
            "--seeds",
            "7",
            "--hashes",
        ]
        found[hash_seed] = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.split("\n")
    assert found["1"] == found["2"]
    for seed in seeds:
        assert f"{seed} {live(seed)[0].hash()}" in found["1"]
