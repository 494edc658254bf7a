"""Writes that others depend on, or whose outcome is unknown: a patch before what follows it, a dropped run's lease."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from perdure.core import entries as e
from perdure.core.errors import CorruptError, FenceError, PerdureError, UnavailableError
from perdure.core.records import RunRecord, Status
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.waits import position, record
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

log = logging.getLogger("perdure.worker")
RECLAIM_MS = (50, 2_000)  # first and longest wait before a run that was dropped is queued again


async def write_patch(worker: Worker, host: Host, name: str) -> None:
    """Record a patch, then begin the calls that were held back for it.

    Invariant: an entry that exists only because of a patch is never durable without that patch: a replay of such a
    journal would take the other path.
    """

    def work(tx: Transaction) -> e.Entry:
        return record(tx, host, e.PatchApplied(**position(host, now_ms), name=name))

    now_ms = worker.wall_ms()
    entry = await worker.engine.store.transact(work)
    host.unwritten -= 1
    if host.is_closed:
        return
    if not host.unwritten:
        held, host.held = host.held, []
        for open_call in held:
            if open_call.number in host.calls:
                worker.launch(host, open_call)
        host.must_settle = True
    worker.deliver(host, entry)


async def requeue(worker: Worker, name: str, fence: int) -> None:
    """Give a dropped run back, as soon as the store answers."""
    engine = worker.engine
    wait_ms = RECLAIM_MS[0]
    while not engine.is_draining:
        await asyncio.sleep(wait_ms / 1000)
        try:
            await engine.store.transact(
                lambda tx: tx.move(name, fence, Status.QUEUED, now_ms=worker.wall_ms())
            )
        except FenceError:
            return  # it has ended, or another worker has it
        except UnavailableError:
            wait_ms = min(RECLAIM_MS[1], wait_ms * 2)
            continue
        engine.dispatcher.poke()
        return


async def block(worker: Worker, host: Host, error: PerdureError, code: str) -> None:
    """Record that an operator must decide, and leave the run alone."""
    host.is_ending = host.is_blocking = True
    now_ms = worker.wall_ms()
    facts = error.facts
    failure = e.Failure(code=code, message=error.message)
    expected, found = str(facts.get("expected", "")), str(facts.get("found", ""))

    def work(tx: Transaction) -> None:
        entry = e.RunBlocked(**position(host, now_ms), error=failure, expected=expected, found=found)
        record(tx, host, entry)
        tx.move(host.run_id, host.fence, Status.BLOCKED, now_ms=now_ms, code=code)

    await worker.engine.store.transact(work)
    log.error("run %s is blocked (%s): %s", host.run_id, code, error.message)
    worker.engine.forget(host)
    worker.engine.watchers.end(host.run_id)


async def block_row(worker: Worker, run: RunRecord, error: CorruptError) -> None:
    """Block a run whose journal cannot be read, so not written to either."""
    now_ms = worker.wall_ms()
    await worker.engine.store.transact(
        lambda tx: tx.move(run.id, run.fence, Status.BLOCKED, now_ms=now_ms, code=error.code)
    )
    worker.engine.watchers.end(run.id)
