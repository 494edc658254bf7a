"""Steps on Temporal: one generic activity makes one attempt of any registered step.

It heartbeats while the step works, so that the loss of a worker is noticed within the lease. Such a loss is not an
attempt of the step: the cluster runs the activity again, as often as needed. What the step itself raises comes back to
the run, which decides about the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from temporalio import activity

from perdure.agents.step import Step
from perdure.core.errors import (
    DefinitionError,
    RefusedError,
    ResultInvalidError,
    StepError,
    StepTimeoutError,
    UsageError,
)
from perdure.engines.temporal.wire import STEP, bounded, to_failure

BEATS_PER_LEASE = 4  # one lost heartbeat must not look like a lost worker


class Steps:
    """The steps that a worker can run, by name."""

    def __init__(self, steps: Mapping[str, Step[..., Any]]) -> None:
        self._steps = steps

    @activity.defn(name=STEP)
    async def attempt(self, name: str, arguments: bytes) -> bytes:
        """One attempt: JSON arguments in, JSON result out."""
        beating = asyncio.create_task(_beat())  # owned by this call: ended in the ``finally``
        give_up_on: tuple[type[Exception], ...] = ()
        try:
            step = self._steps.get(name)
            if step is None:
                raise DefinitionError(f"no step is called `{name}` here; give it to the worker", step=name)
            give_up_on = step.give_up_on
            return bounded(await _run(step, arguments))
        except Exception as error:
            final = isinstance(error, (UsageError, RefusedError, ResultInvalidError, *give_up_on))
            raise to_failure(error, "step-failed", is_final=final) from error
        finally:
            beating.cancel()


async def _beat() -> None:
    lease = activity.info().heartbeat_timeout
    if lease is not None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(lease.total_seconds() / BEATS_PER_LEASE)


async def _run(step: Step[..., Any], arguments: bytes) -> bytes:
    args, kwargs = step.decode_arguments(arguments)
    limit = asyncio.timeout(None if step.timeout_ms is None else step.timeout_ms / 1000)
    try:
        async with limit:
            if step.is_async:
                value = await step.function(*args, **kwargs)
            else:
                value = await asyncio.to_thread(step.function, *args, **kwargs)
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"step `{step.name}` took longer than {step.timeout_ms} ms"
        raise StepTimeoutError(message, step=step.name, timeout_ms=step.timeout_ms) from error
    except asyncio.CancelledError as error:
        if activity.is_cancelled() or activity.is_worker_shutdown():
            raise
        raise StepError(f"step `{step.name}` cancelled itself") from error
    return step.encode_result(value)
