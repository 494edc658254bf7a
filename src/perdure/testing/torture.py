"""Torture with real processes: kill -9 real workers on a real file, then count what was lost or done twice.

Three ways: once at every boundary (the worker kills itself right after, or right before, commit N, for every N), again
and again at the first commits of each life, and from outside when a random number of steps has run. Each step appends a line to a log of its own (``O_APPEND``, one write), so that what the
journal says is compared with what really happened.

``python -m perdure.testing.torture [--rounds N] [--runs N] [--json]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from perdure import Run, Runtime, Settings, agent, step
from perdure.core import entries as e
from perdure.ports import Transaction
from perdure.stores.sqlite import SqliteStore
from perdure.stores.sqlite.store import _Answer, _Work

STEPS = 6
MESSAGES = 2
SETTINGS = Settings(
    poll_ms=20, drain_ms=200, recoveries_max=1_000_000
)  # every crash here is ours, not the run's
LIVES_MAX = 400  # lives of a worker in one round: more means that it does not get on


# -- the workload -------------------------------------------------------------------------------
@step
async def work(log: str, run: str, number: int) -> str:
    """Logs that it ran, then yields, so that kills fall between the effect and its record."""
    token = f"{run}/{number}"
    append_line(log, token)
    await asyncio.sleep(0)
    return token


@agent("tortured")
async def tortured(run: Run, log: str) -> dict[str, Any]:
    """Steps one by one and in parallel, a timer, messages, a child."""
    done = [await run.step(work, log, run.id, number) for number in range(2)]
    done += await run.gather(*(run.step(work, log, run.id, number) for number in range(2, STEPS)))
    await run.sleep(0.01)
    notes = []
    for _ in range(MESSAGES):
        message = await run.receive("note")
        notes.append(message.body if message else None)
    child = await run.spawn("tortured-child", log)
    return {"done": done, "notes": notes, "child": await child.result()}


@agent("tortured-child")
async def tortured_child(run: Run, log: str) -> str:
    """One step."""
    return await run.step(work, log, run.id, 0)


AGENTS = [tortured, tortured_child]


def append_line(path: str, line: str) -> None:
    """Append a line to a log, in one write that a kill cannot tear."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


# -- a worker's life ----------------------------------------------------------------------------
class SuicidalStore(SqliteStore):
    """Kills its own process with SIGKILL at the commit number that it is told, before or after it is durable."""

    def __init__(self, path: Path, *, at: int, before: bool) -> None:
        self._at = at
        self._before = before
        self._commits = 0
        super().__init__(path)

    def _commit(self, works: list[_Work]) -> list[_Answer]:
        self._commits += 1
        dies = self._at > 0 and self._commits >= self._at
        if dies and self._before:
            works = [*works, (_die, self._loop.create_future())]
        answers = super()._commit(works)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers


def _die(tx: Transaction) -> None:  # noqa: ARG001 - the last work of a transaction that is never committed
    os.kill(os.getpid(), signal.SIGKILL)


async def live(data: Path, at: int, *, before: bool, until_s: float) -> bool:
    """Drive whatever is there, until nothing is left to do; whether that came."""
    store = SuicidalStore(data / "perdure.db", at=at, before=before)
    try:
        async with Runtime.over(
            store, {item.name: item for item in AGENTS}, SETTINGS, telemetry=None, drive=True
        ) as runtime:
            end = time.monotonic() + until_s
            while time.monotonic() < end:
                if not runtime.runs(status="unfinished", limit=1):
                    return True
                await asyncio.sleep(0.01)
        return False
    finally:
        await store.close()


# -- the judge ------------------------------------------------------------------------------------
@dataclass
class Verdict:
    """What a round came to. The first three must be 0."""

    lost_runs: int = 0
    lost_messages: int = 0
    repeated_recorded_steps: int = 0
    repeated_unrecorded_steps: int = 0
    runs: int = 0
    steps: int = 0
    kills: int = 0

    def plus(self, other: Verdict) -> Verdict:
        """Both together."""
        return Verdict(**{key: value + getattr(other, key) for key, value in asdict(self).items()})

    @property
    def is_good(self) -> bool:
        """Nothing was lost and nothing recorded was repeated."""
        return not (self.lost_runs or self.lost_messages or self.repeated_recorded_steps)


