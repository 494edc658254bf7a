"""Paths into plain data, and the pieces that they name: ``to``, ``to.*``, ``items.*.iban``; ``*`` is any member or element."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

DEPTH_MAX = 32  # of data that is looked at; JSON Schema of real tools stays under ten
LEAVES_MAX = 1_000  # of the arguments of one action
ANY = "*"
KEY = "{key}"  # ends the path of a key

Path = tuple[str, ...]


class TooLargeError(Exception):
    """Data is deeper or has more leaves than are looked at. It does not leave this room: it becomes a denial."""


@lru_cache(maxsize=4_096)
def parse(text: str) -> Path:
    """A path from its dotted form; the empty text is the whole."""
    return tuple(text.split(".")) if text else ()


def shown(path: Path) -> str:
    """A path for people: what came from outside cannot break the line, or out of its quotes."""
    text = ".".join(path)
    return "".join(c if c.isprintable() and c != "`" else " " for c in text[:120])


def covers(pattern: Path, path: Path) -> bool:
    """Whether a path is named by a pattern or lies below what it names."""
    return len(pattern) <= len(path) and all(
        part in (ANY, found) for part, found in zip(pattern, path, strict=False)
    )


def leaves(
    data: Any, limit: int = LEAVES_MAX, *, names: Collection[str] | None = None
) -> Iterator[tuple[Path, Any]]:
    """Every scalar with its path; ``None`` says nothing and is left out.

    Keys too, since a program may put anything into them: at the path of what they belong to, with ``{key}`` behind.

    Args:
        data: what is looked at.
        limit: how many there may be.
        names: keys of the first level that somebody else has chosen, such as the names of parameters; ``None`` is all of them.

    Raises:
        TooLargeError: there are more than the limit, or the data is too deep.
    """
    stack: list[tuple[Path, Any]] = [((), data)]
    count = 0
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict | Mapping):
            inner = list(value.items())
            children = [((*path, str(name)), item) for name, item in inner]
            keys = [str(name) for name, _ in inner]
            if not path:
                keys = [] if names is None else [name for name in keys if name not in names]
            children += [((*path, name, KEY), name) for name in keys]
        elif isinstance(value, list | tuple):
            children = [((*path, str(index)), item) for index, item in enumerate(value)]
        else:
            if value is None:
                continue
            count += 1
            if count > limit:
                raise TooLargeError
            yield path, value
            continue
        if len(path) >= DEPTH_MAX or len(stack) + len(children) > limit * 3:
            raise TooLargeError
        stack.extend(reversed(children))


def ambiguous(patterns: Iterable[Path]) -> str:
    """A place where patterns have both ``*`` and a name, so that a piece could be meant by two of them; empty if there is none."""
    places: dict[Path, set[str]] = {}
    for pattern in patterns:
        for length, part in enumerate(pattern):
            parts = places.setdefault(pattern[:length], set())
            parts.add(part)
            if ANY in parts and len(parts) > 1:
                return ".".join(pattern[: length + 1])
    return ""


class _Fork(msgspec.Struct):
    """Patterns by their next part."""

    end: int | None = None
    next: dict[str, _Fork] = msgspec.field(default_factory=dict)


def split(data: Any, patterns: tuple[Path, ...]) -> tuple[Any, list[list[Any]]]:
    """What is left of data without what the patterns name, and for each pattern what it named.

    Nothing is named by two of them: see :func:`ambiguous`.
    """
    root = _Fork()
    for index, pattern in enumerate(patterns):
        fork = root
        for part in pattern:
            fork = fork.next.setdefault(part, _Fork())
        fork.end = index
    picked: list[list[Any]] = [[] for _ in patterns]
    return _without(data, root, picked), picked


def _without(data: Any, fork: _Fork, picked: list[list[Any]]) -> Any:
    if fork.end is not None:
        if not fork.next or not isinstance(data, dict | list | tuple):
            picked[fork.end].append(data)
            return None
        picked[fork.end].append(_inner(data, fork, picked))
        return None
    return _inner(data, fork, picked)


def _inner(data: Any, fork: _Fork, picked: list[list[Any]]) -> Any:
    rest = fork.next.get(ANY)
    if isinstance(data, dict):
        kept = {}
        for name, value in data.items():
            inner = fork.next.get(name, rest)
            if inner is None:
                kept[name] = value
            elif inner.end is not None and not inner.next:
                picked[inner.end].append(value)
            else:
                kept[name] = _without(value, inner, picked)
        return kept
    if isinstance(data, list | tuple):
        if rest is None and not any(name.isdigit() for name in fork.next):
            return data
        found = []
        for index, value in enumerate(data):
            inner = fork.next.get(str(index), rest)
            found.append(value if inner is None else _without(value, inner, picked))
        return found
    return data


def find(data: Any, wanted: Any, limit: int = 5_000) -> Path:
    """Where ``wanted(leaf)`` first holds; the empty path if it is nowhere among the first leaves."""
    try:
        for path, value in leaves(data, limit):
            if path[-1:] != (KEY,) and wanted(value):
                return path
    except TooLargeError:
        return ()
    return ()
