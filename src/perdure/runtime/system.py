"""The system's own clock and chance."""

from __future__ import annotations

import secrets
import time


class SystemClock:
    """The time of day of this machine."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """The operating system's random numbers."""

    def bits(self, count: int) -> int:
        """An integer of ``count`` random bits."""
        return secrets.randbits(count)
