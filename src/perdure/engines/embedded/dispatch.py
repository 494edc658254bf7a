"""The dispatcher: keeps the worker's lease, wakes what is due, starts what is scheduled, claims what there is room for."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from perdure.core import entries as e
from perdure.core.errors import CorruptError, UnavailableError
from perdure.core.records import RunFilter, RunRecord, Schedule, Status
from perdure.engines.embedded import works
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.engine import EmbeddedEngine

log = logging.getLogger("perdure.dispatch")
CLAIMS_MAX = 64  # runs taken in one transaction: each is replayed on the loop, which others need too
WAKES_MAX = 1_000  # due runs queued in one transaction
CLAIMS_LOOKED_AT_MAX = (
    100_000  # running runs looked through after a claim in doubt: more than a process drives
)
RETRY_MS = 200  # after the store did not answer


class Dispatcher:
    """One loop; a poke makes it look at once."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self._poked = asyncio.Event()
        self._stopped = False
        self._renew_at_s = 0.0
        self._more = True
        self._look_again_ms = 0
        self._is_in_doubt = False
        self.is_idle = False

    def poke(self) -> None:
        """There may be something to claim."""
        self._more = True
        self._poked.set()

    def poke_soon(self) -> None:
        """Room was made: claim if the last look left something behind."""
        if self._more:
            self._poked.set()

    def due_by(self, due_ms: int | None) -> None:
        """A run was parked until then: look again in time."""
        if due_ms is not None and due_ms < self._look_again_ms:
            self._poked.set()

    def doubt(self) -> None:
        """A claim may have been made of which nobody here knows: find it at the next look."""
        self._is_in_doubt = True
        self._poked.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopped = True
        self._poked.set()

    async def begin(self) -> None:
        """Take the worker's lease; alone on the store, every other lease is dead and its runs are free at once."""
        engine = self._engine
        now_ms = engine.clock.now_ms()

        def work(tx: Transaction) -> int:
            tx.retire(engine.name)  # an earlier worker of this name is dead, and what it held is free
            released = tx.release_expired(now_ms, others_than=engine.name if engine.alone else None)
            tx.renew(engine.name, now_ms + engine.settings.lease_ms)
            return released

        released = await engine.store.transact(work)
        if released:
            log.info("%d runs of a worker that is gone will go on", released)
        self._renew_at_s = engine.loop.time() + engine.settings.lease_ms / 3000

    async def serve(self) -> None:
        """Look until stopped."""
        engine = self._engine
        while not self._stopped:
            self._poked.clear()
            try:
                wait_ms = await self._look()
            except UnavailableError as error:
                log.warning("the store did not answer the dispatcher: %s", error)
                wait_ms = RETRY_MS
            except (
                Exception
            ):  # a damaged store, or a bug: the runs in memory must not lose their lease for it
                log.exception("the dispatcher failed and tries again")
                wait_ms = engine.settings.poll_ms
            if wait_ms <= 0:
                await asyncio.sleep(0)  # let the runs that were just claimed go on
                continue
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def _look(self) -> int:
        """One transaction; milliseconds until the next look."""
        engine = self._engine
        settings = engine.settings
        now_ms = engine.clock.now_ms()
        renew = engine.loop.time() >= self._renew_at_s
        room = {
            name: engine.room() if agent.concurrency is None else agent.concurrency - engine.active[name]
            for name, agent in engine.agents.items()
        }
        limit = min(CLAIMS_MAX, engine.room())
        suspects = engine.suspect is None
        was_more, self._more = self._more, False
        was_in_doubt, self._is_in_doubt = self._is_in_doubt, False
        # The runs that are executing here are left alone: their hosts see for themselves what happened to them.

        def work(tx: Transaction) -> tuple[list[RunRecord], list[Schedule], int | None, int]:
            if renew:
                tx.renew(engine.name, now_ms + settings.lease_ms)
            tx.release_expired(now_ms)
            _release_unknown(tx, engine, now_ms, is_in_doubt=was_in_doubt)
            woken = tx.wake_due(now_ms, WAKES_MAX)
            due = tx.schedules(due_ms=now_ms)
            claimed = (
                engine.admission.claim(
                    tx, engine.name, now_ms, room=room, active=engine.active, limit=limit, suspects=suspects
                )
                if limit > 0
                else []
            )
            if claimed:
                tx.renew(
                    engine.name, now_ms + settings.lease_ms
                )  # a claim without a lease would be taken away at once
            for run in claimed:
                if run.recoveries:
                    _note_recovery(tx, run, now_ms, engine.name)
            return claimed, due, tx.next_wake_ms(), woken

        try:
            claimed, due, next_ms, woken = await engine.store.transact(work)
        except BaseException:
            self._more = was_more or self._more
            self._is_in_doubt = True  # the claims may be committed all the same
            raise
        if renew:
            self._renew_at_s = engine.loop.time() + settings.lease_ms / 3000
        for run in claimed:
            engine.worker.begin(run)
        for schedule in due:
            await self._start_scheduled(schedule, now_ms)
        self.is_idle = not claimed
        self._heed_others()
        self._more = self._more or engine.admission.is_short
        if len(claimed) == limit or woken == WAKES_MAX or (claimed and suspects and engine.suspect):
            self._more = True
            return 0 if engine.room() > 0 and claimed else settings.poll_ms
        return self._wait_ms(now_ms, next_ms)

    def _heed_others(self) -> None:
        """Another process has written: messages or cancellations of our runs, or new runs."""
        engine = self._engine
        if engine.store.changed_elsewhere():
            for host in list(engine.hosts.values()):
                engine.worker.settle(host, forced=True)
            self._more = True

    def _wait_ms(self, now_ms: int, next_ms: int | None) -> int:
        poll_ms = self._engine.settings.poll_ms
        wait_ms = max(1, poll_ms if next_ms is None else min(poll_ms, next_ms - now_ms))
        self._look_again_ms = now_ms + wait_ms
        return wait_ms

    async def _start_scheduled(self, schedule: Schedule, now_ms: int) -> None:
        """Start the run of a due schedule, once per occurrence, and set the next time.

        Occurrences missed while nothing ran are made up by one run.
        """
        engine = self._engine
        next_ms = next_time_ms(schedule.cron, schedule.timezone, now_ms)
        agent = engine.agents.get(schedule.agent)
        if agent is None:
            return
        new = engine.new_run(
            agent, schedule.input, {}, idempotency_key=f"schedule/{schedule.name}/{schedule.next_ms}"
        )

        def work(tx: Transaction) -> None:
            works.start(tx, new, now_ms)
            tx.put_schedule(msgspec.structs.replace(schedule, next_ms=next_ms))

        await engine.store.transact(work)
        self.poke()


