"""Sandboxes: how code is executed behind a wall."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from perdure.core.resources import Limits
from perdure.core.sandbox import SandboxJob, SandboxLimits, SandboxOutcome, Tier

Door = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection out of a sandbox, and closes it."""


class Sandboxes(Protocol):
    """One kind of wall. Each job gets a sandbox of its own that nothing was in before and nothing is in after."""

    @property
    def tier(self) -> Tier:
        """The wall that is really in force."""
        ...

    @property
    def parts(self) -> Mapping[str, str]:
        """What the wall is made of here, after :meth:`open`: by name, ``in force`` or why it is missing."""
        ...

    async def open(self) -> None:
        """Make ready, and prove with a real job that the wall stands here.

        Raises:
            SandboxUnavailableError: it cannot be had on this machine; the message says why, and how to get it.
        """
        ...

    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a fresh sandbox.

        Args:
            job: what is executed.
            limits: of this job, where they are narrower than those of the sandboxes; never wider.
            doors: the only ways out: TCP ports of the sandbox's own loopback, and who serves the connections to them.

        Raises:
            SandboxUnavailableError: no sandbox could be made, or this kind has no doors; nothing was executed.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; what still runs is stopped."""
        ...


class Walls(Protocol):
    """The kinds of sandboxes that a runtime has."""

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those that may be asked for, the usual one first."""
        ...

    async def at_least(self, tier: str = "") -> Sandboxes:
        """The usual sandboxes if they are strong enough, else the weakest ones that are; opened.

        Raises:
            SandboxUnavailableError: there are none.
        """
        ...

    async def close(self) -> None:
        """Let go of all that were opened."""
        ...


class WalledProgram(Protocol):
    """A wall for one program that is about to be started."""

    @property
    def launcher(self) -> tuple[str, ...]:
        """What is started in place of the command; the process id of whoever starts it, and the command, come after it."""
        ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What it must inherit."""
        ...

    async def stand(self) -> None:
        """Wait until the wall stands, and let the program begin.

        Raises:
            SandboxUnavailableError: it could not be built; the program was not started.
        """
        ...

    @property
    def breach(self) -> str:
        """The limit that the program has met, if it has met one: ``memory`` or ``processes``."""
        ...

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a port that the program listens on.

        Raises:
            ConnectionError: nobody listens there.
        """
        ...


class ProgramWalls(Protocol):
    """Walls for hosted programs, which live longer than jobs and come with files of their own."""

    @property
    def tier(self) -> Tier:
        """The wall that is really in force."""
        ...

    def around(
        self,
        command: tuple[str, ...],
        *,
        cwd: str,
        path: str,
        shown: Sequence[str],
        writable: Sequence[str],
        doors: Mapping[int, Door],
        limits: Limits | None = None,
    ) -> AbstractAsyncContextManager[WalledProgram]:
        """A wall for a program.

        Args:
            command: the program and its arguments.
            cwd: where it starts; shown for reading if it is not among the writable ones.
            path: where its command is looked for.
            shown: files and directories that it may read beside the system's and its interpreter's.
            writable: directories that it may change; they become those of the user that it runs as.
            doors: the only ways out.
            limits: of this program, where they are narrower than those of all.

        Raises:
            SandboxUnavailableError: there are no such walls here, or a limit cannot be kept here.
            DefinitionError: something that is to be shown is not there.
        """
        ...
