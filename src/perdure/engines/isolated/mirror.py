"""The timers of a run whose loop is in a worker process."""

from __future__ import annotations

from perdure.core.errors import RequestInvalidError
from perdure.core.limits import CALLS_OPEN_MAX
from perdure.engines.embedded.loop import RunLoop

TIMERS_MAX = CALLS_OPEN_MAX  # of one run's own loop


class MirrorLoop(RunLoop):
    """Knows the timers of a loop that is elsewhere; runs nothing."""

    def drain(self, turns: int = -1) -> None:  # noqa: ARG002
        """Nothing is ever run here."""
        self.ready.clear()

    def arm(self, number: int, due_ms: int) -> None:
        """A timer was set there."""
        if number != self._timers_made + 1 or len(self.timers) >= TIMERS_MAX:
            raise RequestInvalidError(
                f"expected timer {self._timers_made + 1} (at most {TIMERS_MAX} at once), found {number}"
            )
        self.call_at(max(due_ms / 1000, self.now_s + 0.001), _nothing)

    def disarm(self, number: int) -> None:
        """A timer was stopped there."""
        self.timers.pop(number, None)


def _nothing() -> None:
    pass
