"""What of a request policies look at: two requests that are the same in that are decided the same.

An action of an agent mostly differs from the one before in what no policy asks for (the run, the time, a text), so decisions are
remembered by the rest. Read from Cedar's JSON form; what is not understood counts as everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

Path = tuple[str, ...]
_CONTEXT = {"Var": "context"}
_MISSING = "\0missing"  # no value of a context: half of it could not be written in JSON


def reads_of(conditions: Iterable[Any]) -> tuple[Path, ...]:
    """The paths below ``context`` that conditions (in Cedar's JSON form) look at; the empty path is all of it."""
    found: set[Path] = set()
    for condition in conditions:
        _walk(condition, found)
    return tuple(sorted(found))


def key_of(context: Mapping[str, Any], reads: tuple[Path, ...]) -> bytes:
    """What is the same for two contexts if no policy can tell them apart.

    Which arguments are there at all is always part of it: one that is missing may not fit the schema.
    """
    values = [_value(context, path) for path in reads]
    return msgspec.json.encode([values, _shape(context["input"])])


def _walk(node: Any, found: set[Path]) -> None:
    path = _path(node)
    if path is not None:
        found.add(path)
        return
    if isinstance(node, Mapping):
        for value in node.values():
            _walk(value, found)
    elif isinstance(node, list):
        for value in node:
            _walk(value, found)


def _path(node: Any) -> Path | None:
    """The path that an expression is, if it is one: an attribute, or the question whether there is one."""
    if node == _CONTEXT:
        return ()
    if not isinstance(node, Mapping) or len(node) != 1:
        return None
    [(operator, inner)] = node.items()
    if operator not in (".", "has") or not isinstance(inner, Mapping) or set(inner) != {"left", "attr"}:
        return None
    left = _path(inner["left"])
    return None if left is None or not isinstance(inner["attr"], str) else (*left, inner["attr"])


def _value(context: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(context, dict) or name not in context:
            return _MISSING
        context = context[name]
    return context


def _shape(value: Any) -> Any:
    if not isinstance(value, dict):
        return 0
    return [[name, _shape(value[name])] for name in sorted(value)]
