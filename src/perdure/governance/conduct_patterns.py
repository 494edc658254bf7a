"""What sequence rules look at: events of a run, patterns of them, conditions on arguments, pins.

A check that cannot be made counts against the action. A condition on an argument that is missing, or of another type, is
*undecided*: a pattern of what is restricted then fits, a pattern of what releases does not.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from perdure.core.tools import Effect

EventState = Literal["requested", "intended", "succeeded", "failed", "refused"]
REACH: Mapping[EventState, tuple[EventState, ...]] = {  # what may still become of an action that is there now
    "requested": ("requested", "intended", "succeeded", "failed", "refused"),
    "intended": ("intended", "succeeded", "failed"),
    "succeeded": ("succeeded",),
    "failed": ("failed",),
    "refused": ("refused",),
}
KEY_CHARACTERS_MAX = 64  # a longer value is kept as its digest: state must not grow with arguments

Path = tuple[str, ...]
Operator = Literal["=", "!=", ">", ">=", "<", "<=", "~"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an action of the run came to.

    Attributes:
        tool: as the agent calls it.
        effect: what the tool does to the world.
        state: ``requested`` (the agent asked, whatever came of it), ``intended`` (let through: from here on it may have
            happened), ``succeeded``, ``failed``, or ``refused`` (a gate or an approver said no).
        at_ms: when.
        arguments: of the action; the same in each of its events.
    """

    tool: str
    effect: Effect
    state: EventState
    at_ms: int
    arguments: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on an argument; any of ``tests`` will do."""

    path: Path
    tests: tuple[tuple[Operator, Any], ...]

    def holds(self, arguments: Mapping[str, Any]) -> bool | None:
        """Whether it holds; ``None`` if that cannot be said."""
        found = value_at(arguments, self.path)
        if found is None:
            return None
        answers = [_answer(found, operator, wanted) for operator, wanted in self.tests]
        if any(answers):
            return True
        return None if None in answers else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Which events are meant.

    Attributes:
        state: the state that the event must have.
        tools: the known tools that are meant; ``None`` for all.
        known: all known tools; other names are held against ``globs``.
        globs: what the file says of tools, as one expression.
        effects: the effects that are meant; ``None`` for all.
        where: conditions on arguments; all must hold.
        pin: where the argument is whose value divides the rule; empty for none.
        is_strict: whether it fits when a condition is undecided.
    """

    state: EventState
    tools: frozenset[str] | None
    known: frozenset[str]
    globs: re.Pattern[str] | None
    effects: frozenset[str] | None
    where: tuple[Condition, ...]
    pin: Path
    is_strict: bool

    def is_judged(self, event: Event) -> bool:
        """Whether the event, or what may still become of its action, is meant."""
        return self.state in REACH[event.state] and self._fits(event)

    def is_recorded(self, event: Event) -> bool:
        """Whether the event itself is meant."""
        return self.state == event.state and self._fits(event)

    def key(self, event: Event) -> str | None:
        """The partition of the event; ``None`` if the argument is missing or no plain value."""
        return key_of(value_at(event.arguments, self.pin)) if self.pin else ""

    def can_be(self, tool: str) -> bool:
        """Whether events of this tool can be meant."""
        if self.tools is None or tool in self.tools:
            return True
        return tool not in self.known and self.globs is not None and self.globs.match(tool) is not None

    def _fits(self, event: Event) -> bool:
        if not self.can_be(event.tool) or (self.effects is not None and event.effect not in self.effects):
            return False
        for condition in self.where:
            answer = condition.holds(event.arguments)
            if answer is False or (answer is None and not self.is_strict):
                return False
        return True


def value_at(arguments: Mapping[str, Any], path: Path) -> Any:
    """The argument at a path (names, and positions in lists); ``None`` if it is missing or null."""
    found: Any = arguments
    for part in path:
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list | tuple) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def key_of(value: Any) -> str | None:
    """A plain value as text, so that 1 and "1" differ and 1 and 1.0 do not; ``None`` for everything else."""
    match value:
        case bool():
            key = "true" if value else "false"
        case int():
            key = str(value) if -(10**18) < value < 10**18 else hex(value)
        case float():
            key = str(int(value)) if value.is_integer() and abs(value) < 1e18 else repr(value)
        case str():
            key = f'"{value}"'
        case _:
            return None
    if len(key) <= KEY_CHARACTERS_MAX:
        return key
    return "#" + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def conditions(where: Mapping[str, Any], prefix: Path = ()) -> tuple[Condition, ...]:
    """The conditions that a table says; a table in it is a longer path.

    Raises:
        ValueError: something in it is no condition; the message has the path.
    """
    made: list[Condition] = []
    for name, value in where.items():
        path = (*prefix, *path_of(name))
        if isinstance(value, dict):
            made += conditions(value, path)
            continue
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"`{'.'.join(path)}` has an empty list, so nothing could fit")
        made.append(Condition(path, tuple(_test(".".join(path), item) for item in values)))
    return tuple(made)


def path_of(text: str) -> Path:
    """A dotted path.

    Raises:
        ValueError: a part of it is empty.
    """
    path = tuple(text.split("."))
    if not all(path):
        raise ValueError(f"`{text}` is no path; expected names with dots between them")
    return path


_CONDITION = re.compile(r"(>=|<=|!=|>|<|=|~)\s*(.*)", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def _test(path: str, value: Any) -> tuple[Operator, Any]:
    if isinstance(value, bool | int):
        return "=", value
    if not isinstance(value, str):
        raise ValueError(f"`{path}` is compared with `{value!r:.40}`; expected text, an integer or a boolean")
    found = _CONDITION.fullmatch(value)
    if found is None:
        return "=", value
    operator: Operator = found[1]  # type: ignore[assignment]  # the expression has nothing else
    match operator:
        case ">" | ">=" | "<" | "<=":
            if not _INTEGER.fullmatch(found[2].strip()):
                raise ValueError(f"`{path}` has `{value:.40}`; expected an integer after `{operator}`")
            return operator, int(found[2])
        case "~":
            return operator, glob(found[2])
        case _:
            return operator, found[2]


def _answer(found: Any, operator: Operator, wanted: Any) -> bool | None:
    match operator:
        case "=":
            return _is_equal(found, wanted)
        case "!=":
            equal = _is_equal(found, wanted)
            return None if equal is None else not equal
        case "~":
            return wanted.match(found) is not None if isinstance(found, str) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        return None
    match operator:
        case ">":
            return bool(found > wanted)
        case ">=":
            return bool(found >= wanted)
        case "<":
            return bool(found < wanted)
        case "<=":
            return bool(found <= wanted)


def _is_equal(found: Any, wanted: Any) -> bool | None:
    """Text in a rule is also meant as the number that it shows; values of other types cannot be compared."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted if isinstance(found, bool) and isinstance(wanted, bool) else None
    if isinstance(found, str) and isinstance(wanted, str):
        return found == wanted
    if isinstance(found, int | float):
        if isinstance(wanted, int):
            return found == wanted
        if isinstance(wanted, str):
            return found == int(wanted) if _INTEGER.fullmatch(wanted) else None
    return None


def glob(*texts: str) -> re.Pattern[str]:
    """Texts with ``*`` (anything) and ``?`` (one character) as one expression; case counts, the rest is literal."""
    # the library's translation does not go back over what a star has taken, so long arguments cost no more than their length
    return re.compile("|".join(fnmatch.translate(text.replace("[", "[[]")) for text in texts))
