"""Tools written in Python: a function with type hints and a docstring, and what may be done when in doubt about it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, overload

import msgspec

from perdure.agents.codec import Parameters, hints_of, to_json
from perdure.core.errors import ArgumentsInvalidError, DefinitionError, InputInvalidError, OutsideRunError
from perdure.core.flows import ToolFlow
from perdure.core.limits import TOOL_OUTPUT_BYTES_MAX
from perdure.core.tools import Done, Effect, Finding, Recovery, ToolOutput, ToolSpec, ToolUse, is_tool_name

_use: contextvars.ContextVar[ToolUse | None] = contextvars.ContextVar("perdure_use", default=None)


def current_use() -> ToolUse:
    """The use of a tool that is executing: its run, its arguments, and the idempotency key to hand on.

    Raises:
        OutsideRunError: no tool is executing here.
    """
    found = _use.get()
    if found is None:
        raise OutsideRunError("no tool is executing here; `current_use` belongs in a function with `@tool`")
    return found


class FunctionTool:
    """A function as a tool. Implements the ``Tool`` and ``Probe`` ports; calling it calls the function.

    Raises:
        DefinitionError: a name, option or type hint cannot work.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        effect: Effect = "irreversible",
        recovery: Recovery | None = None,
        timeout: float = 60.0,
        output_bytes_max: int | None = None,
        undo_within: float | None = None,
        delay: float = 0.0,
        flow: ToolFlow | None = None,
    ) -> None:
        chosen = name or str(getattr(function, "__name__", ""))
        if not is_tool_name(chosen):
            raise DefinitionError(
                f"a tool cannot be called `{chosen!r:.80}`; give a name with `@tool(name=...)`"
            )
        if timeout <= 0:
            raise DefinitionError(f"tool `{chosen}` has `timeout={timeout}`, expected seconds above 0")
        if delay < 0 or (undo_within is not None and undo_within <= 0):
            raise DefinitionError(f"tool `{chosen}`: `delay` and `undo_within` are seconds, and not negative")
        self.function = function
        self._parameters = Parameters(function, f"tool `{chosen}`")
        self._spec = ToolSpec(
            name=chosen,
            description=_summary(function),
            parameters=schema_of(function, chosen),
            effect=effect,
            recovery=recovery or ("pure" if effect == "read" else "opaque"),
            timeout_ms=max(1, round(timeout * 1000)),
            output_bytes_max=output_bytes_max or TOOL_OUTPUT_BYTES_MAX,
            undo_within_ms=None if undo_within is None else round(undo_within * 1000),
            delay_ms=round(delay * 1000),
            flow=flow,
        )
        self._probe: Callable[..., Any] | None = None
        self._image: Callable[..., Any] | None = None
        self._undo: Callable[[Done], Any] | None = None
        self.__doc__ = function.__doc__
        self.__name__ = chosen
        self.__module__ = function.__module__
        self.__wrapped__ = function

    @property
    def spec(self) -> ToolSpec:
        """What it declares."""
        return self._spec

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself: no gateway, no journal."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"FunctionTool({self._spec.name!r})"

    def probe_with(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator for the function that finds out whether a use happened (for ``recovery="queryable"``).

        It takes the same arguments and returns ``True`` (it happened), ``False`` (it did not), ``None`` (no telling), or a
        ``Finding``; ``current_use().key`` is the idempotency key of the use in question.
        """
        self._probe = function
        return function

    def image_with(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator for the function that looks at what a use changes (for ``effect="reversible"``).

        It takes the same arguments and returns plain data. It is asked before and after each use; what it says before an undoing
        must be what it said after the use, or else the undoing is refused: somebody has changed the world since.
        """
        self._image = function
        return function

    def undo_with(self, function: Callable[[Done], Any]) -> Callable[[Done], Any]:
        """Decorator for the function that undoes a use. It takes a :class:`Done`.

        Raises:
            DefinitionError: the tool does not say that it is ``reversible`` or ``compensable``.
        """
        if self._spec.effect not in ("reversible", "compensable"):
            raise DefinitionError(
                f"tool `{self._spec.name}` is declared {self._spec.effect}; one that can be undone is `reversible` (with an "
                "image) or `compensable`",
                tool=self._spec.name,
            )
        self._undo = function
        self._spec = msgspec.structs.replace(self._spec, undoable=True)
        return function

    async def image(self, use: ToolUse) -> Any:
        """What the image function says, as plain data."""
        if self._image is None:
            return None
        return msgspec.json.decode(to_json(await self._run(self._image, use)))

    async def undo(self, use: ToolUse, done: Done) -> ToolOutput:
        """Call the undo function."""
        if self._undo is None:
            raise DefinitionError(f"tool `{self._spec.name}` cannot undo", tool=self._spec.name)
        token = _use.set(use)
        try:
            if inspect.iscoroutinefunction(self._undo):
                value = await self._undo(done)
            else:
                value = await asyncio.to_thread(self._undo, done)
        finally:
            _use.reset(token)
        return ToolOutput(value=msgspec.json.decode(to_json(value)))

    async def call(self, use: ToolUse) -> ToolOutput:
        """Call the function with arguments of its hinted types."""
        value = await self._run(self.function, use)
        return (
            value if isinstance(value, ToolOutput) else ToolOutput(value=msgspec.json.decode(to_json(value)))
        )

    async def probe(self, use: ToolUse) -> Finding:
        """Ask the probe function."""
        if self._probe is None:
            return Finding(answer="unknown")
        found = await self._run(self._probe, use)
        if isinstance(found, Finding):
            return found
        if found is None:
            return Finding(answer="unknown")
        return Finding(answer="happened" if found else "did-not-happen")

    async def _run(self, function: Callable[..., Any], use: ToolUse) -> Any:
        raw = {name: msgspec.Raw(to_json(value)) for name, value in use.arguments.items()}
        try:
            args, kwargs = self._parameters.read([], raw)
        except InputInvalidError as error:
            raise ArgumentsInvalidError(error.message, tool=self._spec.name) from error
        token = _use.set(use)
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            return await asyncio.to_thread(function, *args, **kwargs)
        finally:
            _use.reset(token)


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect = "irreversible",
    recovery: Recovery | None = None,
    timeout: float = 60.0,
    output_bytes_max: int | None = None,
    undo_within: float | None = None,
    delay: float = 0.0,
    flow: ToolFlow | None = None,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a function a tool; its schema comes from the type hints, its description from the docstring.

    An ``async def`` runs on the event loop, a ``def`` in a thread.

    Args:
        function: the function, when used without parentheses.
        options: ``effect`` (``read``, ``reversible``, ``compensable``, ``irreversible``: the default), ``recovery`` (``pure``,
            ``idempotent``, ``queryable``, ``opaque``: the default, but ``pure`` for reads), ``timeout`` in seconds (60),
            ``name``, ``output_bytes_max`` (256 KiB), ``undo_within`` in seconds (for ever), ``delay`` in seconds (0): how long a
            use waits in the outbox, where it can still be stopped; ``flow`` (a ``ToolFlow``): what its arguments decide, and what
            its output is worth.

    Raises:
        DefinitionError: it cannot work; the message says why.
    """
    if function is not None:
        return FunctionTool(function)
    return lambda chosen: FunctionTool(chosen, **options)


def schema_of(function: Callable[..., Any], name: str, *, skip: int = 0) -> dict[str, Any]:
    """JSON Schema of a function's parameters but the first ``skip``, with the descriptions of its docstring."""
    hints = hints_of(function, skip=skip)
    told = _told_parameters(inspect.getdoc(function) or "")
    kinds: list[Any] = []
    names: list[str] = []
    required: list[str] = []
    for item in list(inspect.signature(function).parameters.values())[skip:]:
        if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD, item.POSITIONAL_ONLY):
            raise DefinitionError(
                f"parameter `{item.name}` of tool `{name}` must be one that can be given by name"
            )
        names.append(item.name)
        kinds.append(hints.get(item.name, Any))
        if item.default is item.empty:
            required.append(item.name)
    try:
        found, components = msgspec.json.schema_components(
            kinds, schema_hook=_schema_hook, ref_template="#/$defs/{name}"
        )
    except TypeError as error:
        raise DefinitionError(f"a type hint of tool `{name}` has no JSON Schema: {error}") from error
    properties: dict[str, Any] = {}
    for key, schema in zip(names, found, strict=True):
        properties[key] = {**schema, "description": told[key]} if key in told else dict(schema)
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        made["required"] = required
    if components:
        made["$defs"] = components
    return made


def _schema_hook(kind: type) -> dict[str, Any]:
    """The schema of a pydantic model, without importing pydantic."""
    make = getattr(kind, "model_json_schema", None)
    if make is None:
        raise NotImplementedError(f"`{kind.__name__}` has no JSON Schema")
    made: dict[str, Any] = make()
    return made


def _summary(function: Callable[..., Any]) -> str:
    """The docstring up to its sections."""
    text = inspect.getdoc(function) or ""
    return re.split(r"\n\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields):", text, maxsplit=1)[0].strip()


def _told_parameters(text: str) -> dict[str, str]:
    """What the ``Args:`` section of a docstring says of each parameter."""
    section = re.search(
        r"\n\s*(?:Args|Arguments|Parameters):\n(.*?)(?:\n\s*\n\S|\n\S|\Z)", "\n" + text, re.DOTALL
    )
    found: dict[str, str] = {}
    if section is None:
        return found
    name = ""
    for line in section.group(1).splitlines():
        start = re.match(r"\s{2,8}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if start:
            name = start.group(1)
            found[name] = start.group(2).strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}"
    return found


Toollike = FunctionTool | Callable[..., Awaitable[Any]]
