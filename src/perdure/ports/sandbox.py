"""Sandboxes: how code is executed behind a wall."""

from __future__ import annotations

from typing import Protocol

from perdure.core.sandbox import SandboxJob, SandboxLimits, SandboxOutcome, Tier


class Sandboxes(Protocol):
    """One kind of wall. Each job gets a sandbox of its own that nothing was in before and nothing is in after."""

    @property
    def tier(self) -> Tier:
        """The wall that is really in force."""
        ...

    async def open(self) -> None:
        """Make ready, and prove with a real job that the wall stands here.

        Raises:
            SandboxUnavailableError: it cannot be had on this machine; the message says why, and how to get it.
        """
        ...

    async def run(self, job: SandboxJob, limits: SandboxLimits | None = None) -> SandboxOutcome:
        """Execute a job in a fresh sandbox.

        Raises:
            SandboxUnavailableError: no sandbox could be made; nothing was executed.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; what still runs is stopped."""
        ...
