"""A step whose body is a live object: what a framework hands over to be run once and remembered.

Ordinary steps are module-level functions with JSON arguments, so that they can be found again after a restart. Here the
agent's own code makes the body again on replay, so only its result must go through the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.agents.codec import to_json
from perdure.agents.step import Step
from perdure.core.errors import InputInvalidError, ResultInvalidError

Body = Callable[[], Awaitable[object]]
Judge = Callable[[Exception], float | None]  # seconds to wait at least before the next attempt; None: give up

NAME_MAX = 200
_inside: ContextVar[bool] = ContextVar("perdure_live_step", default=False)


def in_live_step() -> bool:
    """Whether this is the body of a live step: outside the run's own code."""
    return _inside.get()


@dataclass(frozen=True, slots=True)
class Policy:
    """How a live step is retried.

    Attributes:
        retries: attempts after the first.
        timeout_ms: how long one attempt may take.
        backoff_ms: the wait before the second attempt; doubles after each.
        backoff_ms_max: the longest wait.
        give_up_on: exceptions that end it at once.
        judge: looks at each failure; by default every failure is worth a retry.
    """

    retries: int = 0
    timeout_ms: int | None = None
    backoff_ms: int = 500
    backoff_ms_max: int = 60_000
    give_up_on: tuple[type[Exception], ...] = ()
    judge: Judge | None = None


def policy_of(step: Step[..., Any]) -> Policy:
    """The policy of an ordinary step."""
    return Policy(step.retries, step.timeout_ms, step.backoff_ms, step.backoff_ms_max, step.give_up_on)


class LiveStep(Step[[], Any]):
    """Runs ``body`` on the engine's loop, in the context of the agent code that asked for it."""

    def __init__(
        self, name: str, body: Body, policy: Policy, context: Context
    ) -> None:  # a function is not needed
        self.name = name[:NAME_MAX]
        self.function = self._run
        self.is_async = True
        self.retries = policy.retries
        self.timeout_ms = policy.timeout_ms
        self.backoff_ms = policy.backoff_ms
        self.backoff_ms_max = policy.backoff_ms_max
        self.give_up_on = policy.give_up_on
        self.was_run = False  # in this process: not merely replayed
        self._body = body
        self._policy = policy
        self._context = context

    async def _run(self) -> object:
        self.was_run = True

        async def body() -> object:
            _inside.set(True)  # in a context of its own
            return await self._body()

        try:
            return await asyncio.create_task(body(), context=self._context.copy())
        except Exception as error:
            self._judge(error)
            raise

    def _judge(self, error: Exception) -> None:
        """Set when the next attempt follows; the engine takes up to half of the wait away, so ask for twice as much."""
        if self._policy.judge is None:
            return
        wait_s = self._policy.judge(error)
        if wait_s is None:
            self.retries = 0
        elif wait_s > 0:
            self.backoff_ms = self.backoff_ms_max = round(wait_s * 2_000)
        else:
            self.backoff_ms, self.backoff_ms_max = self._policy.backoff_ms, self._policy.backoff_ms_max

    def decode_arguments(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:  # noqa: ARG002
        """None: the body has them."""
        return [], {}

    def encode_result(self, value: Any) -> bytes:
        """The result as JSON.

        Raises:
            ResultInvalidError: JSON cannot hold it.
        """
        try:
            return to_json(value)
        except InputInvalidError as error:
            raise ResultInvalidError(f"the result of `{self.name}` does not fit: {error.message}") from error

    def decode_result(self, data: bytes | msgspec.Raw) -> Any:
        """Plain data."""
        return msgspec.json.decode(data)
