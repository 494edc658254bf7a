"""Torture of actions with real processes: kill -9 around every commit of a run that uses a real opaque tool.

The tool appends a line under its idempotency key to a file. Afterwards the file is compared with the ledger: one line for
each action that succeeded, none twice without a decision ``retry``, and what is in doubt is listed, not repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure import ActionNotDoneError, Run, Runtime, agent, current_use, tool
from perdure.core.actions import ActionRecord, ActionState
from perdure.runtime.outside import World, reach
from perdure.testing.torture import LIVES_MAX, SETTINGS, SuicidalStore, append_line

DECISIONS = ("happened", "did-not-happen", "retry")
PATIENCE_S = 60.0  # how long a life may take to come to its end, or to where somebody must decide


@tool
async def charge(log: str, n: int) -> int:
    """Leaves a line for each time that it really runs."""
    append_line(log, current_use().key)
    await asyncio.sleep(0)
    return n


@agent("shopper", tools=[charge])
async def shopper(run: Run, log: str) -> list[int | None]:
    """One action, then two side by side, then one."""
    done = [await _charge(run, log, 0)]
    done += await run.gather(*(_charge(run, log, n) for n in (1, 2)))
    return [*done, await _charge(run, log, 3)]


async def _charge(run: Run, log: str, n: int) -> int | None:
    try:
        return int(await run.act(charge, log=log, n=n))
    except ActionNotDoneError:
        return None


AGENTS = [shopper]


@dataclass
class ActionVerdict:
    """What a round came to. The first four must be 0.

    Attributes:
        lost_runs: runs that did not come to their end.
        unproven: actions that succeeded without a line in the log.
        repeated: lines too many, for which nobody decided.
        unlisted: opaque actions that were neither ended nor listed as doubtful when a later life had come to rest.
        doubtful: actions that somebody had to decide about.
        effects: lines.
        kills: deaths.
    """

    lost_runs: int = 0
    unproven: int = 0
    repeated: int = 0
    unlisted: int = 0
    doubtful: int = 0
    effects: int = 0
    kills: int = 0

    def plus(self, other: ActionVerdict) -> ActionVerdict:
        """Both together."""
        return ActionVerdict(**{key: value + getattr(other, key) for key, value in asdict(self).items()})

    @property
    def is_good(self) -> bool:
        """Nothing happened twice and nothing was hidden."""
        return not (self.lost_runs or self.unproven or self.repeated or self.unlisted)


async def live(data: Path, at: int, *, before: bool) -> None:
    """A life that ends in its own death at commit ``at``, or when its runs have ended or wait for a decision."""
    store = SuicidalStore(data / "perdure.db", at=at, before=before)
    agents = {item.name: item for item in AGENTS}
    try:
        reached = reach(World(), agents, folder=data, settings=SETTINGS, telemetry=None)
        async with Runtime.over(
            store, agents, SETTINGS, telemetry=None, drive=True, reached=reached
        ) as runtime:
            await rest(runtime)
    finally:
        await store.close()


async def rest(runtime: Runtime) -> list[ActionRecord]:
    """Wait until every run has ended or waits for somebody; what it is that waits."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        waiting = runtime.actions.waiting()
        held_up = {row.run for row in waiting}
        unfinished = runtime.runs(status="unfinished", limit=100)
        if all(row.id in held_up and row.status == "waiting" for row in unfinished):
            return waiting
        await asyncio.sleep(0.005)
    raise TimeoutError


async def boundaries(folder: Path, *, before: bool, report: Callable[[int], None]) -> ActionVerdict:
    """The same run killed at commit 1, in a new folder at commit 2, 3 ... until it ends before its death."""
    total = ActionVerdict()
    for at in range(1, LIVES_MAX):
        home = folder / str(at)
        home.mkdir()
        data, log = home / "data", home / "effects.log"
        async with Runtime.open(data, agents=AGENTS, settings=SETTINGS, beside=True) as runtime:
            run = (await runtime.start("shopper", str(log), idempotency_key="one")).id
        worker = _worker(data, at, before=before)
        killed = await asyncio.to_thread(worker.wait, PATIENCE_S) != 0
        report(at)
        total = total.plus(await _afterwards(data, log, run, DECISIONS[at % 3], kills=int(killed)))
        if not killed:
            break
    return total