def next_time_ms(cron: str, timezone: str, after_ms: int) -> int:
    """When a cron expression is next due in a time zone, strictly after a time; milliseconds of the epoch."""
    after = datetime.fromtimestamp(after_ms / 1000, ZoneInfo(timezone))
    return int(next(CronSim(cron, after)).astimezone(UTC).timestamp() * 1000)


def _release_unknown(tx: Transaction, engine: EmbeddedEngine, now_ms: int, *, is_in_doubt: bool) -> None:
    """Queue the runs under this worker's lease that it does not drive: their claim was committed, but not answered."""
    for run in (
        tx.runs(RunFilter(status=(Status.RUNNING,), limit=CLAIMS_LOOKED_AT_MAX)) if is_in_doubt else ()
    ):
        if run.worker != engine.name or run.id in engine.accepting:
            continue
        host = engine.hosts.get(run.id)
        if host is None or host.is_parked or host.fence != run.fence:
            tx.move(run.id, run.fence, Status.QUEUED, now_ms=now_ms)


def _note_recovery(tx: Transaction, run: RunRecord, now_ms: int, worker: str) -> None:
    try:
        last_ms = tx.journal(run.id, after=run.seq - 1)[-1].at_ms
    except CorruptError:
        return  # the worker finds the damage when it loads the journal, and blocks the run
    entry = e.RunRecovered(seq=run.seq + 1, at_ms=max(now_ms, last_ms), worker=worker, fence=run.fence)
    tx.append(run.id, run.fence, (entry,), {})
