"""The run as its author sees it: every durable call, and nothing of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, overload

from perdure.agents.calls import Calls
from perdure.agents.codec import Codec, to_json
from perdure.agents.requests import (
    ActCall,
    AskCall,
    PublishCall,
    ReceiveCall,
    ResultCall,
    SendCall,
    SleepCall,
    SpawnCall,
    StateGetCall,
    StateSetCall,
    StepCall,
)
from perdure.agents.step import Step, as_step
from perdure.agents.workspace import RunWorkspace
from perdure.core.errors import OutsideRunError, UsageError
from perdure.core.ids import checked_name, checked_topic
from perdure.core.values import decode, digest
from perdure.ports import Tool

P = ParamSpec("P")
T = TypeVar("T")

_current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("perdure_run", default=None)


@dataclass(frozen=True, slots=True)
class Message:
    """A received message: its topic, body (plain data, or of the type asked for) and sender."""

    topic: str
    body: Any
    sender: str
    sent_ms: int


class Child:
    """A run that this run started."""

    def __init__(self, run: Run, child_id: str, agent: str) -> None:
        self.id = child_id
        self.agent = agent
        self._run = run

    def result(self, type: Any = Any) -> Awaitable[Any]:
        """Wait for the child's end.

        Args:
            type: what to read the result into; plain data by default.

        Raises:
            AgentFailedError, RunCancelledError, DeadlineExceededError: how it ended, if not with a result.
        """
        codec = Codec(type, f"the result of agent `{self.agent}`")
        return self._run.calls.issue(ResultCall(self.id, "", codec.read))

    def send(self, topic: str, body: Any = None) -> Awaitable[bool]:
        """Send a message to the child; whether it was still there to take it."""
        return self._run.send(self.id, topic, body)


class State:
    """The durable keys and values of the run's session (of the run alone, if it has no session)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[str, Any] = {}

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key. The first read is journaled; later ones are answered from memory."""
        checked_name("a key", key)
        if key not in self._known:
            self._known[key] = await self._run.calls.issue(StateGetCall(key, "", decode))
        data = self._known[key]
        return default if data is None else decode(data)

    async def set(self, key: str, value: Any) -> None:
        """Set a key, durably."""
        data = to_json(value)
        await self._run.calls.issue(StateSetCall(checked_name("a key", key), digest(data), decode, data))
        self._known[key] = data

    async def delete(self, key: str) -> None:
        """Forget a key."""
        await self._run.calls.issue(StateSetCall(checked_name("a key", key), "", decode, None))
        self._known[key] = None


class Run:
    """One durable execution. Every method that returns an awaitable takes its number in the journal when called."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._confidence: int | None = None
        self.state = State(self)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.calls.visible_id

    @property
    def session(self) -> str | None:
        """The key of its session."""
        return self.calls.session

    # -- work
    @overload
    def step(self, function: Step[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
    @overload
    def step(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]: ...
    @overload
    def step(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
    def step(self, function: Any, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Run a step and record its result: at least once until it is recorded, never again after that.

        Raises:
            StepNotPortableError: ``function`` is a lambda, closure or method (at once).
            InputInvalidError: an argument cannot be written as JSON (at once).
            StepFailedError: the last attempt failed.
        """
        chosen = as_step(function)
        arguments = chosen.encode_arguments(args, kwargs)
        return self.calls.issue(
            StepCall(chosen.name, digest(arguments), chosen.decode_result, chosen, arguments)
        )

    # -- actions
    def act(self, tool: str | Tool, /, **arguments: Any) -> Awaitable[Any]:
        """Use a tool through the gateway: judged, paid from the budget, recorded before and after.

        Dispatched at most once on our own account, unless the tool declares that it may be repeated. After a crash
        between dispatch and record an ``opaque`` tool is doubtful: the call waits until somebody decides.

        Args:
            tool: a tool, or the name of one of the agent's charter.
            arguments: by name.

        Returns:
            What the tool returned, as plain data.

        Raises:
            InputInvalidError: an argument cannot be written as JSON (at once).
            ToolUnknownError, ArgumentsInvalidError, BudgetExhaustedError, ToolChangedError: nothing was sent.
            ToolFailedError, ActionNotDoneError: how it ended.
        """
        data = to_json(arguments)
        name = tool if isinstance(tool, str) else tool.spec.name
        given = None if isinstance(tool, str) else tool
        return self.calls.issue(
            ActCall(name, digest(data), decode, "tool", data, "", given, self._confidence)
        )

    @contextlib.contextmanager
    def confidence(self, percent: int) -> Iterator[None]:
        """How sure the agent, or whoever checks it, is of what it does while this is entered.

        A runtime that asks for more (``confidence_min``) holds what is no read until a person has signed for it.

        Raises:
            UsageError: it is no percentage.
        """
        if not 0 <= percent <= 100:
            raise UsageError(f"a confidence is a percentage from 0 to 100, found {percent}")
        before, self._confidence = self._confidence, percent
        try:
            yield
        finally:
            self._confidence = before

    def model(
        self, model: str, messages: Any = None, *, endpoint: str = "chat/completions", **body: Any
    ) -> Awaitable[dict[str, Any]]:
        """Ask a model through the gateway, in the wire format of ``endpoint``.

        Args:
            model: the name of the model; some upstream of the configuration offers it.
            messages: the conversation, for ``chat/completions`` and ``messages``.
            endpoint: ``chat/completions``, ``responses``, ``embeddings`` or ``messages``.
            body: further fields of the request, as the provider documents them.

        Returns:
            The provider's answer, as plain data.

        Raises:
            ModelUnknownError, BudgetExhaustedError, UnpricedError: nothing was sent.
            UpstreamError: no upstream answered.
            ToolFailedError: the upstream refused the request (status 400 to 428).
        """
        asked = {"model": model, **({} if messages is None else {"messages": messages}), **body}
        data = to_json(asked)
        name = checked_name("a model", model)
        return self.calls.issue(ActCall(name, digest(data), decode, "model", data, endpoint))

    async def gather(self, *calls: Awaitable[T]) -> list[T]:
        """Wait for all; results in the order of the arguments. If one fails the others are cancelled."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def race(self, *calls: Awaitable[T]) -> T:
        """The result (or error) of the call that ends first, by the journal; the others are cancelled."""
        if not calls:
            raise UsageError("`race` needs at least one call")
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()

    # -- time
    def sleep(self, seconds: float) -> Awaitable[None]:
        """Wait; the run is parked meanwhile and takes no memory once evicted."""
        ms = _milliseconds(seconds)
        return self.calls.issue(SleepCall("", digest(str(ms).encode()), decode, ms))

    def now(self) -> datetime:
        """The time (UTC) of the last thing that the run saw; the same on every replay."""
        return datetime.fromtimestamp(self.calls.now_ms() / 1000, UTC)

    # -- messages
    def receive(
        self, topic: str, *, timeout: float | None = None, type: Any = Any
    ) -> Awaitable[Message | None]:
        """The oldest message of a topic in this run's mailbox; waits for one.

        Args:
            topic: which messages.
            timeout: seconds; ``None`` waits for ever.
            type: what to read the body into; plain data by default.

        Returns:
            The message, received by nobody else and never again, or ``None`` when the time is up.
        """
        codec = Codec(type, f"the body of topic `{topic}`")
        timeout_ms = None if timeout is None else _milliseconds(timeout)
        return self.calls.issue(ReceiveCall(checked_topic(topic), "", codec.read, timeout_ms))

    def send(self, to: str, topic: str, body: Any = None) -> Awaitable[bool]:
        """Put a message into another run's mailbox; whether that run was still there to take it."""
        data = to_json(body)
        key = digest(to.encode() + b"\0" + data)
        return self.calls.issue(SendCall(checked_topic(topic), key, decode, to, data))

    def publish(self, topic: str, body: Any = None, *, key: str | None = None) -> Awaitable[list[str]]:
        """Start a run, with ``body`` as its input, of each agent that subscribes to ``topic``.

        Args:
            topic: the topic.
            body: the input of the runs.
            key: the session of the runs, so that publications of one key are worked on one after the other.

        Returns:
            The ids of the runs.
        """
        data = to_json(body)
        return self.calls.issue(
            PublishCall(checked_topic(topic), digest((key or "").encode() + b"\0" + data), decode, data, key)
        )

    def ask(self, question: Any, *, timeout: float | None = None, type: Any = Any) -> Awaitable[Any]:
        """Put a question to a human and wait for the answer, which arrives as a message.

        Returns:
            The answer, read into ``type``, or ``None`` when ``timeout`` seconds have passed.
        """
        data = to_json(question)
        codec = Codec(type, "the answer to a question")
        timeout_ms = None if timeout is None else _milliseconds(timeout)
        return self.calls.issue(AskCall("", digest(data), codec.read, data, timeout_ms))

    # -- children
    async def spawn(
        self,
        agent: str,
        input: Any = None,
        *,
        session: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Child:
        """Start a child run; cancelling this run cancels it too.

        Raises:
            AgentUnknownError, InputInvalidError, SessionBusyError: the child was not accepted.
        """
        data = to_json(input)
        due_ms = None if deadline is None else _milliseconds(deadline)
        request = SpawnCall(
            checked_name("an agent", agent), digest(data), decode, data, session, priority, due_ms
        )
        return Child(self, await self.calls.issue(request), agent)

    # -- chance and change
    def random(self) -> float:
        """A number in [0, 1) that is the same on every replay."""
        return self.calls.chance(53) / (1 << 53)

    def uuid(self) -> uuid.UUID:
        """A version 4 UUID that is the same on every replay."""
        return uuid.UUID(int=self.calls.chance(128), version=4)  # the value is given: no chance is taken here

    def patched(self, name: str) -> bool:
        """Whether to take the new path of a deliberate change: yes for new runs, no for what was recorded before."""
        return self.calls.patched(checked_name("a patch", name))

    def emit(self, kind: str, data: Any) -> None:
        """Show something (a token, a percentage) to whoever watches live; not recorded."""
        self.calls.emit(kind, data)

    @property
    def workspace(self) -> RunWorkspace:
        """The files of this run, which sandboxed code works on; for agents whose charter names ``sandbox``."""
        return RunWorkspace(self)


def current_run() -> Run:
    """The run whose code is executing.

    Raises:
        OutsideRunError: none is.
    """
    found = _current.get()
    if found is None:
        raise OutsideRunError("no run is executing here; durable calls belong in an agent")
    return found


def enter_run(run: Run) -> None:
    """Make ``run`` the current one of this context; engines call it before they start the agent."""
    _current.set(run)


def has_run() -> bool:
    """Whether a run is executing here."""
    return _current.get() is not None


def _milliseconds(seconds: float) -> int:
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e11:
        raise UsageError(f"a duration must be a number of seconds from 0, found `{seconds!r}`")
    return round(seconds * 1000)