def _worker(data: Path, at: int, *, before: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "perdure.testing.torture_actions", str(data), "--at", str(at)]
    command += ["--before"] if before else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _afterwards(data: Path, log: Path, run: str, decision: Any, *, kills: int) -> ActionVerdict:
    """A life without a death: it comes to rest, somebody decides, it comes to its end. Then compare."""
    verdict = ActionVerdict(kills=kills)
    retries: Counter[str] = Counter()
    async with Runtime.open(data, agents=AGENTS, settings=SETTINGS) as runtime:
        while waiting := await rest(runtime):
            rows = runtime.actions.rows(run=run)
            verdict.unlisted += sum(row.state is ActionState.INTENDED for row in rows)
            before = effects_of(log)
            for row in waiting:
                verdict.doubtful += 1
                verdict.repeated += max(0, before[row.key] - 1 - retries[row.key])
                retries[row.key] += decision == "retry"
                result = {"value": -1} if decision == "happened" else None
                await runtime.actions.settle(row.key, decision, by="judge", result=result)
            await taken_up(runtime, waiting)
        handle = runtime.run(run)
        verdict.lost_runs += handle.status != "completed"
        effects = effects_of(log)
        rows = runtime.actions.rows(run=run)
    keys = {row.key for row in rows}
    verdict.effects = effects.total()
    verdict.repeated += sum(count for key, count in effects.items() if key not in keys)
    for row in rows:
        verdict.repeated += max(0, effects[row.key] - 1 - retries[row.key])
        by_tool = row.state is ActionState.SUCCEEDED and row.key not in retries
        verdict.unproven += by_tool and decision != "happened" and effects[row.key] != 1
    return verdict


async def taken_up(runtime: Runtime, decided: list[ActionRecord]) -> None:
    """Wait until the run has taken up what was decided."""
    end = time.monotonic() + PATIENCE_S
    keys = {row.key for row in decided}
    while time.monotonic() < end:
        if not any(row.key in keys for row in runtime.actions.waiting()):
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


def effects_of(log: Path) -> Counter[str]:
    """How often each action really ran."""
    return Counter(log.read_text().split()) if log.exists() else Counter()


async def torture(rounds: int, report: Callable[[str], None]) -> dict[str, ActionVerdict]:
    """All kinds of rounds; verdicts added up by kind."""
    from perdure.testing import torture_governed  # which needs this module

    total: dict[str, ActionVerdict] = {}
    for number in range(rounds):
        for kind, before, bounds in (
            ("actions, after commit", False, boundaries),
            ("actions, before commit", True, boundaries),
            ("grants, after commit", False, torture_governed.boundaries),
            ("grants, before commit", True, torture_governed.boundaries),
        ):

            def tell(at: int, kind: str = kind, number: int = number) -> None:
                report(f"round {number + 1} of {rounds}, {kind}: {at} kills")

            with tempfile.TemporaryDirectory(prefix="perdure-torture-") as name:
                verdict = await bounds(Path(name), before=before, report=tell)
            total[kind] = total.get(kind, ActionVerdict()).plus(verdict)
    return total


def main() -> int:
    """One life of a worker; :mod:`perdure.testing.torture` starts it."""
    parser = argparse.ArgumentParser(prog="perdure.testing.torture_actions")
    parser.add_argument("data", type=Path)
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--before", action="store_true")
    options = parser.parse_args()
    asyncio.run(live(options.data, options.at, before=options.before))
    return 0


if __name__ == "__main__":
    sys.exit(main())
