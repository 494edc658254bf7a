"""What every ``Clock`` must do. Cases take the clock."""

from __future__ import annotations

from itertools import pairwise

from perdure.ports import Clock
from perdure.testing.conformance.checks import check

YEAR_10000_MS = 253_402_300_800_000


def tells_milliseconds_of_the_epoch(clock: Clock) -> None:
    """An integer from 1970 to the year 9999, so that it fits every store and a ``datetime``."""
    now_ms = clock.now_ms()
    check(type(now_ms) is int, "the time is an `int`, not a `float` or `bool`")
    check(0 <= now_ms < YEAR_10000_MS, "the time is in milliseconds since 1970")


def stands_or_goes_on(clock: Clock) -> None:
    """Two looks in a row differ by less than a minute (it may jump, but not at every look)."""
    looks = [clock.now_ms() for _ in range(100)]
    jumps = [abs(after - before) for before, after in pairwise(looks)]
    check(sum(jump < 60_000 for jump in jumps) >= 90, "time does not jump at every look")


CASES = (tells_milliseconds_of_the_epoch, stands_or_goes_on)
