"""The workload that all subjects run: a pure step of 40 bytes, and a probe that sees it execute.

The probe lives in the process that executes the steps, so that a step is observed in the same way
whatever surrounds it. Only the standard library: this module is imported next to every rival.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

STEPS = 10  # durable steps of one run
IN_FLIGHT = 256  # runs at once in the throughput measure


@dataclass
class Probe:
    """Counts executions of the step; keeps their times (seconds, monotonic) while ``recording``."""

    count: int = 0
    recording: bool = False
    times: list[float] = field(default_factory=list)

    def hit(self) -> None:
        """One execution begins."""
        self.count += 1
        if self.recording:
            self.times.append(time.monotonic())


probe = Probe()  # steps are plain functions in every framework, so the probe cannot be handed to them


def token(i: int) -> str:
    """The body of every step: 40 characters that depend on ``i`` alone."""
    probe.hit()
    return expected(i)


def expected(i: int) -> str:
    """What step ``i`` must return."""
    return hashlib.sha1(str(i).encode(), usedforsecurity=False).hexdigest()


def check(tokens: list[str], steps: int) -> None:
    """A run that returns anything but the tokens of its steps makes the measure worthless."""
    if tokens != [expected(i) for i in range(steps)]:
        raise RuntimeError(f"a run of {steps} steps returned {tokens!r}")