async def accept(data: Path, log: Path, runs: int) -> list[str]:
    """Start the runs and send their messages, from a process that is not killed: all of this is acknowledged."""
    async with Runtime.open(data, agents=AGENTS, settings=SETTINGS, beside=True) as runtime:
        ids = []
        for number in range(runs):
            handle = await runtime.start("tortured", str(log), idempotency_key=f"run-{number}")
            ids.append(handle.id)
            for note in range(MESSAGES):
                await handle.send("note", note, key=f"note-{note}")
        return ids


class Witness:
    """Looks at the log and the journals between two lives: what is recorded now may never run again."""

    def __init__(self, data: Path, log: Path) -> None:
        self._data = data
        self._log = log
        self._recorded: dict[str, int] = {}
        self.repeated = 0

    async def look(self) -> None:
        """Compare with the last look."""
        executed = self.executed()
        self.repeated += sum(1 for token, count in self._recorded.items() if executed[token] > count)
        async with Runtime.open(self._data, settings=SETTINGS, beside=True) as runtime:
            for row in runtime.runs(limit=100_000):
                for entry in runtime.run(row.id).journal():
                    if isinstance(entry, e.StepCompleted):
                        token = json.loads(bytes(entry.result.inline))
                        self._recorded[token] = executed[token]

    def executed(self) -> Counter[str]:
        """How often each step ran."""
        return Counter(self._log.read_text().split()) if self._log.exists() else Counter()


async def judge(data: Path, ids: list[str], witness: Witness, kills: int) -> Verdict:
    """Compare what was accepted with what came of it."""
    await witness.look()
    executed = witness.executed()
    verdict = Verdict(runs=len(ids), kills=kills, repeated_recorded_steps=witness.repeated)
    async with Runtime.open(data, settings=SETTINGS, beside=True) as runtime:
        for name in ids:
            try:
                result = await runtime.run(name).result(0.5)
            except (TimeoutError, Exception):  # noqa: BLE001 - any end but a result is a loss
                verdict.lost_runs += 1
                continue
            wanted = [f"{name}/{number}" for number in range(STEPS)]
            verdict.lost_runs += result["done"] != wanted or not result["child"]
            verdict.lost_messages += MESSAGES - len([n for n in result["notes"] if n in range(MESSAGES)])
            verdict.lost_messages += result["notes"] != sorted(result["notes"])
    verdict.steps = len(executed)
    verdict.repeated_unrecorded_steps = sum(executed.values()) - len(executed) - witness.repeated
    return verdict


