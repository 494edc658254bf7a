"""Running a step: one attempt after the other, each failure and the end recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perdure.agents.requests import StepCall
from perdure.core import entries as e
from perdure.core.values import pack
from perdure.engines.embedded.attempts import attempt, failure_of, is_final
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.waits import position, record
from perdure.kernel.retry import JITTER_BITS, delay_ms
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

PARK_BACKOFF_MS = 1_000  # longer waits between attempts let the run be parked


async def run_step(worker: Worker, host: Host, open_call: OpenCall) -> None:
    """Run one attempt of a step and record how it ended; a short wait and the next attempt follow in the same task."""
    request = open_call.request
    if not isinstance(request, StepCall):
        return
    step = request.step
    while True:
        number = open_call.attempt + 1
        telemetry = worker.engine.telemetry
        try:
            if telemetry.is_on:
                attributes: dict[str, str | int | float | bool] = {
                    "perdure.run": host.run_id,
                    "perdure.step": step.name,
                    "perdure.attempt": number,
                }
                with telemetry.span("perdure.step", attributes):
                    data = await _attempt(worker, host, open_call, request, number)
            else:
                data = await _attempt(worker, host, open_call, request, number)
            result, blobs = pack(data, worker.engine.settings.payload_bytes_max)
        except Exception as error:  # noqa: BLE001 - the step's own error: recorded, and raised in the agent
            if not await _failed(worker, host, open_call, error, number):
                return
            continue
        now_ms = worker.wall_ms()
        open_call.is_recording = True

        def complete(tx: Transaction) -> e.Entry:
            entry = e.StepCompleted(
                seq=host.seq + 1,
                at_ms=max(now_ms, host.at_ms),  # noqa: B023 - the work ends before the loop goes on
                call=open_call.number,
                name=request.name,
                digest=request.digest,
                result=result,  # noqa: B023
                attempt=number,  # noqa: B023
            )
            return record(tx, host, entry, blobs)  # noqa: B023

        worker.deliver(host, await worker.engine.store.transact(complete))
        return


async def _attempt(worker: Worker, host: Host, open_call: OpenCall, request: StepCall, number: int) -> bytes:
    """Here, or where the code of the run is."""
    if host.attempts is not None:
        return await host.attempts(open_call, number)
    step = request.step
    return await attempt(step, request.arguments, worker.engine.thread)


async def _failed(worker: Worker, host: Host, open_call: OpenCall, error: Exception, attempt: int) -> bool:
    """Record a failed attempt; whether the next one begins in this task."""
    request = open_call.request
    if not isinstance(request, StepCall):
        return False
    step = request.step
    final = attempt > step.retries or is_final(error, step)
    now_ms = worker.wall_ms()
    wait_ms = 0 if final else delay_ms(
        attempt, first_ms=step.backoff_ms, max_ms=step.backoff_ms_max, chance=worker.engine.entropy.bits(JITTER_BITS)
    )  # fmt: skip
    failure = failure_of(error, "step-failed")

    def work(tx: Transaction) -> e.Entry:
        common: dict[str, Any] = {
            **position(host, now_ms),
            "call": open_call.number,
            "name": request.name,
            "digest": request.digest,
            "attempt": attempt,
            "error": failure,
        }
        entry = e.StepFailed(**common) if final else e.StepRetried(**common, due_ms=now_ms + wait_ms)
        return record(tx, host, entry)

    open_call.is_recording = True
    entry = await worker.engine.store.transact(work)
    open_call.is_recording = False
    stays = not final and wait_ms < PARK_BACKOFF_MS
    if stays:
        open_call.attempt = attempt
        worker.deliver(host, entry)
        await asyncio.sleep(wait_ms / 1000)
        open_call.due_ms = None
        return not host.is_closed
    open_call.task = None
    worker.deliver(host, entry)
    return False
