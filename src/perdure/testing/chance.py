"""Chance in simulated worlds: every draw is a function of the seed, what it is for, and its number.

A fault is a draw with a name such as ``crash after commit#17``. A world can be replayed with some of its faults only
(``only``), which is how a failing seed is cut down: dropping one fault does not renumber those of other kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_RANGE = 1 << 64


class Chance:
    """Numbered draws of one seed.

    Args:
        seed: of the world.
        only: the faults that may happen; ``None`` is all that the seed gives.
    """

    def __init__(self, seed: int, only: frozenset[str] | None = None) -> None:
        self.seed = seed
        self.only = only
        self.is_healed = False
        self.fired: list[str] = []
        self._counts: Counter[str] = Counter()

    def bits(self, what: str) -> int:
        """64 bits."""
        self._counts[what] += 1
        text = f"{self.seed}/{what}/{self._counts[what]}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")

    def draw(self, what: str) -> float:
        """A number in [0, 1)."""
        return self.bits(what) / _RANGE

    def between(self, what: str, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.bits(what) % (high - low + 1)

    def pick(self, what: str, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.bits(what) % len(items)]

    def fault(self, what: str, probability: float) -> bool:
        """Whether this fault happens now (never after healing)."""
        drawn = self.draw(what)
        if self.is_healed or drawn >= probability:
            return False
        name = f"{what}#{self._counts[what]}"
        if self.only is not None and name not in self.only:
            return False
        self.fired.append(name)
        return True


class SimEntropy:
    """The ``Entropy`` port of one process."""

    def __init__(self, chance: Chance, process: str) -> None:
        self._chance = chance
        self._what = f"entropy {process}"

    def bits(self, count: int) -> int:
        """``count`` random bits."""
        value = 0
        for _ in range(0, count, 64):
            value = value << 64 | self._chance.bits(self._what)
        return value & ((1 << count) - 1)


@dataclass
class Swarm:
    """One draw of all knobs: each seed gets its own mix, in which many faults are off.

    Probabilities are per question, durations in milliseconds.
    """

    crash_before_commit: float
    crash_after_commit: float
    store_busy: float
    store_full: float
    store_unknown: float
    store_lost: float
    store_slow: float
    step_fails_before: float
    step_fails_after: float
    step_hangs: float
    crash_in_step: float
    crash: float
    drain: float
    pause: float
    clock_step: float
    client_gives_up: float
    tool_unreachable: float
    tool_fails: float
    tool_hangs: float
    model_fails: float
    store_ms: int
    step_ms: int
    skew_ms: int
    workers: int
    clients: int
    concurrency: int
    resident: int
    recoveries_max: int
    named: bool

    @classmethod
    def of(cls, chance: Chance) -> Swarm:
        """The mix of a seed."""
        highest = {"crash_before_commit": 0.015, "crash_after_commit": 0.015, "store_busy": 0.05, "store_full": 0.05,
                   "store_unknown": 0.04, "store_lost": 0.04, "store_slow": 0.03, "step_fails_before": 0.25,
                   "step_fails_after": 0.25, "step_hangs": 0.15, "crash_in_step": 0.04, "crash": 0.25,
                   "drain": 0.15, "pause": 0.3, "clock_step": 0.3, "client_gives_up": 0.3,
                   "tool_unreachable": 0.2, "tool_fails": 0.2, "tool_hangs": 0.2, "model_fails": 0.25}  # fmt: skip
        values: dict[str, float] = {}
        for item in fields(cls):
            if item.name in highest:
                is_on = chance.draw("swarm") < 0.5
                values[item.name] = chance.draw("swarm") * highest[item.name] if is_on else 0.0
        pick = chance.pick
        return cls(
            **values,
            store_ms=pick("swarm", (0, 1, 5, 40)),
            step_ms=pick("swarm", (1, 20, 400, 3_000)),
            skew_ms=pick("swarm", (0, 0, 300, 8_000)),
            workers=pick("swarm", (1, 2, 2, 3)),
            clients=pick("swarm", (3, 6, 10)),
            concurrency=pick("swarm", (1, 3, 1_000)),
            resident=pick("swarm", (0, 1, 256)),
            recoveries_max=pick("swarm", (1, 5, 50)),
            named=pick("swarm", (False, False, True)),
        )
