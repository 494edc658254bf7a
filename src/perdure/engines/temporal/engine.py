"""The Temporal engine from outside: connect, work, start, talk to runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Self

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.agents.step import as_step
from perdure.core.errors import (
    DefinitionError,
    QuestionUnknownError,
    RunEndedError,
    RunUnknownError,
    UnavailableError,
)
from perdure.core.ids import checked_name, checked_topic, run_id
from perdure.core.limits import Settings
from perdure.core.values import decode
from perdure.engines.temporal.activity import Steps
from perdure.engines.temporal.wire import (
    ANSWER,
    MESSAGE,
    QUESTIONS,
    WORKFLOW,
    Head,
    MailHead,
    bounded,
    from_failure,
)
from perdure.engines.temporal.workflow import Hosting, RunWorkflow
from perdure.ports import Clock, Entropy


class TemporalEngine:
    """Starts runs on a Temporal cluster, and drives them where :meth:`worker` is entered. Made by :meth:`connect`."""

    def __init__(
        self, client: Client, queue: str, *, clock: Clock, entropy: Entropy, settings: Settings | None = None
    ) -> None:
        self.client = client
        self.queue = queue
        self.settings = settings or Settings()
        self._clock = clock
        self._entropy = entropy

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        clock: Clock,
        entropy: Entropy,
        namespace: str = "default",
        queue: str = "perdure",
        settings: Settings | None = None,
    ) -> Self:
        """An engine on the cluster at ``host:port``; runs and workers meet on the task queue ``queue``.

        Raises:
            UnavailableError: no cluster answers there.
        """
        try:
            client = await Client.connect(address, namespace=namespace)
        except RuntimeError as error:
            raise UnavailableError(f"no Temporal cluster answers at `{address}`: {error}") from error
        return cls(client, queue, clock=clock, entropy=entropy, settings=settings)

    @asynccontextmanager
    async def worker(self, agents: Sequence[Agent], steps: Sequence[Any] = ()) -> AsyncIterator[None]:
        """Drive runs of ``agents`` and run ``steps`` (steps or plain functions) until the block is left.

        Raises:
            DefinitionError: two agents or steps have one name, or an agent has no code.
        """
        known = _by_name("agents", agents)
        if bare := [item.name for item in agents if item.handler is None]:
            raise DefinitionError(f"agent `{bare[0]}` has no code; bind it first", agent=bare[0])
        registry = _by_name("steps", [as_step(item) for item in steps])
        lease = timedelta(milliseconds=self.settings.lease_ms)
        worker = Worker(
            self.client,
            task_queue=self.queue,
            workflows=[RunWorkflow],
            activities=[Steps(registry).attempt],
            interceptors=[Hosting(known)],
            workflow_runner=UnsandboxedWorkflowRunner(),  # agents and steps share modules, as on the embedded engine
            max_concurrent_activities=self.settings.concurrency,
            sticky_queue_schedule_to_start_timeout=lease,
            max_heartbeat_throttle_interval=lease / 4,
            graceful_shutdown_timeout=timedelta(milliseconds=self.settings.drain_ms),
        )
        async with worker:
            yield

    async def start(
        self,
        agent: str,
        input: Any = None,
        *,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> str:
        """Accept a run, durably on return; its id, which is the workflow's.

        A second start of the agent with the same key gives the same run while the cluster keeps its history. Input
        that does not fit fails the run, not the start: only the worker knows the agent.
        """
        now_ms = self._clock.now_ms()
        if idempotency_key is None:
            chosen = run_id(now_ms, self._entropy.bits(60))
        else:
            chosen = f"{agent}/{checked_name('an idempotency key', idempotency_key)}"
        due_ms = None if deadline is None else now_ms + round(deadline * 1000)
        head = Head(checked_name("an agent", agent), due_ms, self.settings.lease_ms)
        try:
            await self.client.start_workflow(
                WORKFLOW, args=[head, bounded(to_json(input))], id=chosen, task_queue=self.queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE, static_summary=agent,
            )  # fmt: skip
        except WorkflowAlreadyStartedError:
            return chosen
        except RPCError as error:
            raise _translated(error, chosen) from error
        return chosen

    async def send(
        self, run: str, topic: str, body: Any = None, *, key: str | None = None, sender: str = ""
    ) -> None:
        """Put a message into a run's mailbox, durably on return.

        Raises:
            RunUnknownError, RunEndedError: nobody would read it.
        """
        head = MailHead(checked_topic(topic), sender, key)
        try:
            await self._handle(run).signal(MESSAGE, args=[head, bounded(to_json(body))])
        except RPCError as error:
            raise _translated(error, run) from error

    async def questions(self, run: str) -> dict[int, Any]:
        """What the run asks now, by the number of the call. Needs a worker."""
        try:
            found: dict[str, str] = await self._handle(run).query(QUESTIONS, result_type=dict[str, str])
        except RPCError as error:
            raise _translated(error, run) from error
        return {int(call): decode(text.encode()) for call, text in found.items()}

    async def answer(self, run: str, call: int, body: Any) -> None:
        """Answer a question. Needs a worker.

        Raises:
            QuestionUnknownError: that call asks nothing, or was answered.
        """
        try:
            await self._handle(run).execute_update(ANSWER, args=[call, bounded(to_json(body))])
        except WorkflowUpdateFailedError as error:
            raise QuestionUnknownError(
                f"run `{run}` has no open question in call {call}", run=run, call=call
            ) from error
        except RPCError as error:
            raise _translated(error, run) from error

    async def cancel(self, run: str, reason: str = "cancelled by the caller") -> None:
        """Ask a run and its children to stop; nothing for one that has ended.

        Raises:
            RunUnknownError: there is no such run.
        """
        try:
            await self._handle(run).cancel(reason=reason)
        except RPCError as error:
            failure = _translated(error, run)
            if not isinstance(failure, RunEndedError):
                raise failure from error

    async def result(self, run: str, timeout: float | None = None) -> Any:
        """Wait for the end and return the result as plain data; raises as ``RunHandle.result`` does."""
        handle = self.client.get_workflow_handle(run, result_type=bytes)
        try:
            async with asyncio.timeout(timeout):
                return decode(await handle.result())
        except WorkflowFailureError as error:
            raise from_failure(error.cause, "agent-failed", run=run) from error
        except RPCError as error:
            raise _translated(error, run) from error

    def _handle(self, run: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(run)


def _by_name(what: str, items: Sequence[Any]) -> Mapping[str, Any]:
    known: dict[str, Any] = {}
    for item in items:
        if known.setdefault(item.name, item) is not item:
            raise DefinitionError(f"two {what} are called `{item.name}`; names must differ")
    return known


def _translated(error: RPCError, run: str) -> Exception:
    if error.status is not RPCStatusCode.NOT_FOUND:
        return UnavailableError(f"the Temporal cluster did not answer: {error}")
    if "already completed" in str(error):
        return RunEndedError(f"run `{run}` has ended", run=run)
    return RunUnknownError(f"no run has the id `{run}`", run=run)
