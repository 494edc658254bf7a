"""What an engine needs to run hosted programs: the port that the room ``hosting`` implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from perdure.agents.program import Program
from perdure.core.entries import Failure
from perdure.gateway.hosted import Attempt


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt of a program ended.

    Attributes:
        how: it gave a ``result``, it ``failed``, or it was ``suspended`` because all that it did was wait for a decision.
        result: JSON.
        error: why it failed.
    """

    how: Literal["result", "failed", "suspended"]
    result: bytes = b"null"
    error: Failure | None = None


class Programs(Protocol):
    """Starts programs as processes."""

    async def run(
        self, program: Program, given: bytes, attempt: Attempt, show: Callable[[str, Any], None]
    ) -> Ended:
        """Run one attempt to its end; cancelling stops the process and all that it started.

        Args:
            program: what to start.
            given: the run's input, as JSON.
            attempt: what answers its calls.
            show: takes its output, line by line (``stdout`` or ``stderr``, text).
        """
        ...
