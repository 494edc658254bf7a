"""Wall-clock time. Elapsed time comes from the running loop."""

from typing import Protocol


class Clock(Protocol):
    """Tells the time of day; it may jump in both directions."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...
