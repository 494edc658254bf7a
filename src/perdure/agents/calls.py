"""What an engine offers to a run: the port that both engines implement."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from perdure.agents.requests import Request


class Calls(Protocol):
    """Issues the durable calls of one run, in call order."""

    @property
    def visible_id(self) -> str:
        """The run's id, as its code sees it."""
        ...

    @property
    def session(self) -> str | None:
        """The key of the run's session."""
        ...

    def issue(self, request: Request) -> asyncio.Future[Any]:
        """Give the call the next number, now; the future ends with what is recorded for it.

        Raises:
            OutsideRunError: not called by the run's own code.
        """
        ...

    def now_ms(self) -> int:
        """The time of the last thing that the run saw: the same on every replay."""
        ...

    def chance(self, bits: int) -> int:
        """Random bits that are the same on every replay."""
        ...

    def patched(self, name: str) -> bool:
        """Whether the run may take the changed path called ``name``."""
        ...

    def emit(self, kind: str, data: Any) -> None:
        """Show something to whoever watches the run live; not recorded, and silent on replay."""
        ...
