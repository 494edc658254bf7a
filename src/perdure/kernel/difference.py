"""What two requests differ in, for the people who have to decide what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError
from perdure.kernel.masks import mask

SHOWN_MAX = 60  # characters of a value in one line of a report
_MISSING = object()


def difference(expected: Any, found: Any, *, ignore: Collection[str] = (), limit: int = 20) -> list[str]:
    """A line for each place where two bodies differ, such as ``messages[2].content: expected `a`, found `b` ``.

    Values are shortened around the first character that differs. Places that differ in times and random ids only, which is
    no reason for another identity, are left out unless there are no others. The last of ``limit`` lines says how many are
    not shown. Fields at the top that are in ``ignore`` do not count (for model requests: ``VOLATILE`` of ``kernel.identity``).
    """
    try:
        return _lines(_without(expected, ignore), _without(found, ignore), limit)
    except (RecursionError, InputInvalidError):
        return ["the whole: both are nested too deeply to be compared"]


def _lines(expected: Any, found: Any, limit: int) -> list[str]:
    reasons: list[str] = []
    chances: list[str] = []
    for path, one, other in _places(expected, found, ""):
        line = f"{path or 'the whole'}: expected {_shown(one, other)}, found {_shown(other, one)}"
        same = one is not _MISSING and other is not _MISSING and _masked(one) == _masked(other)
        (chances if same else reasons).append(line)
    lines = reasons or chances
    if len(lines) > limit:
        lines = [*lines[: limit - 1], f"and {len(lines) - limit + 1} more places"]
    return lines


def _without(value: Any, names: Collection[str]) -> Any:
    return (
        {key: item for key, item in value.items() if key not in names} if isinstance(value, dict) else value
    )


def _places(expected: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            at = f"{path}.{key}" if path else str(key)
            yield from _places(expected.get(key, _MISSING), found.get(key, _MISSING), at)
    elif isinstance(expected, list) and isinstance(found, list):
        for index in range(max(len(expected), len(found))):
            one = expected[index] if index < len(expected) else _MISSING
            other = found[index] if index < len(found) else _MISSING
            yield from _places(one, other, f"{path}[{index}]")
    elif type(expected) is not type(found) or expected != found:
        yield path, expected, found


def _masked(value: Any) -> bytes:
    return mask(canonical(value, strict=False))


def _shown(value: Any, other: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text, against = _text(value), _text(other)
    if len(text) <= SHOWN_MAX:
        return f"`{text}`"
    same = next((at for at, (a, b) in enumerate(zip(text, against, strict=False)) if a != b), len(against))
    begin = max(0, min(same - SHOWN_MAX // 3, len(text) - SHOWN_MAX))
    cut = text[begin : begin + SHOWN_MAX]
    return f"`{'…' if begin else ''}{cut}{'…' if begin + SHOWN_MAX < len(text) else ''}`"


def _text(value: Any) -> str:
    if value is _MISSING:
        return ""
    return value if isinstance(value, str) else canonical(value, strict=False).decode(errors="replace")
