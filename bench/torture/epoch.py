"""One data directory's share of the kills: workers live and die on it, then one lives in peace, then it is judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.torture import world
from bench.torture.clerk import Clerk
from bench.torture.judge import Judge, Verdict
from bench.torture.log import Log
from perdure import Runtime
from perdure.core.actions import ActionRecord, ActionState

LINGER_MS = (0.0, 150.0)  # of a life that drives, before it is killed
EARLY_MS = (0.0, 45.0)  # of a life that is killed wherever it is: most of them while they open and recover
EARLY = 0.35  # of all lives
REST_S_MAX = 120.0  # within which a life in peace must have brought every run to its end
ARRIVAL_S = 0.004  # what was sent before the kill has arrived after this


@dataclass
class Tally:
    """Where kills fell. A kill meets several runs, so it may count in more than one place.

    Attributes:
        kills: lives ended by SIGKILL at a random moment.
        opening: of these, before the worker drove runs (it was opening the directory or recovering).
        in_transaction: inside a transaction of the store.
        before_dispatch: with an action that was intended and had not reached the world.
        before_outcome: with an action that had reached the world and had no outcome.
        elsewhere: none of these.
        commits: that the killed lives made.
        lived_ms: all lives together.
    """

    kills: int = 0
    opening: int = 0
    in_transaction: int = 0
    before_dispatch: int = 0
    before_outcome: int = 0
    elsewhere: int = 0
    commits: int = 0
    lived_ms: float = 0.0
    told: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, told: Iterable[str], refused: Iterable[str]) -> None:
        """Count what people said and what was refused."""
        self.told = dict((Counter(self.told) + Counter(told)).most_common())
        self.refused = dict((Counter(self.refused) + Counter(refused)).most_common())


class Lives:
    """The process that forks workers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def begin(cls, port: int, folder: Path) -> Lives:
        """Start it and wait until it is warm."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.torture.lives", str(port), str(folder),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        lives = cls(process)
        await lives.answer()
        return lives

    async def ask(self, **told: Any) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> dict[str, Any]:
        """Its next answer."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks workers has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    async def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


class Epoch:
    """One data directory.

    Args:
        data: the directory.
        lives: who forks workers.
        log: the world's.
        chance: when to kill, and what people say.
        tally: counts, over all epochs.
    """

    def __init__(self, data: Path, lives: Lives, log: Log, chance: random.Random, tally: Tally) -> None:
        self._data, self._lives, self._log, self._chance, self._tally = data, lives, log, chance, tally
        self._cut_off: set[str] = set()
        self._seen: dict[str, int] = {}  # how often what a kill has met was done by then

    async def run(self, kills: int) -> Verdict:
        """So many random kills, then the judgement."""
        self._log.forget()
        async with Runtime.open(
            self._data, agents=world.AGENTS, settings=world.SETTINGS, beside=True
        ) as runtime:
            clerk = Clerk(runtime, self._log, self._chance)
            await clerk.register()
            tending = asyncio.create_task(clerk.tend())
            try:
                end = self._tally.kills + kills
                while self._tally.kills < end:
                    await self._life(runtime)
                    if tending.done():
                        break
                clerk.is_hiring = False
                await self._rest(runtime, tending)
            finally:
                tending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await tending
            self._log.read()
            refused = runtime.actions.rows(state=ActionState.REFUSED, limit=1_000_000)
            self._tally.add(clerk.told.elements(), [self._why(runtime, row) for row in refused])
            return await Judge(clerk, self._log, self._cut_off).verdict()

    def _why(self, runtime: Runtime, row: ActionRecord) -> str:
        """The code of a refusal, with the rule that was broken."""
        codes = [code for leaf in runtime.audit.records(row.key) for code in leaf.record.codes]
        return " ".join((row.code, *codes[-1:])) if row.code == "action-denied" else row.code

    async def _life(self, runtime: Runtime) -> None:
        """One life, and what its death cut off."""
        chance, tally = self._chance, self._tally
        is_early = chance.random() < EARLY
        after_ms = chance.uniform(*(EARLY_MS if is_early else LINGER_MS))
        await self._lives.ask(
            folder=str(self._data), after_ms=after_ms, **{"from": "fork" if is_early else "ready"}
        )
        seen = await self._lives.answer()
        if not seen["killed"]:
            raise RuntimeError(f"a worker ended by itself with {seen['code']}")
        tally.kills += 1
        tally.commits += seen["commits"]
        tally.lived_ms += seen["lived_ms"]
        tally.opening += not seen["ready"]
        tally.in_transaction += seen["inside"]
        places = await self._met(runtime)
        tally.before_dispatch += "before dispatch" in places
        tally.before_outcome += "before outcome" in places
        tally.elsewhere += not places and not seen["inside"] and seen["ready"]

    async def _met(self, runtime: Runtime) -> set[str]:
        """Where the actions were that the kill has met; nobody drives them now."""
        await asyncio.sleep(ARRIVAL_S)
        rows = runtime.actions.rows(state=ActionState.INTENDED, limit=1_000)
        self._log.read()
        places: set[str] = set()
        for row in rows:
            if row.recovery == "pure":
                continue  # a read carries no key by which the world could know it
            done = self._log.count(row.key)
            if row.recovery == "opaque":
                self._cut_off.add(row.key)
            if self._seen.get(row.key) == done:
                continue  # met by an earlier kill, and not recovered since
            places.add("before dispatch" if done <= self._seen.get(row.key, 0) else "before outcome")
            self._seen[row.key] = done
        return places

    async def _rest(self, runtime: Runtime, tending: asyncio.Task[None]) -> None:
        """A life in peace, until every run has ended."""
        await self._lives.ask(folder=str(self._data), rest=True)
        if not (await self._lives.answer())["ready"]:
            raise RuntimeError("a worker could not open what was left")
        end = time.monotonic() + REST_S_MAX
        while runtime.runs(status="unfinished", limit=1) and time.monotonic() < end and not tending.done():
            await asyncio.sleep(0.05)
        await self._lives.ask(end=True)
        await self._lives.answer()
        if tending.done():
            tending.result()
