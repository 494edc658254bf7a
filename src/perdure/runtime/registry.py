"""From what an author hands in to definitions by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.agents.agent import Agent
from perdure.core.errors import DefinitionError


def register(agents: Sequence[Any]) -> dict[str, Agent]:
    """Definitions by name; model agents get their code.

    Raises:
        DefinitionError: two have one name, something is no agent, or the extra for model agents is missing.
    """
    known: dict[str, Agent] = {}
    for item in agents:
        found = _definition(item)
        if found.name in known:
            raise DefinitionError(
                f"two agents are called `{found.name}`; names must differ", agent=found.name
            )
        known[found.name] = found
    return known


def _definition(item: Any) -> Agent:
    if isinstance(item, Agent):
        if item.handler is None:
            _model_room().bind(item)
        return item
    if any(kind.__module__.split(".")[0] == "pydantic_ai" for kind in type(item).__mro__):
        adopted: Agent = _model_room().adopt(item)
        return adopted
    kind = type(item).__name__
    raise DefinitionError(
        f"expected an `Agent`, a function with `@agent` or a Pydantic AI agent, found a `{kind}`"
    )


def _model_room() -> Any:
    try:
        from perdure.models import pydantic_agent
    except ImportError as error:
        message = f"model agents need an extra package ({error}); install it with `pip install 'perdure[pydantic-ai]'`"
        raise DefinitionError(message) from error
    return pydantic_agent