# -- rounds -----------------------------------------------------------------------------------------
def _worker(data: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "perdure.testing.torture", "--worker", str(data), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def boundaries(folder: Path, *, before: bool, runs: int, report: Callable[[int], None]) -> Verdict:
    """Every boundary: the same work killed at commit 1, in a new folder at commit 2, 3 ... until none is left.

    After the one kill a second worker goes on by itself.
    """
    total = Verdict()
    for at in range(1, LIVES_MAX):
        home = folder / str(at)
        home.mkdir()
        data, log = home / "data", home / "steps.log"
        ids = await accept(data, log, runs)
        witness = Witness(data, log)
        worker = _worker(data, "--at", str(at), *(["--before"] if before else []))
        killed = await asyncio.to_thread(worker.wait, 120) != 0
        if killed:
            report(at)
            await witness.look()
            await asyncio.to_thread(_worker(data).wait, 120)
        total = total.plus(await judge(data, ids, witness, int(killed)))
        if not killed:
            break
    return total


async def again(folder: Path, *, before: bool, runs: int, report: Callable[[int], None]) -> Verdict:
    """Kill each life at one of its first commits, again and again, until a life ends by itself."""
    data, log = folder / "data", folder / "steps.log"
    ids = await accept(data, log, runs)
    witness = Witness(data, log)
    kills = 0
    for life in range(1, LIVES_MAX):
        # A life that dies at its first commit never gets on: let it live a little longer each time.
        at = 2 + life % 5 if before else 1 + life % 5
        worker = _worker(data, "--at", str(at), *(["--before"] if before else []))
        code = await asyncio.to_thread(worker.wait, 120)
        if code == 0:
            break
        kills += 1
        report(kills)
        await witness.look()
    return await judge(data, ids, witness, kills)


async def at_random(folder: Path, *, runs: int, seed: int, report: Callable[[int], None]) -> Verdict:
    """Kill a worker from outside when it has run a random number of steps, until one ends by itself."""
    chance = random.Random(seed)
    data, log = folder / "data", folder / "steps.log"
    ids = await accept(data, log, runs)
    witness = Witness(data, log)
    kills = 0
    for _ in range(LIVES_MAX):
        goal = log.stat().st_size + chance.randint(1, runs * STEPS) * 10 if log.exists() else 1
        worker = _worker(data)
        while worker.poll() is None and (not log.exists() or log.stat().st_size < goal):
            await asyncio.sleep(0.002)
        await asyncio.sleep(chance.uniform(0, 0.02))
        if worker.poll() is None:
            worker.kill()
        if await asyncio.to_thread(worker.wait) == 0:
            break
        kills += 1
        report(kills)
        await witness.look()
    return await judge(data, ids, witness, kills)


async def torture(rounds: int, runs: int, report: Callable[[str], None]) -> dict[str, Verdict]:
    """All kinds of rounds; verdicts added up by kind."""
    few = max(1, runs // 4)  # where a few commits are a life of their own
    kinds: dict[str, Callable[..., Awaitable[Verdict]]] = {
        "after each commit": partial(boundaries, before=False, runs=1),
        "before each commit": partial(boundaries, before=True, runs=1),
        "after, again and again": partial(again, before=False, runs=few),
        "before, again and again": partial(again, before=True, runs=few),
        "at random": partial(at_random, runs=runs * 10),
    }
    total: dict[str, Verdict] = {}
    for number in range(rounds):
        for kind, work in kinds.items():
            with tempfile.TemporaryDirectory(prefix="perdure-torture-") as name:

                def tell(kills: int, kind: str = kind, number: int = number) -> None:
                    report(f"round {number + 1} of {rounds}, {kind}: {kills} kills")

                options = {"seed": number} if kind == "at random" else {}
                verdict = await work(Path(name), report=tell, **options)
            total[kind] = total.get(kind, Verdict()).plus(verdict)
    return total


def main() -> int:
    """The command; 0 if nothing was lost and nothing recorded was repeated."""
    parser = argparse.ArgumentParser(prog="perdure.testing.torture", description="kill -9 real workers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--before", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return 0 if asyncio.run(live(options.worker, options.at, before=options.before, until_s=100)) else 1

    def report(line: str) -> None:
        if not options.json and sys.stderr.isatty():
            print(f"\r{line}    ", end="", file=sys.stderr, flush=True)

    from perdure.testing import torture_actions  # which needs this module

    found: dict[str, Any] = dict(asyncio.run(torture(options.rounds, options.runs, report)))
    acted: dict[str, Any] = dict(asyncio.run(torture_actions.torture(options.rounds, report)))
    if options.json:
        print(json.dumps({kind: asdict(verdict) for kind, verdict in {**found, **acted}.items()}))
    else:
        _print_table(found)
        _print_table(acted)
    return 0 if all(verdict.is_good for verdict in (*found.values(), *acted.values())) else 1


def _print_table(found: Mapping[str, Any]) -> None:
    for number, (kind, verdict) in enumerate(found.items()):
        figures = asdict(verdict)
        if not number:
            print(f"{'killed':<26}" + "".join(f"{key.replace('_', ' '):>28}" for key in figures))
        print(f"{kind:<26}" + "".join(f"{value:>28}" for value in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
