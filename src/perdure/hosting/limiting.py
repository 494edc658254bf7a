"""The limits of hosted programs: how long an attempt may take, and what is recorded when it meets a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from perdure.agents.hosting import Ended
from perdure.core.audit import AuditRecord
from perdure.core.entries import Failure
from perdure.core.errors import SandboxUnavailableError
from perdure.core.resources import Limits
from perdure.gateway.breaches import note_breach
from perdure.gateway.hosted import Attempt
from perdure.ports import Transaction, WalledProgram

LimitsOf = Callable[[str], Limits | None]


def check_without_wall(limits: Limits | None) -> None:
    """What a plain process can be held to: its time only.

    Raises:
        SandboxUnavailableError: other limits are asked for.
    """
    if limits is not None and limits != Limits(wall_ms=limits.wall_ms):
        raise SandboxUnavailableError(
            'limits of processors, memory, processes and disk need a wall around the program; use `sandbox="namespace"`, or take '
            "the limits away"
        )


async def timed(work: Awaitable[Ended], attempt: Attempt, limits: Limits | None) -> Ended:
    """What comes of an attempt, or that it has met its limit of time."""
    wall_ms = None if limits is None else limits.wall_ms
    limit = asyncio.timeout(None if wall_ms is None else wall_ms / 1000)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
    _note(attempt, "wall-time")
    text = f"the program met its limit `wall-time`: {wall_ms} ms"
    return Ended("failed", error=Failure(code="program-failed", message=text))


def told(found: Ended, attempt: Attempt, wall: WalledProgram | None) -> Ended:
    """The same; if the program has met another limit that is recorded, and said where it failed."""
    breach = "" if wall is None else wall.breach
    if not breach:
        return found
    _note(attempt, breach)
    if found.error is None:
        return found
    text = f"the program met its limit `{breach}`; {found.error.message}"
    return replace(found, error=msgspec.structs.replace(found.error, message=text))


def _note(attempt: Attempt, breach: str) -> None:
    seat = attempt.seat
    now_ms = seat.now_ms()
    record = AuditRecord(
        kind="sandbox", at_ms=now_ms, run=seat.run_id, agent=seat.agent, name="program", tier=attempt.within,
        refs={"attempt": str(attempt.number), "note": f"breach:{breach}"},
    )  # fmt: skip

    def work(tx: Transaction) -> None:
        tx.audit(record)
        note_breach(tx, seat.agent, now_ms, breach)

    seat.later(work)
