"""From ``APP`` on the command line to the agents of a module."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.agents import Agent
from perdure.core.errors import AgentUnknownError, DefinitionError, InputInvalidError, PerdureError
from perdure.runtime.registry import register


def load(app: str) -> list[Agent]:
    """The definitions of all agents of a module path (``shop.agents``) or file (``agents.py``).

    Raises:
        DefinitionError: it cannot be imported, has no agent, or two of one name.
    """
    module = _import(app)
    found: dict[int, Any] = {id(item): item for item in vars(module).values() if _is_agent(item)}
    if not found:
        raise DefinitionError(
            f"`{app}` has no agent; define one with `@agent(...)` at the top of the module", app=app
        )
    return list(register(list(found.values())).values())


def split(target: str) -> tuple[str, str | None]:
    """``APP:AGENT`` or ``APP`` alone."""
    app, colon, name = target.rpartition(":")
    return (app, name) if colon and app else (target, None)


def choose(agents: list[Agent], name: str | None, app: str) -> str:
    """The name of the agent to start: the one given, or the only one.

    Raises:
        AgentUnknownError: the app has no such agent, or several and none was named.
    """
    names = sorted(item.name for item in agents)
    listed = ", ".join(f"`{item}`" for item in names)
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise AgentUnknownError(f"`{app}` has several agents ({listed}); name one: `{app}:{names[0]}`")
    if name not in names:
        raise AgentUnknownError(f"`{app}` has no agent called `{name}`; it has {listed}", agent=name)
    return name


def _import(app: str) -> ModuleType:
    try:
        if app.endswith(".py") or os.sep in app:
            return _import_file(Path(app))
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(app)
    except PerdureError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 2 else ""
        message = f"`{app}` cannot be imported: {type(error).__name__}: {error}{where}"
        raise DefinitionError(message, app=app) from error


def _import_file(path: Path) -> ModuleType:
    """A file as a module under its own name, so that its steps have the names they have elsewhere."""
    if not path.is_file():
        raise DefinitionError(
            f"there is no file `{path}`; give a module path such as `shop.agents`, or a file", app=str(path)
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"`{path}` is no Python file", app=str(path))
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _is_agent(item: Any) -> bool:
    if isinstance(item, Agent):
        return True
    return any(
        kind.__name__ in ("Agent", "AbstractAgent") and kind.__module__.split(".")[0] == "pydantic_ai"
        for kind in type(item).__mro__
    )


def value_of(text: str | None) -> Any:
    """JSON, or the text itself where it is not JSON; ``-`` reads stdin."""
    import msgspec

    if text == "-":
        text = sys.stdin.read().strip()
    if text is None:
        return None
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


def fitted_input(definition: Agent, text: str | None) -> Any:
    """The input for an agent; a text that happens to be JSON (``42``) stays a text where the agent wants one."""
    from perdure.agents.codec import to_json

    if text == "-":
        text = sys.stdin.read().strip()
    value = value_of(text)
    try:
        definition.parameters.read_input(to_json(value))
    except InputInvalidError:
        if text is None or isinstance(value, str | dict | list):
            raise
        definition.parameters.read_input(to_json(text))
        return text
    return value
