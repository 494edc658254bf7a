"""kill -9 of real workers: a short form of ``make torture`` in the everyday suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.torture import __main__ as governed

from perdure.testing import torture_actions, torture_governed
from perdure.testing.torture import again, at_random, boundaries


@pytest.mark.parametrize("before", [False, True], ids=["after commit", "before commit"])
async def test_killed_at_every_boundary(tmp_path: Path, before: bool) -> None:
    verdict = await boundaries(tmp_path, before=before, runs=1, report=lambda kills: None)
    assert verdict.is_good, verdict
    assert verdict.kills >= 10


@pytest.mark.parametrize("before", [False, True], ids=["after commit", "before commit"])
async def test_killed_again_and_again(tmp_path: Path, before: bool) -> None:
    verdict = await again(tmp_path, before=before, runs=2, report=lambda kills: None)
    assert verdict.is_good, verdict
    assert verdict.kills >= 5


async def test_killed_at_random(tmp_path: Path) -> None:
    verdict = await at_random(tmp_path, runs=60, seed=1, report=lambda kills: None)
    assert verdict.is_good, verdict
    assert verdict.kills >= 1


@pytest.mark.parametrize("before", [False, True], ids=["after commit", "before commit"])
async def test_actions_killed_at_every_boundary(tmp_path: Path, before: bool) -> None:
    verdict = await torture_actions.boundaries(tmp_path, before=before, report=lambda kills: None)
    assert verdict.is_good, verdict
    assert verdict.kills >= 8, verdict
    assert verdict.doubtful >= 1, verdict  # how many depends on which commits two acts share


@pytest.mark.parametrize("before", [False, True], ids=["after commit", "before commit"])
async def test_a_grant_is_used_once_wherever_the_worker_is_killed(tmp_path: Path, before: bool) -> None:
    verdict = await torture_governed.boundaries(tmp_path, before=before, report=lambda kills: None)
    assert verdict.is_good, verdict
    assert verdict.kills >= 5, verdict
    assert verdict.effects >= 12, verdict


async def test_governed_runs_killed_at_random() -> None:
    outcome = await governed.torture(40, seed=7, report=lambda text: None)
    assert outcome.verdict.is_good, governed.show(outcome)
    assert outcome.tally.kills == 40
    assert outcome.verdict.effects >= 20, governed.show(outcome)
