"""Running a step: one attempt after the other, each failure and the end recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perdure.agents.requests import StepCall
from perdure.agents.step import Step
from perdure.core import entries as e
from perdure.core.errors import (
    PerdureError,
    RefusedError,
    ResultInvalidError,
    StepError,
    StepTimeoutError,
    UsageError,
)
from perdure.core.limits import ERROR_TEXT_MAX
from perdure.core.values import pack
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
        attempt = open_call.attempt + 1
        telemetry = worker.engine.telemetry
        try:
            if telemetry.is_on:
                attributes: dict[str, str | int | float | bool] = {
                    "perdure.run": host.run_id,
                    "perdure.step": step.name,
                    "perdure.attempt": attempt,
                }
                with telemetry.span("perdure.step", attributes):
                    data = await _attempt(worker, step, request.arguments)
            else:
                data = await _attempt(worker, step, request.arguments)
            result, blobs = pack(data, worker.engine.settings.payload_bytes_max)
        except Exception as error:  # noqa: BLE001 - the step's own error: recorded, and raised in the agent
            if not await _failed(worker, host, open_call, error, attempt):
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
                attempt=attempt,  # noqa: B023
            )
            return record(tx, host, entry, blobs)  # noqa: B023

        worker.deliver(host, await worker.engine.store.transact(complete))
        return


async def _attempt(worker: Worker, step: Step[..., Any], arguments: bytes) -> bytes:
    """One attempt: fresh arguments in, checked JSON out."""
    args, kwargs = step.decode_arguments(arguments)
    if step.timeout_ms is None:
        return step.encode_result(await _call(worker, step, args, kwargs))
    limit = asyncio.timeout(step.timeout_ms / 1000)
    try:
        async with limit:
            value = await _call(worker, step, args, kwargs)
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"step `{step.name}` took longer than {step.timeout_ms} ms"
        raise StepTimeoutError(message, step=step.name, timeout_ms=step.timeout_ms) from error
    return step.encode_result(value)


async def _call(worker: Worker, step: Step[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    if step.is_async:
        try:
            return await step.function(*args, **kwargs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StepError(f"step `{step.name}` cancelled itself") from error
    thread = worker.engine.thread
    if thread is None:
        return step.function(*args, **kwargs)
    return await thread(step.function, *args, **kwargs)


async def _failed(worker: Worker, host: Host, open_call: OpenCall, error: Exception, attempt: int) -> bool:
    """Record a failed attempt; whether the next one begins in this task."""
    request = open_call.request
    if not isinstance(request, StepCall):
        return False
    step = request.step
    final = attempt > step.retries or _is_final(error, step)
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


def _is_final(error: Exception, step: Step[..., Any]) -> bool:
    return isinstance(error, (UsageError, RefusedError, ResultInvalidError, *step.give_up_on))


def failure_of(error: BaseException, code: str) -> e.Failure:
    """What a journal keeps of an exception: its code if it is ours, its type and a bounded message."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, PerdureError):
        return e.Failure(code=error.code, message=error.message[:ERROR_TEXT_MAX], type=name)
    return e.Failure(code=code, message=(str(error) or name)[:ERROR_TEXT_MAX], type=name)
