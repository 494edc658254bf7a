"""Containment as an operator sees it: what is contained, the moves up and down, and the kill switch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from perdure.core.actions import ActionRecord
from perdure.core.approvals import LEVELS, Containment, Level
from perdure.core.audit import AuditRecord
from perdure.core.errors import UsageError
from perdure.core.ids import checked_name
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.kill import kill, runs_in
from perdure.gateway import breaches
from perdure.kernel.quarantine import QUARANTINE
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

SCOPES = ("agent", "run", "tool")
LOOK_S = 0.01  # between two looks whether what was killed has come to rest
GRACE_S = 10.0
BATCH = 200  # runs that are ended in one transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class KillReport:
    """What the kill switch did.

    Attributes:
        scope: what was killed.
        refused_ms: until no new action of the scope could be dispatched any more.
        ended_ms: until every run had ended in the store and its worker had lost its lease.
        stopped_ms: until the tasks and programs in this process were at rest; ``None`` if some were not in time.
        runs: those that were ended.
        doubtful: actions that were under way: nobody knows whether they happened.
        not_stopped: runs of which something still works in this process (a step in a thread cannot be interrupted).
    """

    scope: str
    refused_ms: float
    ended_ms: float
    stopped_ms: float | None
    runs: tuple[str, ...]
    doubtful: tuple[str, ...]
    not_stopped: tuple[str, ...]


class Containments:
    """``runtime.containment``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def in_force(self) -> list[Containment]:
        """What is contained now, by scope."""
        now_ms = self._runtime.now_ms()
        found = self._runtime.store.read(lambda tx: tx.containments())
        return [item for item in found if item.until_ms is None or now_ms < item.until_ms]

    async def set(
        self, scope: str, level: Level, *, by: str, reason: str, seconds: float | None = None
    ) -> Containment:
        """Contain a scope; every action that is proposed after that is judged by it. Durable on return.

        Args:
            scope: ``*``, ``agent:NAME``, ``run:ID`` (with all below it) or ``tool:NAME``.
            level: ``watch``, ``restrict`` (reads only), ``hold`` (what is no read needs a grant) or ``stop``.
            by: who decides.
            reason: why; agents are told.
            seconds: for how long; otherwise until it is lifted.

        Raises:
            UsageError: there is no such scope or level.
        """
        made = Containment(
            scope=checked_scope(scope),
            level=_level(level),
            by=checked_name("who decides", by),
            reason=reason,
            at_ms=self._runtime.now_ms(),
            until_ms=None if seconds is None else self._runtime.now_ms() + round(seconds * 1000),
        )
        record = AuditRecord(
            kind="containment",
            at_ms=made.at_ms,
            name=made.scope,
            state=made.level,
            by=by,
            refs={"note": reason},
        )

        def work(tx: Transaction) -> None:
            tx.contain(made)
            tx.audit(record)

        await self._runtime.store.transact(work)
        return made

    async def lift(self, scope: str, *, by: str, reason: str = "") -> bool:
        """Take the containment of a scope away; whether there was one."""
        checked_name("who decides", by)
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> bool:
            was = tx.lift(checked_scope(scope))
            if was:
                tx.audit(
                    AuditRecord(
                        kind="containment",
                        at_ms=now_ms,
                        name=scope,
                        state="lifted",
                        by=by,
                        refs={"note": reason},
                    )
                )
            return was

        return await self._runtime.store.transact(work)

    async def quarantine(
        self, agent: str, *, by: str, reason: str, seconds: float | None = None
    ) -> Containment:
        """Hold the runs of an agent that do not execute, and those that are started from now on, until it is released.

        Its runs under way go on until they next wait. Durable on return, and recorded as containment.

        Args:
            agent: its name.
            by: who decides.
            reason: why.
            seconds: for how long; otherwise until it is released.
        """
        now_ms = self._runtime.now_ms()
        until_ms = None if seconds is None else now_ms + round(seconds * 1000)
        name, who = checked_name("the name of an agent", agent), checked_name("who decides", by)
        return await self._runtime.store.transact(
            lambda tx: breaches.quarantine(tx, name, now_ms, by=who, reason=reason, until_ms=until_ms)
        )

    async def release(self, agent: str, *, by: str, reason: str = "") -> bool:
        """End the quarantine of an agent: what was held may go on; whether there was one. Its breaches are forgotten."""
        now_ms = self._runtime.now_ms()
        who = checked_name("who decides", by)
        was = await self._runtime.store.transact(
            lambda tx: breaches.release(tx, agent, now_ms, by=who, reason=reason)
        )
        self._runtime.look_after([agent])
        return was

    def quarantined(self) -> list[Containment]:
        """The quarantines in force; ``scope`` is ``quarantine:NAME``."""
        return [item for item in self.in_force() if item.scope.startswith(QUARANTINE)]

    async def kill(self, scope: str, *, by: str, reason: str, grace: float = GRACE_S) -> KillReport:
        """Stop a scope: new actions are refused at once, its runs end, their workers lose their leases.

        The scope stays contained (``stop``) until it is lifted. Also works beside the process that drives the runs.

        Args:
            scope: ``*``, ``agent:NAME`` or ``run:ID``.
            by: who decides.
            reason: why.
            grace: seconds to wait for tasks and programs of this process to come to rest.

        Raises:
            UsageError: there is no such scope, or it names a tool.
            RunUnknownError: there is no such run.
        """
        runtime = self._runtime
        if checked_scope(scope).startswith("tool:"):
            raise UsageError("a tool has no runs to kill; contain it with level `stop`")
        runtime.store.read(
            lambda tx: runs_in(tx, scope)
        )  # a run that is not there is told before anything else
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self.set(scope, "stop", by=by, reason=reason)
        refused_s = loop.time()
        ended: list[str] = []
        doubtful: list[str] = []
        hosts: list[Host] = []
        while runs := runtime.store.read(
            lambda tx: runs_in(tx, scope)
        ):  # also those that were started meanwhile
            batch = [record.id for record in runs[:BATCH]]
            touched, rows = await runtime.store.transact(
                partial(_kill, batch, f"killed by {by}: {reason}", runtime.now_ms())
            )
            ended += batch
            doubtful += [row.key for row in rows]
            hosts += self._evict(batch)
            runtime.look_after(touched)
        ended_s = loop.time()
        while any(host.busy for host in hosts) and loop.time() < ended_s + grace:
            await asyncio.sleep(LOOK_S)
        left = tuple(host.run_id for host in hosts if host.busy)
        return KillReport(
            scope=scope,
            refused_ms=_ms(refused_s - started),
            ended_ms=_ms(ended_s - started),
            stopped_ms=None if left else _ms(loop.time() - started),
            runs=tuple(ended),
            doubtful=tuple(doubtful),
            not_stopped=left,
        )

    def _evict(self, runs: Sequence[str]) -> list[Host]:
        """Take runs out of the memory of this process, if it has them; their tasks are cancelled."""
        engine = self._runtime.engine
        if engine is None:
            return []
        found = [host for run in runs if (host := engine.hosts.get(run)) is not None]
        for host in found:
            engine.forget(host)
        return found


def _kill(
    runs: Sequence[str], reason: str, now_ms: int, tx: Transaction
) -> tuple[list[str], list[ActionRecord]]:
    touched: list[str] = []
    doubtful: list[ActionRecord] = []
    for run in runs:
        names, rows = kill(tx, run, reason, now_ms)
        touched += names
        doubtful += rows
    return touched, doubtful


def checked_scope(scope: str) -> str:
    """A scope as given.

    Raises:
        UsageError: it is none.
    """
    kind, colon, name = scope.partition(":")
    if scope != "*" and not (colon and kind in SCOPES and name):
        raise UsageError(f"`{scope}` is no scope; expected `*`, `agent:NAME`, `run:ID` or `tool:NAME`")
    return scope


def _level(level: Level) -> Level:
    if level not in LEVELS:
        raise UsageError(f"`{level}` is no level; expected one of {', '.join(LEVELS)}")
    return level


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
