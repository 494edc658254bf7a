"""Live through simulated worlds: ``python -m perdure.testing.simulate --seeds 200``.

Each seed is one world. When one fails, its faults are cut down to those that matter (delta debugging over the numbered
fault plan), and the seed, the plan and what was violated are printed. Over 200 seeds or more, everything that should
happen sometimes must have happened.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from perdure.core.entries import ENTRY_TYPES, JOURNAL_VERSION
from perdure.testing.planted import BUGS, planted
from perdure.testing.world import World

SEEDS_FOR_SOMETIMES = 200  # fewer may miss a rare event by chance
SHRINKS_MAX = 400  # worlds lived through to cut one plan down
_NEVER_HERE = {
    "RunForked",
    "RunMigrated",
    "ProgramStarted",
    "ProgramExited",
    "ProgramSuspended",
    "ProgramEnded",
}  # operators' doings that no client of these worlds does

#: What must happen at least once over the seeds; else a fault or a path is not really tested.
SOMETIMES = (
    "crash at a commit", "crash at random", "crash after an effect", "crash after a drain", "store busy", "store full",
    "store lost", "store unknown", "store slow", "pause", "clock step", "drain", "step hung",
    "step failed before its effect", "step failed after its effect", "idempotency key reused", "step of a zombie",
    "message sent twice", "client asked again", "client gave up", "start refused", "cancel", "question answered", "run quarantined",
    "action succeeded", "action failed", "action lost", "action refused", "action given up by its agent",
    "doubtful action", "decided: succeeded", "decided: failed", "decided: refused", "decided: retry",
    "decided by the probe", "decided: let the held one go on", "decided twice", "decision refused",
    "settled after the end of its run", "budget raised", "held action released", "opaque tool repeated by decision",
    "pure tool repeated", "idempotent tool repeated", "crash in a tool", "tool unreachable",
    "tool failed before its effect", "tool failed after its effect", "tool hung before its effect", "tool answered late",
    "tool lost its answer", "tool answered too much", "probe found that it happened", "probe found that it did not happen",
    "probe failed", "probe could not tell", "model answered 429", "model broke off", "model refused", "model slow",
    *(kind.__name__ for kind in ENTRY_TYPES if kind.__name__ not in _NEVER_HERE),
)  # fmt: skip


@dataclass
class Tally:
    """What many worlds came to."""

    worlds: int = 0
    crashes: int = 0
    faults: int = 0
    commits: int = 0
    virtual_s: float = 0.0
    sometimes: Counter[str] = field(default_factory=Counter)

    def add(self, world: World) -> None:
        """Count a world."""
        self.worlds += 1
        self.crashes += world.crashes
        self.faults += len(world.chance.fired)
        self.commits += world.disk.commits
        self.virtual_s += world.loop.time()
        self.sometimes += world.sometimes

    def missing(self) -> list[str]:
        """What should have happened and has not."""
        return [what for what in SOMETIMES if not self.sometimes[what]]


def live(
    seed: int, *, bug: str = "", only: frozenset[str] | None = None
) -> tuple[World, AssertionError | None]:
    """One world, and what was violated in it."""
    with planted(bug) as kind:
        world = kind(seed, only)
        try:
            world.run()
        except AssertionError as error:
            return world, error
    return world, None


def shrink(seed: int, plan: Iterable[str], *, bug: str = "") -> tuple[list[str], int]:
    """The faults of ``plan`` without those that the failure does not need, and how many worlds that took."""
    kept = list(plan)
    size, lived = max(1, len(kept) // 2), 0
    while size >= 1 and lived < SHRINKS_MAX:
        start, before = 0, len(kept)
        while start < len(kept) and lived < SHRINKS_MAX:
            candidate = kept[:start] + kept[start + size :]
            lived += 1
            if live(seed, bug=bug, only=frozenset(candidate))[1] is not None:
                kept = candidate
            else:
                start += size
        if size == 1 and len(kept) == before:
            break
        size = max(1, size // 2)
    return kept, lived


def report(seed: int, world: World, error: AssertionError, *, bug: str = "", lines: int = 0) -> None:
    """Print what is wrong with a seed, and the least that makes it so."""
    print(f"seed {seed}: {error}")
    plan, lived = shrink(seed, world.chance.fired, bug=bug)
    least, violated = live(seed, bug=bug, only=frozenset(plan))
    print(f"  {len(world.chance.fired)} faults, {len(plan)} of them matter ({lived} worlds to find out):")
    for fault in plan:
        print(f"    {fault}")
    print(f"  with these alone: {violated}")
    shown = least.trace[-lines:] if lines else [line for line in least.trace if "WARNING" in line][-8:]
    for line in shown:
        print(f"  {line}")
    flags = f" --plant {bug}" if bug else ""
    print(f"  again: python -m perdure.testing.simulate --seed {seed} --verbose{flags}")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="perdure.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--long", action="store_true", help="5,000 worlds")
    parser.add_argument("--hashes", action="store_true", help="print the trace hash of each seed")
    parser.add_argument("--verbose", action="store_true", help="print the trace (of what fails, if many)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--plant", choices=BUGS, default="", help="plant a bug and see it found")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return _one(chosen.seed, chosen.plant, verbose=chosen.verbose, hashes=chosen.hashes)
    seeds = range(chosen.first, chosen.first + (5_000 if chosen.long else chosen.seeds))
    return _many(seeds, chosen)


def _one(seed: int, bug: str, *, verbose: bool, hashes: bool) -> int:
    world, error = live(seed, bug=bug)
    if verbose:
        print("\n".join(world.trace))
    if hashes:
        print(f"{seed} {world.hash()}")
    if error is not None:
        report(seed, world, error, bug=bug, lines=60 if verbose else 0)
        return 1
    if not hashes:
        print(f"seed {seed} holds: {len(world.chance.fired)} faults, {world.crashes} crashes, {world.swarm}")
    return 0


def _many(seeds: range, chosen: argparse.Namespace) -> int:
    begin = time.perf_counter()
    tally, failed = Tally(), 0
    for seed in seeds:
        world, error = live(seed, bug=chosen.plant)
        tally.add(world)
        if chosen.hashes:
            print(f"{seed} {world.hash()}")
        if error is not None:
            failed += 1
            report(seed, world, error, bug=chosen.plant, lines=60 if chosen.verbose else 0)
            if not chosen.keep_going:
                break
        if tally.worlds % 50 == 0 and not chosen.hashes:
            print(f"{tally.worlds} worlds, {tally.crashes} crashes, {tally.faults} faults", flush=True)
    if chosen.hashes:
        return 1 if failed else 0
    took = time.perf_counter() - begin
    print(
        f"{tally.worlds} worlds in {took:.1f} s ({tally.worlds / took:.1f}/s): {tally.crashes} crashes, "
        f"{tally.faults} faults, {tally.commits} commits, {tally.virtual_s / 3600:.1f} virtual hours, "
        f"journal format {JOURNAL_VERSION}, {failed} failed"
    )
    for what in sorted(tally.sometimes):
        print(f"  {tally.sometimes[what]:>8}  {what}")
    missing = tally.missing() if len(seeds) >= SEEDS_FOR_SOMETIMES and not failed else []
    for what in missing:
        print(f"never happened: {what}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
