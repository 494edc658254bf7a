"""Conduct: rules over the sequence of a run's own actions, as small automata.

What an automaton keeps does not grow with the history: times and values of its window, bounded by the rule itself. Where a bound
would be passed, the answer is no.
"""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.core.verdicts import ALLOW, Verdict, both, deny, hold
from perdure.governance.conduct_rules import FOREVER_MS, PINS_MAX, Pattern, Rule

SUM_ENTRIES_MAX = 10_000  # amounts in the window of a `sum`
MISSING = "\x00missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An action as rules see it; ``state`` is ``intended``, ``succeeded``, ``failed`` or ``refused``."""

    name: str
    effect: str
    at_ms: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: str = "intended"


@dataclass(slots=True)
class _Pin:
    """What one automaton keeps for one value of ``per``."""

    seen_ms: int | None = None  # when `before` happened, and nothing has undone it
    entries: deque[tuple[int, int]] = field(default_factory=deque)  # (time, amount) in the window
    total: int = 0
    values: dict[str, int] = field(default_factory=dict)  # value -> when it was seen last


class Conduct:
    """The automata of one run.

    Args:
        rules: of its runtime.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._pins: list[dict[str, _Pin]] = [{} for _ in rules]

    def judge(self, event: Event) -> Verdict:
        """Whether an action may happen now; changes nothing."""
        found = ALLOW
        for rule, pins in zip(self._rules, self._pins, strict=True):
            if _fits(rule.event, event, is_judged=True):
                found = both(found, self._judged(rule, pins, event))
                if found.is_deny:
                    return found
        return found

    def _judged(self, rule: Rule, pins: dict[str, _Pin], event: Event) -> Verdict:
        key = _value(event, rule.per) if rule.per else ""
        pin = pins.get(key)
        if pin is None:
            if len(pins) >= PINS_MAX:
                return deny(
                    "conduct-full",
                    f"rule `{rule.id}` tells more than {PINS_MAX} values of `{rule.per}` apart",
                    rule.id,
                )
            pin = _Pin()
        why = self._broken(rule, pin, event)
        if not why:
            return ALLOW
        message = rule.reason or why
        if rule.then == "hold":
            return hold("conduct-hold", message, rule.demand, rule.id)
        return deny("conduct-denied", message, rule.id)

    def _broken(self, rule: Rule, pin: _Pin, event: Event) -> str:
        """Why the rule would be broken; empty if it would not."""
        since_ms = event.at_ms - rule.window_ms
        has_seen = pin.seen_ms is not None and pin.seen_ms > since_ms
        limit = rule.at_most or 0
        match rule.kind:
            case "require":
                return "" if has_seen else f"it needs something before it (rule `{rule.id}`)"
            case "after":
                return f"it must not come after what has happened (rule `{rule.id}`)" if has_seen else ""
            case "count":
                is_full = len(pin.entries) >= limit and (limit == 0 or pin.entries[-limit][0] > since_ms)
                return f"at most {limit} are allowed (rule `{rule.id}`)" if is_full else ""
            case "sum":
                amount = event.arguments.get(rule.of)
                if not isinstance(amount, int) or isinstance(amount, bool):
                    return f"`{rule.of}` is no whole number (rule `{rule.id}`)"
                _expire(pin, since_ms)
                if len(pin.entries) >= SUM_ENTRIES_MAX:
                    return f"more than {SUM_ENTRIES_MAX} amounts are in the window (rule `{rule.id}`)"
                is_over = pin.total + amount > limit
                return f"{pin.total} and {amount} are more than {limit} (rule `{rule.id}`)" if is_over else ""
            case "distinct":
                value = _value(event, rule.of)
                known = {name for name, at_ms in pin.values.items() if at_ms > since_ms}
                return (
                    ""
                    if len(known | {value}) <= limit
                    else f"at most {limit} different values of `{rule.of}` are allowed (rule `{rule.id}`)"
                )

    def advance(self, event: Event) -> None:
        """Take in what happened."""
        for rule, pins in zip(self._rules, self._pins, strict=True):
            is_event = _fits(rule.event, event, is_judged=True) and event.state == "intended"
            is_before = rule.before is not None and _fits(rule.before, event)
            is_undone = rule.without is not None and _fits(rule.without, event)
            if not (is_event or is_before or is_undone):
                continue
            key = _value(event, rule.per) if rule.per else ""
            pin = pins.get(key)
            if pin is None:
                if len(pins) >= PINS_MAX:
                    continue  # `judge` says no to whatever would need it
                pin = pins[key] = _Pin()
            if is_event:
                self._happened(rule, pin, event)
            if is_undone:
                pin.seen_ms = None
            if is_before:
                pin.seen_ms = event.at_ms

    def _happened(self, rule: Rule, pin: _Pin, event: Event) -> None:
        since_ms = event.at_ms - rule.window_ms
        if rule.kind == "require" and rule.once:
            pin.seen_ms = None
        elif rule.kind == "count":
            pin.entries.append((event.at_ms, 1))
            while len(pin.entries) > max(1, rule.at_most or 0):  # older ones decide nothing
                pin.entries.popleft()
        elif rule.kind == "sum":
            amount = event.arguments.get(rule.of)
            _add(pin, event.at_ms, amount if isinstance(amount, int) and not isinstance(amount, bool) else 0)
            _expire(pin, since_ms)
            if rule.window_ms == FOREVER_MS:  # only the sum counts
                pin.entries.clear()
                pin.entries.append((event.at_ms, pin.total))
        elif rule.kind == "distinct":
            value = _value(event, rule.of)
            pin.values.pop(value, None)
            pin.values[value] = event.at_ms  # the newest last
            for name in [name for name, at_ms in pin.values.items() if at_ms <= since_ms]:
                del pin.values[name]
            while (
                len(pin.values) > (rule.at_most or 0) + 1
            ):  # more than allowed already: older ones decide nothing
                del pin.values[next(iter(pin.values))]


def _add(pin: _Pin, at_ms: int, amount: int) -> None:
    pin.entries.append((at_ms, amount))
    pin.total += amount


def _expire(pin: _Pin, since_ms: int) -> None:
    """Forget what has left the window."""
    while pin.entries and pin.entries[0][0] <= since_ms:
        pin.total -= pin.entries.popleft()[1]


def _fits(pattern: Pattern, event: Event, *, is_judged: bool = False) -> bool:
    """Whether an action is meant; what is judged has no outcome yet."""
    if not is_judged and pattern.state != event.state:
        return False
    if pattern.effect and pattern.effect != event.effect:
        return False
    return pattern.tool in ("*", event.name) or fnmatch.fnmatchcase(event.name, pattern.tool)


def _value(event: Event, path: str) -> str:
    """The value of an argument as text, by dotted path."""
    found: Any = event.arguments
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return MISSING
        found = found[part]
    return f"{type(found).__name__}:{found}"
