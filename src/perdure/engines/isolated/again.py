"""A run whose worker process is gone goes on from its journal, under the lease that the runtime still holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from perdure.core import entries as e
from perdure.core.errors import FenceError, UnavailableError
from perdure.core.records import RunRecord, Status
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

log = logging.getLogger("perdure.workers")


async def begin_again(worker: Worker, run: str, fence: int, blamed: str | None, why: str) -> None:
    """Begin a run again.

    Args:
        worker: drives it.
        run: its id.
        fence: of the lease under which it was driven.
        blamed: the worker process whose end it is blamed for; recorded, so that one that ends its workers is quarantined.
        why: how the worker ended.
    """
    now_ms = worker.wall_ms()

    def work(tx: Transaction) -> RunRecord | None:
        record = tx.run(run)
        if record is None or record.fence != fence or record.status is not Status.RUNNING:
            return None
        if blamed is not None:
            last_ms = tx.journal(run, after=record.seq - 1)[-1].at_ms
            entry = e.RunRecovered(seq=record.seq + 1, at_ms=max(now_ms, last_ms), worker=blamed, fence=fence)
            tx.append(run, fence, (entry,), {})
        return tx.run(run)

    try:
        record = await worker.engine.store.transact(work)
    except FenceError:
        return  # another worker has it
    except UnavailableError as error:
        worker._reclaim(run, fence, str(error))
        return
    if record is None or run in worker.engine.hosts or worker.engine.is_draining:
        return
    if blamed is not None:
        log.warning("run %s is blamed for the end of its worker: %s", run, why)
    worker.begin(record)
