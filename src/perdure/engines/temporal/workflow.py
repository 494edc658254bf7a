"""One generic workflow that hosts the code of any agent, by name.

The agent's code runs on Temporal's own deterministic loop; each durable call is a task of it that was given its number
when it was issued. The agents of a worker come in through an interceptor, so there is no global registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.agents.run import Run, enter_run
from perdure.core.errors import (
    AgentUnknownError,
    DeadlineExceededError,
    InputInvalidError,
    ResultInvalidError,
    RunCancelledError,
)
from perdure.engines.temporal.calls import WorkflowCalls
from perdure.engines.temporal.wire import (
    ANSWER,
    MESSAGE,
    QUESTIONS,
    WORKFLOW,
    Head,
    MailHead,
    bounded,
    to_failure,
)

_agents: ContextVar[Mapping[str, Agent]] = ContextVar("perdure_temporal_agents")


class Hosting(Interceptor):
    """Tells every workflow of a worker which agents there are."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._known = agents

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: ARG002 - Temporal's name
    ) -> type[WorkflowInboundInterceptor]:
        """A class that puts the agents into the workflow's context."""
        known = self._known

        class Inbound(WorkflowInboundInterceptor):
            async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
                _agents.set(known)
                return await super().execute_workflow(input)

        return Inbound


# Any exception fails the run, visibly; by default Temporal would repeat the workflow task for ever. That is also so
# for a replay that does not match.
@workflow.defn(name=WORKFLOW, failure_exception_types=[Exception])
class RunWorkflow:
    """A run of an agent."""

    @workflow.init
    def __init__(self, head: Head, data: bytes) -> None:  # noqa: ARG002 - the signature of ``run``
        self._calls = WorkflowCalls(workflow.info().workflow_id, head)

    @workflow.signal(name=MESSAGE)
    def message(self, head: MailHead, body: bytes) -> None:
        """Take a message into the mailbox."""
        self._calls.put(head, body)

    @workflow.query(name=QUESTIONS)
    def questions(self) -> dict[str, str]:
        """Open questions: JSON by the number of the call."""
        return {str(call): body.decode() for call, body in sorted(self._calls.questions.items())}

    @workflow.update(name=ANSWER)
    def answer(self, call: int, body: bytes) -> None:
        """Answer a question; refused if none is open there."""
        self._calls.answer(call, body)

    @answer.validator
    def _is_asked(self, call: int, body: bytes) -> None:  # noqa: ARG002 - the signature of ``answer``
        if not self._calls.is_open(call):
            raise ApplicationError(f"call {call} asks nothing", type="question-unknown")

    @workflow.run
    async def run(self, head: Head, data: bytes) -> bytes:
        """Run the agent to its end; its result as JSON."""
        known = _agents.get()
        self._calls.agents = known
        try:
            agent = known.get(head.agent)
            if agent is None or agent.handler is None:
                raise AgentUnknownError(f"no agent is called `{head.agent}`; register it with the worker")
            args, kwargs = agent.parameters.read_input(data)
            run = Run(self._calls)
            enter_run(run)
            main = asyncio.ensure_future(agent.handler(run, *args, **kwargs))
            stopped = await self._follow(main, head.deadline_ms)
            return _result(agent, main, stopped)
        except asyncio.CancelledError:
            raise  # the caller's wish: the workflow ends as cancelled
        except Exception as error:
            raise to_failure(error, "agent-failed") from error

    async def _follow(self, main: asyncio.Future[Any], deadline_ms: int | None) -> Exception | None:
        """Wait for the agent's end and tell it to stop when asked; why it was told, if it was."""
        stopped: Exception | None = None
        while not main.done():
            timeout = None
            if deadline_ms is not None and stopped is None:
                timeout = max(0.0, deadline_ms / 1000 - workflow.time())
            try:
                await asyncio.wait({main}, timeout=timeout)
                if main.done():
                    break
                stopped = DeadlineExceededError("the deadline passed")
            except asyncio.CancelledError:
                stopped = stopped or RunCancelledError(workflow.cancellation_reason() or "cancelled")
            self._calls.cancel_children()
            main.cancel(str(stopped))
        return stopped


def _result(agent: Agent, main: asyncio.Future[Any], stopped: Exception | None) -> bytes:
    """The result of an agent's code as JSON, or the error with which the run ends."""
    error = None if main.cancelled() else main.exception()
    if main.cancelled() or (stopped is not None and isinstance(error, TimeoutError)):
        if isinstance(stopped, RunCancelledError):
            raise asyncio.CancelledError(stopped.message)
        raise stopped or RunCancelledError("the agent cancelled itself")
    if error is not None:
        raise error
    try:
        data = to_json(main.result())
        agent.result.read(data)
    except (InputInvalidError, ValueError) as problem:
        text = problem.message if isinstance(problem, InputInvalidError) else str(problem)
        raise ResultInvalidError(f"the result of agent `{agent.name}` does not fit: {text}") from problem
    return bounded(data)
