"""Model agents: from a definition, or an existing Pydantic AI agent, to a run's code."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import Tool
from pydantic_ai.durable_exec import replay_scope
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset
from pydantic_core import to_jsonable_python

from perdure.agents.agent import Agent
from perdure.agents.run import Run, current_run
from perdure.agents.step import Step
from perdure.agents.tool import FunctionTool
from perdure.core.errors import ActionNotDoneError, ArgumentsInvalidError, DefinitionError, ToolFailedError
from perdure.models.durability import IN_RUN, PerdureDurability, timeless
from perdure.models.live_step import Policy, policy_of

HISTORY = "perdure.messages"  # the key of a session's state that has its conversation
_MARK = "__perdure_in_run__"


def in_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark an ``async def`` tool as code of the run itself: it may ask, receive, sleep and spawn, but do no I/O."""
    setattr(function, _MARK, True)
    return function


def bind(agent: Agent) -> None:
    """Give a definition with a model its code.

    Raises:
        DefinitionError: the model, a tool or the output type cannot work.
    """
    if not isinstance(agent.model, str | Model):
        found = type(agent.model).__name__
        raise DefinitionError(
            f"agent `{agent.name}` has a model of type `{found}`; give a name such as `openai:gpt-5` or a `Model`"
        )
    policies: dict[str, Policy] = {}
    try:
        tools = [_tool(item, policies) for item in agent.tools if not isinstance(item, AbstractToolset)]
        inner: PydanticAgent[None, Any] = PydanticAgent(
            agent.model,
            name=agent.name,
            instructions=agent.instructions or None,
            output_type=agent.output,
            tools=tools,
            toolsets=[item for item in agent.tools if isinstance(item, AbstractToolset)],
            defer_model_check=True,
        )
    except (UserError, TypeError, ValueError) as error:
        raise DefinitionError(f"agent `{agent.name}` cannot be made: {error}") from error
    agent.bind(_handler(inner, policies), version=_version(inner, agent.instructions))


def adopt(agent: PydanticAgent[Any, Any]) -> Agent:
    """A definition from a Pydantic AI agent, which is not changed.

    Raises:
        DefinitionError: it has no name or no model.
    """
    if not agent.name:
        raise DefinitionError("a Pydantic AI agent needs a name to be run durably: `Agent(..., name='desk')`")
    if agent.model is None:
        raise DefinitionError(f"the Pydantic AI agent `{agent.name}` needs a model")
    return Agent(agent.name, handler=_handler(agent, {}), version=_version(agent, ""))


def _tool(item: Any, policies: dict[str, Policy]) -> Tool[Any]:
    """A tool as Pydantic AI has it; a step keeps its name and policy."""
    if isinstance(item, Tool):
        return item
    if isinstance(item, FunctionTool):
        return _governed(item)
    if isinstance(item, Step):
        name = item.name if item.name.isidentifier() else item.function.__name__
        policies[name] = policy_of(item)
        return Tool(item.function, name=name)
    if not callable(item):
        raise DefinitionError(f"a tool must be a function, a step or a Pydantic AI tool, found `{item!r}`")
    if getattr(item, _MARK, False):
        if not inspect.iscoroutinefunction(item):
            raise DefinitionError(f"tool `{item.__name__}` is code of the run, so it must be `async def`")
        return Tool(item, metadata={"perdure": IN_RUN})
    return Tool(item)


def _governed(item: FunctionTool) -> Tool[Any]:
    """A tool of ours: the model's call of it is an action, through the gateway."""
    spec = item.spec

    async def use(**arguments: Any) -> Any:
        try:
            return await current_run().act(item, **arguments)
        except (ToolFailedError, ActionNotDoneError, ArgumentsInvalidError) as error:
            return f"{error.code}: {error.message}"  # for the model to read, and to do something else

    made: Tool[Any] = Tool.from_schema(use, spec.name, spec.description, dict(spec.parameters))
    made.metadata = {"perdure": IN_RUN}
    return made


def _handler(
    inner: PydanticAgent[Any, Any], policies: Mapping[str, Policy]
) -> Callable[[Run, str], Coroutine[Any, Any, Any]]:
    """The code of a run: the loop of the Pydantic AI agent, with its units as durable calls."""
    durability = PerdureDurability(tools=policies, streams=_streams(inner.model))

    async def handler(run: Run, prompt: str) -> Any:
        history: list[ModelMessage] | None = None
        if run.session is not None and (kept := await run.state.get(HISTORY)) is not None:
            history = ModelMessagesTypeAdapter.validate_python(kept)
        with replay_scope():
            result = await inner.run(prompt, message_history=history, capabilities=[durability])
        if run.session is not None:
            await run.state.set(HISTORY, timeless(result.all_messages()))
        return to_jsonable_python(result.output)

    return handler


def _streams(model: Any) -> bool:
    """Whether a model can stream its reply."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, FunctionModel):
        return model.stream_function is not None
    return not isinstance(model, Model) or type(model).request_stream is not Model.request_stream


def _version(inner: PydanticAgent[Any, Any], instructions: str) -> str:
    """A digest of what decides how the agent goes on: model, instructions, tools and output."""
    model = inner.model
    tools: dict[str, Any] = {}
    for toolset in inner.toolsets:
        if isinstance(toolset, FunctionToolset):
            for name, tool in toolset.tools.items():
                tools[name] = [tool.description, tool.function_schema.json_schema]
    parts = [
        model if isinstance(model, str) else getattr(model, "model_name", str(model)),
        instructions,
        tools,
        inner.output_json_schema(),
    ]
    data = json.dumps(to_jsonable_python(parts, fallback=repr), sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()[:12]
