"""The tools of an agent: its own and those of its charter's toolsets, and the digests that a run is pinned to."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Mapping, Sequence

from perdure.core.errors import DefinitionError, ToolChangedError, ToolUnknownError
from perdure.core.ids import RESERVED
from perdure.core.tools import ToolSpec
from perdure.ports import Tool, Toolset


class Toolbox:
    """The toolsets of a runtime, each opened when it is first needed and shared by all agents."""

    def __init__(self, toolsets: Sequence[Toolset]) -> None:
        self._toolsets = {item.name: item for item in toolsets}
        if len(self._toolsets) < len(toolsets):
            raise DefinitionError("two toolsets have the same name; names must differ")
        self._open: dict[str, asyncio.Task[None]] = {}

    @property
    def names(self) -> list[str]:
        """What there is."""
        return sorted(self._toolsets)

    def __contains__(self, name: str) -> bool:
        return name in self._toolsets

    async def tools(self, name: str) -> Sequence[Tool]:
        """What a toolset offers now.

        Raises:
            ToolUnknownError: there is no such toolset.
            ToolUnreachableError: it does not answer.
        """
        toolset = self._toolsets.get(name)
        if toolset is None:
            known = ", ".join(f"`{item}`" for item in self.names) or "none"
            raise ToolUnknownError(f"there is no toolset `{name}`; the runtime has {known}", toolset=name)
        task = self._open.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._open[name] = asyncio.ensure_future(toolset.open())
        await asyncio.shield(task)
        return await toolset.tools()

    async def close(self) -> None:
        """Let go of all."""
        for name, task in self._open.items():
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._toolsets[name].close()
        self._open.clear()


class Catalogue:
    """What one agent may use.

    Args:
        own: its own tools.
        charter: names of toolsets, or ``toolset.pattern`` for some of a toolset's tools.
        toolbox: where toolsets are.
    """

    def __init__(self, own: Sequence[Tool], charter: Sequence[str], toolbox: Toolbox) -> None:
        self._own = own
        self._wanted: dict[str, list[str]] = {}
        for item in charter:
            name, dot, pattern = item.partition(".")
            self._wanted.setdefault(name, []).append(pattern if dot else "*")
        self._toolbox = toolbox
        self._known: dict[str, Tool] | None = None

    @property
    def own(self) -> list[ToolSpec]:
        """The agent's own tools, without asking anybody."""
        return [tool.spec for tool in self._own]

    async def tools(self, *, fresh: bool = False) -> Mapping[str, Tool]:
        """Tools by the name that agents call them by: their own, with the toolset's in front where two would be the same.

        Raises:
            DefinitionError: two of the agent's own tools have one name.
            ToolUnreachableError: a toolset does not answer.
        """
        if self._known is not None and not fresh:
            return self._known
        known: dict[str, Tool] = {}
        for tool in self._own:
            if tool.spec.name in known:
                raise DefinitionError(f"two tools are called `{tool.spec.name}`; names must differ")
            known[tool.spec.name] = tool
        for toolset, patterns in self._wanted.items():
            for tool in await self._toolbox.tools(toolset):
                name = tool.spec.name
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                    # What is called like a tool of the runtime's own, such as `perdure.endorse`, would count as it.
                    is_taken = name in known or name.startswith(RESERVED)
                    known[f"{toolset}_{name}" if is_taken else name] = tool
        self._known = known
        return known

    async def find(self, name: str) -> Tool:
        """The tool that an agent calls ``name``.

        Raises:
            ToolUnknownError: its charter has none.
        """
        tools = await self.tools()
        found = tools.get(name)
        if found is None:
            known = ", ".join(f"`{item}`" for item in sorted(tools)) or "none"
            raise ToolUnknownError(f"no tool is called `{name}`; the agent has {known}", tool=name)
        return found


def digests(tools: Mapping[str, Tool]) -> dict[str, str]:
    """What a run is pinned to."""
    return {name: tool.spec.digest for name, tool in sorted(tools.items())}


def check_pin(pins: Mapping[str, str], name: str, spec: ToolSpec) -> None:
    """Refuse a tool that is not as it was when the run began.

    Raises:
        ToolChangedError: its description, schema or declarations changed.
        ToolUnknownError: it was not there then.
    """
    if not pins:
        return
    pinned = pins.get(name)
    if pinned is None:
        raise ToolUnknownError(
            f"tool `{name}` was not offered when the run began; start a new run to use it", tool=name
        )
    if pinned != spec.digest:
        message = (
            f"tool `{name}` is not the one that the run began with: its description or schema has changed since; "
            "look at it with `perdure tools list`, then start a new run if it is right"
        )
        raise ToolChangedError(message, tool=name, expected=pinned, found=spec.digest)
