"""The engine that Pydantic AI sees: each of its durable units becomes a durable call of the current run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic_ai import exceptions as x
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    CallableOperationBackend,
    DurabilityEngineSpec,
    DurableOperationId,
    JournalOperationNamer,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    record_durable_unit,
)
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessagesTypeAdapter,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.tools import RunContext

from perdure.agents.requests import StepCall
from perdure.agents.run import current_run, has_run
from perdure.core.values import decode, digest
from perdure.models.live_step import LiveStep, Policy, in_live_step

TRANSIENT = (
    x.ModelRateLimitError, x.ModelUnavailableError, x.ModelServerError, x.ModelConnectionError, x.ModelRequestTimeout,
    TimeoutError, ConnectionError,
)  # fmt: skip
TRANSIENT_STATUS = (408, 409, 425, 429)
MODEL_RETRIES = 5
RETRY_AFTER_MAX_S = 1_800.0
IN_RUN = "run"  # value of a tool's metadata key `perdure`: the tool is code of the run itself
_anything: TypeAdapter[Any] = TypeAdapter(Any)


def judge_model_error(error: Exception) -> float | None:
    """Whether a failed model request is worth another (rate limits, overload, timeouts), and after how many seconds."""
    status = getattr(error, "status_code", None)
    by_status = isinstance(status, int) and (status in TRANSIENT_STATUS or status >= 500)
    if isinstance(error, x.ModelQuotaExceededError) or not (by_status or isinstance(error, TRANSIENT)):
        return None
    headers = getattr(error, "headers", None) or {}
    try:
        return min(RETRY_AFTER_MAX_S, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:
        return 0.0  # a date: the usual backoff will do


MODEL_POLICY = Policy(retries=MODEL_RETRIES, backoff_ms=1_000, judge=judge_model_error)


def timeless(messages: Any) -> list[Any]:
    """Messages as plain data without the times that would differ on replay."""
    data: list[Any] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    for message in data:
        message.pop("timestamp", None)
        for part in message["parts"]:
            part.pop("timestamp", None)
    return data


def entry_name(operation_id: DurableOperationId, name: str, cache_key: tuple[object, ...]) -> str:
    """A unit's name as a person reads it in a journal: ``model openai:gpt-5``, ``tool search``."""
    match operation_id:
        case ModelRequestId(model_id=model_id, model_name=model_name):
            return f"model {model_id or model_name}"
        case ToolsetCallToolId():
            return f"tool {cache_key[0]}"
        case _:
            return name


class Backend(CallableOperationBackend[Policy]):
    """Runs a unit as a step of the current run."""

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: Policy,
    ) -> object:
        """Issue the unit as a durable call; on replay its result comes from the journal and ``body`` is not called."""
        run = current_run()
        step = LiveStep(entry_name(operation_id, name, cache_key), body, config, copy_context())
        key = _identity(operation_id, cache_key)
        result = await run.calls.issue(StepCall(step.name, digest(key), decode, step, b"[[]]"))
        record_durable_unit(executed=step.was_run)
        return result


def _identity(operation_id: DurableOperationId, cache_key: tuple[object, ...]) -> bytes:
    """What must be the same on replay: what a model is asked, what a tool is called with."""
    kept: Any
    match operation_id:
        case ModelRequestId():
            model_id, messages, settings = cache_key[:3]
            kept = [model_id, timeless(messages), _plain(settings)]
        case ToolsetCallToolId():
            kept = _plain(cache_key[:2])
        case _:
            kept = []
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: object) -> Any:
    return _anything.dump_python(value, mode="json", fallback=lambda item: type(item).__qualname__)


@dataclass(init=False, kw_only=True)
class PerdureDurability(BaseDurabilityCapability[Any]):
    """Makes a Pydantic AI agent durable inside a run; elsewhere it changes nothing.

    Args:
        tools: policies of tools, by name; others are not retried.
        streams: whether the model can stream; then its tokens are shown live.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="Perdure",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        tool_config_key="perdure",
    )

    def __init__(self, *, tools: Mapping[str, Policy] | None = None, streams: bool = True) -> None:
        super().__init__(event_stream_handler=show_tokens if streams else None)
        self._policies = dict(tools or {})

    @property
    def in_durable_context(self) -> bool:
        """Whether the code of a run is executing, and not one of its steps."""
        return has_run() and not in_live_step()

    def get_default_run_id(self) -> str | None:
        """An id that is the same on every replay."""
        return str(current_run().uuid()) if self.in_durable_context else None

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """The session's key, else the id of the agent's run."""
        return (current_run().session or run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:  # noqa: ARG002
        """The run's own time."""
        return current_run().now() if self.in_durable_context else None

    async def wrap_run_event_stream(
        self,
        ctx: RunContext[Any],  # noqa: ARG002
        *,
        stream: AsyncIterable[AgentStreamEvent],
    ) -> AsyncIterable[AgentStreamEvent]:
        """Nothing more to do: tokens are shown while they arrive, inside the model request, and not journaled."""
        async for event in stream:
            yield event

    def get_durable_operation_backend(self) -> Backend:
        """Where units are executed."""
        plain = Policy()
        return Backend(
            namer=JournalOperationNamer(self.name),
            config=RoleBasedOperationConfig(
                model=MODEL_POLICY, event=plain, capability=plain, tool=plain, resolve_tool=self._policy
            ),
        )

    def _policy(self, _: DurableOperationId, tool: object | None, name: str) -> Policy | Literal[False]:
        metadata = getattr(getattr(tool, "tool_def", None), "metadata", None) or {}
        if metadata.get("perdure") == IN_RUN:
            return False
        return self._policies.get(name, Policy())


async def show_tokens(ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:  # noqa: ARG001
    """Hand text to whoever watches the run live, while it arrives."""
    run = current_run() if has_run() else None
    async for event in events:
        text = ""
        match event:
            case PartStartEvent(part=TextPart(content=text)):
                pass
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                pass
            case _:
                continue
        if run is not None and text:
            run.emit("token", text)
