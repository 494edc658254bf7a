"""The durable calls of a run inside a workflow: implements ``Calls`` with Temporal's own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    is_cancelled_exception,
)

from perdure.agents import requests as r
from perdure.agents.agent import Agent
from perdure.agents.run import Message
from perdure.core.errors import (
    AgentUnknownError,
    DefinitionError,
    OutsideRunError,
    RunUnknownError,
    StepFailedError,
    UsageError,
    step_failed,
)
from perdure.core.ids import child_id
from perdure.core.limits import CALLS_OPEN_MAX
from perdure.engines.temporal.wire import MESSAGE, STEP, WORKFLOW, Head, MailHead, bounded, from_failure
from perdure.kernel.retry import JITTER_BITS, delay_ms

FOR_EVER = timedelta(days=3_650)  # a step without a timeout; Temporal wants a number
_Mail = tuple[MailHead, bytes, int]


class WorkflowCalls:
    """``Calls`` of one workflow, and its mailbox, state and open questions."""

    def __init__(self, run_id: str, head: Head) -> None:
        self.agents: Mapping[str, Agent] = {}
        self.questions: dict[int, bytes] = {}
        self._run_id = run_id
        self._head = head
        self._next = 1
        self._open = 0
        self._boxes: dict[str, deque[_Mail]] = {}
        self._readers: dict[str, deque[object]] = {}
        self._keys: set[str] = set()
        self._state: dict[str, bytes | None] = {}
        self._children: dict[str, workflow.ChildWorkflowHandle[Any, Any]] = {}

    # -- the port
    @property
    def visible_id(self) -> str:
        """The id that the agent's code sees: always its own, as nothing is forked here."""
        return self._run_id

    @property
    def session(self) -> str | None:
        """None: this engine has no sessions yet."""
        return None

    def issue(self, request: r.Request) -> asyncio.Future[Any]:
        """Give the call the next number, now; its commands follow in the order of the calls."""
        if not workflow.in_workflow() or workflow.info().workflow_id != self._run_id:
            raise OutsideRunError(f"`{request.kind}` was called outside the code of run `{self._run_id}`")
        if self._open >= CALLS_OPEN_MAX:
            raise UsageError(
                f"more than {CALLS_OPEN_MAX} durable calls are open at once; gather in smaller groups"
            )
        number = self._next
        self._next += 1
        self._open += 1
        call = asyncio.ensure_future(self._perform(number, request))
        call.add_done_callback(self._closed)
        return call

    def now_ms(self) -> int:
        """The time of the current workflow task."""
        return workflow.time_ns() // 1_000_000

    def chance(self, bits: int) -> int:
        """Bits from the workflow's own seeded generator."""
        return workflow.random().getrandbits(bits)

    def patched(self, name: str) -> bool:
        """Temporal's own marker."""
        return workflow.patched(name)

    def emit(self, kind: str, data: Any) -> None:
        """Nothing: this engine shows nothing live yet."""

    # -- from outside
    def put(self, head: MailHead, body: bytes) -> None:
        """Put a message into the mailbox, once per key."""
        if head.key is not None:
            if head.key in self._keys:
                return
            self._keys.add(head.key)
        self._boxes.setdefault(head.topic, deque()).append((head, body, self.now_ms()))

    def is_open(self, call: int) -> bool:
        """Whether call ``call`` asks and was not answered."""
        return call in self.questions and not self._boxes.get(f"{r.ANSWER_TOPIC}{call}")

    def answer(self, call: int, body: bytes) -> None:
        """Answer a question."""
        self.put(MailHead(f"{r.ANSWER_TOPIC}{call}"), body)

    def cancel_children(self) -> None:
        """Ask every child that has not ended to stop."""
        for child in self._children.values():
            child.cancel()

    # -- calls
    def _closed(self, _: asyncio.Future[Any]) -> None:
        self._open -= 1

    async def _perform(self, number: int, request: r.Request) -> Any:
        match request:
            case r.StepCall():
                return await self._step(request)
            case r.SleepCall(ms=ms):
                return await workflow.sleep(ms / 1000)
            case r.ReceiveCall(name=topic, timeout_ms=timeout_ms):
                mail = await self._receive(topic, timeout_ms)
                if mail is None:
                    return None
                return Message(topic, request.read(mail[1]), mail[0].sender, mail[2])
            case r.AskCall():
                return await self._ask(number, request)
            case r.SendCall():
                return await self._send(number, request)
            case r.SpawnCall():
                if request.session is not None:
                    raise DefinitionError("the Temporal engine has no sessions; spawn the run without one")
                return await self._spawn(
                    child_id(self._run_id, number), request.name, request.input, request.deadline_ms
                )
            case r.PublishCall():
                return await self._publish(number, request)
            case r.ResultCall():
                return await self._result(request)
            case _:
                return self._keep(request)

    def _keep(self, request: r.Request) -> bytes | None:
        """State lasts as long as the run: it is replayed with it."""
        match request:
            case r.StateGetCall(name=key):
                return self._state.get(key)
            case r.StateSetCall(name=key, value=value):
                self._state[key] = value
                return None
            case _:
                raise UsageError(f"the Temporal engine knows no call `{request.kind}`")

    async def _step(self, request: r.StepCall) -> Any:
        """One activity per attempt: only what the step itself raises counts as one."""
        step = request.step
        lease = timedelta(milliseconds=self._head.lease_ms)
        limit = FOR_EVER if step.timeout_ms is None else timedelta(milliseconds=step.timeout_ms) + lease
        again = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=lease)
        bounded(request.arguments)
        attempt = 1
        while True:
            try:
                data = await workflow.execute_activity(
                    STEP, args=[step.name, request.arguments], result_type=bytes, summary=step.name,
                    start_to_close_timeout=limit, heartbeat_timeout=lease, retry_policy=again,
                )  # fmt: skip
                return request.read(data)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise asyncio.CancelledError from error
                cause = error.cause
                is_final = not isinstance(cause, ApplicationError) or bool(
                    cause.details[1:] and cause.details[1]
                )
                if is_final or attempt > step.retries:
                    failed = from_failure(cause, "step-failed", step=step.name, attempts=attempt)
                    if type(failed) is StepFailedError:
                        kind = str(failed.facts.get("type", "no answer"))
                        failed = step_failed(step.name, attempt, kind, failed.message)
                    raise failed from error
            wait_ms = delay_ms(
                attempt, first_ms=step.backoff_ms, max_ms=step.backoff_ms_max, chance=self.chance(JITTER_BITS)
            )
            await workflow.sleep(wait_ms / 1000)
            attempt += 1

    async def _receive(self, topic: str, timeout_ms: int | None) -> _Mail | None:
        """The oldest message of a topic; those who wait for one get them in the order of their calls."""
        box = self._boxes.setdefault(topic, deque())
        readers = self._readers.setdefault(topic, deque())
        me = object()
        readers.append(me)
        try:
            timeout = None if timeout_ms is None else timeout_ms / 1000
            if not (box and readers[0] is me):
                await workflow.wait_condition(lambda: bool(box) and readers[0] is me, timeout=timeout)
        except TimeoutError:
            if not (box and readers[0] is me):
                return None
        finally:
            readers.remove(me)
        return box.popleft()

    async def _ask(self, number: int, request: r.AskCall) -> Any:
        self.questions[number] = request.question
        try:
            mail = await self._receive(f"{r.ANSWER_TOPIC}{number}", request.timeout_ms)
        finally:
            del self.questions[number]
        return None if mail is None else request.read(mail[1])

    async def _send(self, number: int, request: r.SendCall) -> bool:
        head = MailHead(request.name, self._run_id, f"{self._run_id}/{number}")
        target = workflow.get_external_workflow_handle(request.to)
        try:
            await target.signal(MESSAGE, args=[head, bounded(request.body)])
        except FailureError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            return False  # no such run, or it has ended
        return True

    async def _spawn(self, run_id: str, agent: str, data: bytes, deadline_ms: int | None) -> str:
        known = self.agents.get(agent)
        if known is None:
            raise AgentUnknownError(f"no agent is called `{agent}`; register it with the worker")
        known.parameters.read_input(data)
        due_ms = None if deadline_ms is None else self.now_ms() + deadline_ms
        head = replace(self._head, agent=agent, deadline_ms=due_ms)
        self._children[run_id] = await workflow.start_child_workflow(
            WORKFLOW, args=[head, bounded(data)], id=run_id, result_type=bytes, static_summary=agent,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
        )  # fmt: skip
        return run_id

    async def _publish(self, number: int, request: r.PublishCall) -> list[str]:
        if request.key is not None:
            raise DefinitionError("the Temporal engine has no sessions; publish without a key")
        names = sorted(agent.name for agent in self.agents.values() if request.name in agent.subscribes)
        base = child_id(self._run_id, number)
        started = [
            await self._spawn(f"{base}.{index}", name, request.body, None) for index, name in enumerate(names)
        ]
        for run in started:
            del self._children[run]  # no children: they are not cancelled with this run
        return started

    async def _result(self, request: r.ResultCall) -> Any:
        child = self._children.get(request.name)
        if child is None:
            raise RunUnknownError(f"run `{request.name}` is no child of this one", run=request.name)
        try:
            return request.read(
                await asyncio.shield(child)
            )  # giving up on the result must not cancel the child
        except ChildWorkflowError as error:
            raise from_failure(error.cause, "agent-failed", child=request.name) from error
