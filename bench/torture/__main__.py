"""``python -m bench.torture [--kills N]``: kill, judge, and say what there was; exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.torture.epoch import Epoch, Lives, Tally
from bench.torture.judge import ZEROS, Verdict
from bench.torture.log import Log

KILLS = 1_000  # a few minutes: enough to try it out
EPOCH_KILLS = 500  # in one data directory; then everything in it must come to its end and is judged
COUNTS = (
    "runs", "actions", "effects", "effects_repeated_as_declared", "doubtful", "grants", "audit_records",
)  # fmt: skip
PLACES = {
    "opening": "while the directory was opened and runs recovered",
    "in_transaction": "inside a transaction",
    "before_dispatch": "between an intent and its dispatch",
    "before_outcome": "between a dispatch and its outcome",
    "elsewhere": "elsewhere",
}
RESULTS = Path(__file__).parents[1] / "results"


@dataclass
class Outcome:
    """All epochs together."""

    verdict: Verdict = field(default_factory=Verdict)
    tally: Tally = field(default_factory=Tally)
    epochs: int = 0
    took_s: float = 0.0
    seed: int = 0


async def torture(kills: int, *, seed: int, epoch_kills: int = EPOCH_KILLS, report: Any = print) -> Outcome:
    """So many random kills; stops at the first epoch in which something is wrong."""
    outcome = Outcome(seed=seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perdure-torture-") as name:
        folder = Path(name)
        async with _around(folder) as (lives, log):
            while outcome.tally.kills < kills and outcome.verdict.is_good:
                count = min(epoch_kills, kills - outcome.tally.kills)
                chance = random.Random(f"{seed}/{outcome.epochs}")
                epoch = Epoch(folder / f"data-{outcome.epochs}", lives, log, chance, outcome.tally)
                outcome.verdict = outcome.verdict.plus(await epoch.run(count))
                outcome.epochs += 1
                outcome.took_s = time.monotonic() - began
                report(_progress(outcome, kills))
    return outcome


@asynccontextmanager
async def _around(folder: Path) -> AsyncIterator[tuple[Lives, Log]]:
    """The world, its log, and the process that forks workers."""
    path = folder / "world.log"
    (folder / "rules").mkdir()
    command = [sys.executable, "-m", "bench.torture.recorder", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
        try:
            assert recorder.stdout is not None
            lives = await Lives.begin(int(recorder.stdout.readline()), folder / "rules")
            with closing(Log(path)) as log:
                try:
                    yield lives, log
                finally:
                    await lives.end()
        finally:
            recorder.kill()


def _progress(outcome: Outcome, kills: int) -> str:
    wrong = sum(getattr(outcome.verdict, name) for name in ZEROS)
    return (
        f"{outcome.tally.kills:,} of {kills:,} kills, {outcome.took_s:,.0f} s, {outcome.verdict.runs:,} runs, "
        f"{outcome.verdict.effects:,} effects, {outcome.verdict.doubtful:,} doubtful, {wrong} wrong"
    )


def show(outcome: Outcome) -> str:
    """The figures as text."""
    verdict, tally = asdict(outcome.verdict), outcome.tally
    lines = [f"{tally.kills:,} random kills -9, {outcome.epochs} data directories, seed {outcome.seed}"]
    lines += [
        f"{outcome.took_s:,.0f} s, {tally.kills / outcome.took_s:.1f} kills/s, all told",
        "",
        "must be 0",
    ]
    lines += [f"  {verdict[name]:>9,}  {name.replace('_', ' ')}" for name in ZEROS]
    lines += ["", "what there was"]
    lines += [f"  {verdict[name]:>9,}  {name.replace('_', ' ')}" for name in COUNTS]
    lines += ["", "where the kills fell (one may count twice: several runs are under way)"]
    lines += [f"  {getattr(tally, name):>9,}  {text}" for name, text in PLACES.items()]
    lines += [
        "",
        f"mean life {tally.lived_ms / tally.kills:.0f} ms, {tally.commits:,} commits of killed lives",
    ]
    lines += ["what people said: " + ", ".join(f"{key} {value:,}" for key, value in tally.told.items())]
    lines += ["refusals: " + ", ".join(f"{key} {value:,}" for key, value in tally.refused.items())]
    return "\n".join([*lines, *verdict["examples"]])


def run(kills: int, *, out: Path, seed: int = 0) -> int:
    """Kill, judge, show, and keep the figures; the exit status."""
    began = datetime.now(UTC)
    seed = seed or random.SystemRandom().randrange(1, 1_000_000)
    outcome = asyncio.run(
        torture(kills, seed=seed, report=lambda text: print(text, file=sys.stderr, flush=True))
    )
    print(show(outcome))
    out.mkdir(parents=True, exist_ok=True)
    raw = out / f"{began:%Y-%m-%d}-torture.json"
    figures = {"began": began.isoformat(timespec="seconds"), **asdict(outcome)}
    raw.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"raw figures: {raw}")
    return 0 if outcome.verdict.is_good else 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0, help="by default another one each time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where <date>-torture.json goes")
    chosen = parser.parse_args()
    return run(chosen.kills, out=chosen.out, seed=chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
