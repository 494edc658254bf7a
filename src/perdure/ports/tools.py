"""Tools: how the gateway reaches what agents act with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from perdure.core.tools import Done, Finding, ToolOutput, ToolSpec, ToolUse


class Tool(Protocol):
    """One capability. Custom adapters implement this and nothing else."""

    @property
    def spec(self) -> ToolSpec:
        """What it declares; the same for the life of the object."""
        ...

    async def call(self, use: ToolUse) -> ToolOutput:
        """Do it, once. The gateway has validated the arguments and made the intent durable.

        Raises:
            ToolFailedError: it is known that it failed.
            ToolUnreachableError: nothing was sent, so nothing happened.
            ToolDoubtfulError: something was sent and no answer came.
        """
        ...


@runtime_checkable
class Probe(Protocol):
    """A tool that can find out whether a use of it happened; needed for ``recovery="queryable"``."""

    async def probe(self, use: ToolUse) -> Finding:
        """Look, change nothing."""
        ...


@runtime_checkable
class Undo(Protocol):
    """A tool that can undo a use of it; needed for ``ToolSpec.undoable``."""

    async def image(self, use: ToolUse) -> Any:
        """The part of the world that this use changes, as plain data; ``None`` if the tool does not look. Changes nothing."""
        ...

    async def undo(self, use: ToolUse, done: Done) -> ToolOutput:
        """Undo it, once. ``use`` has the key of the undoing action.

        Raises:
            UndoConflictError: the world is not as the use left it.
            ToolFailedError, ToolUnreachableError, ToolDoubtfulError: as for ``call``.
        """
        ...


class Toolset(Protocol):
    """Tools that come together: an MCP server, an OpenAPI document, a database."""

    @property
    def name(self) -> str:
        """What it is called in charters and in ``ToolSpec.source``."""
        ...

    async def open(self) -> None:
        """Connect, or start what must run.

        Raises:
            ToolUnreachableError: it does not answer.
        """
        ...

    async def tools(self) -> Sequence[Tool]:
        """What it offers now."""
        ...

    async def close(self) -> None:
        """Let go; never raises."""
        ...
