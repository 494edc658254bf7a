"""One attempt of a step, and what is recorded of its failure: the same in this process and in a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

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

Thread = Callable[..., Coroutine[Any, Any, Any]]


class ToldError(Exception):
    """A failure that a worker process has told: it is recorded as it was told."""

    def __init__(self, failure: e.Failure, *, is_final: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.is_final = is_final


async def attempt(step: Step[..., Any], arguments: bytes, thread: Thread | None) -> bytes:
    """One attempt: fresh arguments in, checked JSON out."""
    args, kwargs = step.decode_arguments(arguments)
    if step.timeout_ms is None:
        return step.encode_result(await _call(step, args, kwargs, thread))
    limit = asyncio.timeout(step.timeout_ms / 1000)
    try:
        async with limit:
            value = await _call(step, args, kwargs, thread)
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"step `{step.name}` took longer than {step.timeout_ms} ms"
        raise StepTimeoutError(message, step=step.name, timeout_ms=step.timeout_ms) from error
    return step.encode_result(value)


async def _call(step: Step[..., Any], args: list[Any], kwargs: dict[str, Any], thread: Thread | None) -> Any:
    if step.is_async:
        try:
            return await step.function(*args, **kwargs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StepError(f"step `{step.name}` cancelled itself") from error
    if thread is None:
        return step.function(*args, **kwargs)
    return await thread(step.function, *args, **kwargs)


def is_final(error: Exception, step: Step[..., Any]) -> bool:
    """Whether another attempt cannot help."""
    if isinstance(error, ToldError):
        return error.is_final
    return isinstance(error, (UsageError, RefusedError, ResultInvalidError, *step.give_up_on))


def failure_of(error: BaseException, code: str) -> e.Failure:
    """What a journal keeps of an exception: its code if it is ours, its type and a bounded message."""
    if isinstance(error, ToldError):
        return error.failure
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, PerdureError):
        return e.Failure(code=error.code, message=error.message[:ERROR_TEXT_MAX], type=name)
    return e.Failure(code=code, message=(str(error) or name)[:ERROR_TEXT_MAX], type=name)
