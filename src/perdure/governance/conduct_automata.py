"""The automata of sequence rules: what each kind answers, and what it keeps.

The pure inside of ``conduct``: one rule, one cell, one event. What is kept for a pin lies in the order in which it was
touched, so whether there is room for another one is answered by a look at the first.
"""

from __future__ import annotations

from typing import Literal

from perdure.governance.conduct_patterns import Event, key_of, value_at
from perdure.governance.conduct_rules import AMOUNT_MAX, Rule
from perdure.governance.conduct_state import LATE_MAX, Cell, Late, Part, State

Breach = Literal[
    "", "broken", "partitions-full", "window-full", "pin-missing", "value-invalid", "incomplete",
]  # fmt: skip


def mark_of(rule: Rule, state: State, event: Event, *, is_taken: bool = False) -> int:
    """The mark of an event in the rule's unit; ``is_taken`` says that the state has counted it already."""
    match rule.unit:
        case "ms":
            return max(state.now_ms, event.at_ms)
        case "actions":
            return state.actions + (event.state == "requested" and not is_taken)
        case _:
            return 0


# -- judging -----------------------------------------------------------------------------------
def breach_of(rule: Rule, cell: Cell, event: Event, now: int) -> Breach:
    """How an event, at this mark, would break the rule; empty if it would not."""
    if rule.kind != "require" and rule.opens is not None and rule.opens.is_judged(event):
        # what makes the rule look must be kept; if it cannot be, it may not happen
        key = rule.opens.key(event)
        if key is None:
            return "pin-missing"
        if key not in cell.parts and _is_full(rule, cell, now):
            return "partitions-full"
        if rule.kind == "absence" and cell.lost is not None:
            return "incomplete"
    if rule.action is None or not rule.action.is_judged(event):
        return ""
    match rule.kind:
        case "after":
            return _breach_after(rule, cell, event, now)
        case "require":
            part = cell.parts.get(rule.action.key(event) or "") if cell.parts else None
            return "" if part is not None and now - part.marks[-1] < rule.span else "broken"
        case "absence":
            oldest = next(iter(cell.parts.values()), None)
            return "broken" if oldest is not None and now - oldest.marks[0] >= rule.span else ""
        case "count" | "distinct" | "sum":
            return _breach_limit(rule, cell, event, now)


def _breach_after(rule: Rule, cell: Cell, event: Event, now: int) -> Breach:
    if _is_lost(rule, cell, now):
        return "incomplete"
    if not cell.parts:
        return ""
    key = rule.action.key(event) if rule.action else None
    if key is None:
        return "pin-missing"
    part = cell.parts.get(key)
    return "broken" if part is not None and now - part.marks[-1] < rule.span else ""


def _breach_limit(rule: Rule, cell: Cell, event: Event, now: int) -> Breach:
    if _is_lost(rule, cell, now):
        return "incomplete"
    key = rule.action.key(event) if rule.action else None
    if key is None:
        return "pin-missing"
    part = cell.parts.get(key)
    if part is None and _is_full(rule, cell, now):
        return "partitions-full"
    match rule.kind:
        case "count":
            return _breach_count(rule, part, now)
        case "distinct":
            value = key_of(value_at(event.arguments, rule.of))
            if value is None:
                return "value-invalid"
            return "broken" if _others(rule, part, value, now) + 1 > rule.max else ""
        case _:
            amount = _amount(rule, event)
            return "value-invalid" if amount is None else _breach_sum(rule, part, amount, now)


def _breach_count(rule: Rule, part: Part | None, now: int) -> Breach:
    if rule.max == 0:
        return "broken"
    if part is None:
        return ""
    if not rule.unit:
        return "broken" if part.total >= rule.max else ""
    return "broken" if len(part.marks) >= rule.max and now - part.marks[0] < rule.span else ""


def _breach_sum(rule: Rule, part: Part | None, amount: int, now: int) -> Breach:
    total, live = 0, 0
    if part is not None:
        gone = _gone(rule, part, now)
        total = part.total - sum(part.amounts[:gone])
        live = len(part.marks) - gone
    if total + amount > rule.max:
        return "broken"
    return "window-full" if rule.unit and amount and live >= rule.entries else ""


def _others(rule: Rule, part: Part | None, value: str, now: int) -> int:
    """How many different values are in the window beside this one."""
    if part is None:
        return 0
    gone = 0
    for mark in part.seen.values():
        if now - mark < rule.span:
            break
        gone += 1
    is_in = value in part.seen and now - part.seen[value] < rule.span
    return len(part.seen) - gone - is_in


def _amount(rule: Rule, event: Event) -> int | None:
    """What is summed. Below zero would make room for more, so it does not count as an amount."""
    found = value_at(event.arguments, rule.of)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        return None
    return min(found, AMOUNT_MAX)


def _gone(rule: Rule, part: Part, now: int) -> int:
    """How many of the oldest marks are out of the window."""
    gone = 0
    for mark in part.marks:
        if now - mark < rule.span:
            break
        gone += 1
    return gone


# -- recording ---------------------------------------------------------------------------------
def record(rule: Rule, cell: Cell, event: Event, now: int) -> None:
    """Take an event in, at this mark.

    What ends a rule's look comes before what begins it: an event that is both begins it.
    """
    if rule.closes is not None and rule.closes.is_recorded(event):
        _record_close(rule, cell, event, now)
    keeps_actions = rule.kind != "after" and rule.kind != "absence"
    if keeps_actions and rule.action is not None and rule.action.is_recorded(event):
        _record_action(rule, cell, event, now)
    if rule.opens is not None and rule.opens.is_recorded(event):
        _record_open(rule, cell, event, now)


def _record_close(rule: Rule, cell: Cell, event: Event, now: int) -> None:
    key = rule.closes.key(event) if rule.closes else None
    part = cell.parts.pop(key, None) if key is not None else None
    if rule.kind == "absence" and part is not None and now - part.marks[0] >= rule.span:
        if len(cell.late) == LATE_MAX:
            cell.late.pop(0)
            cell.late_more += 1
        cell.late.append(Late(key or "", part.marks[0], now))


def _record_open(rule: Rule, cell: Cell, event: Event, now: int) -> None:
    key = rule.opens.key(event) if rule.opens else None
    if rule.kind == "absence" and key in cell.parts:
        return  # the oldest is the first to be due, and whatever follows it follows this one too
    part = _part(rule, cell, key, now)
    if part is None:
        return
    if rule.once:
        part.marks.append(now)
        del part.marks[: -rule.entries]
    else:
        part.marks = [now]


def _record_action(rule: Rule, cell: Cell, event: Event, now: int) -> None:
    key = rule.action.key(event) if rule.action else None
    if rule.kind == "require":
        if rule.once and key is not None:
            _use_up(rule, cell, key, now)
        return
    amount = _amount(rule, event) if rule.kind == "sum" else 1
    value = key_of(value_at(event.arguments, rule.of)) if rule.kind == "distinct" else ""
    if amount is None or value is None:
        cell.lost = now
        return
    if amount == 0:
        return
    part = _part(rule, cell, key, now)
    if part is None:
        return
    match rule.kind:
        case "count" if not rule.unit:
            part.total = min(part.total + 1, AMOUNT_MAX)
            part.marks = [now]
        case "count":
            part.marks.append(now)
            del part.marks[
                : -rule.max or len(part.marks) - 1
            ]  # as many as the limit tell whether it is reached
        case "distinct":
            part.seen.pop(value, None)
            part.seen[value] = now
            if len(part.seen) > rule.max + 1:
                del part.seen[next(iter(part.seen))]
        case _:
            _add(rule, part, amount, now)


def _add(rule: Rule, part: Part, amount: int, now: int) -> None:
    if not rule.unit:
        part.total = min(part.total + amount, AMOUNT_MAX)
        part.marks = [now]
        return
    gone = _gone(rule, part, now)
    part.total -= sum(part.amounts[:gone])
    del part.marks[:gone], part.amounts[:gone]
    if len(part.marks) >= rule.entries and len(part.marks) > 1:
        # judged, it would have been denied; the oldest amount stays in the window for longer instead of being forgotten
        joined = min(part.amounts[0] + part.amounts[1], AMOUNT_MAX)
        part.total -= part.amounts[0] + part.amounts[1] - joined
        part.amounts[:2], part.marks[:2] = [joined], [part.marks[1]]
    part.marks.append(now)
    part.amounts.append(amount)
    part.total += amount


def _use_up(rule: Rule, cell: Cell, key: str, now: int) -> None:
    """One of what is needed is used: the oldest in the window, which would be of no use first."""
    part = cell.parts.get(key)
    if part is None:
        return
    del part.marks[: _gone(rule, part, now) + 1]
    if not part.marks:
        del cell.parts[key]


def _part(rule: Rule, cell: Cell, key: str | None, now: int) -> Part | None:
    """What is kept for a value of the pin, made if need be, as the newest; ``None`` if it cannot be."""
    part = cell.parts.pop(key, None) if key is not None else None
    if key is None or (part is None and not _has_room(rule, cell, now)):
        if rule.kind != "require":  # to forget what releases an action lets less through
            cell.lost = now
        return None
    part = part or Part()
    cell.parts[key] = part
    return part


def _has_room(rule: Rule, cell: Cell, now: int) -> bool:
    if len(cell.parts) < rule.partitions:
        return True
    if rule.kind != "require" and _is_full(rule, cell, now):
        return False
    del cell.parts[next(iter(cell.parts))]
    return True


# -- room -------------------------------------------------------------------------------------
def _is_full(rule: Rule, cell: Cell, now: int) -> bool:
    """Whether there is no room for another value of the pin."""
    if len(cell.parts) < rule.partitions:
        return False
    if not rule.unit or rule.kind == "absence":
        return True
    return now - _newest(next(iter(cell.parts.values()))) < rule.span


def _newest(part: Part) -> int:
    return part.marks[-1] if part.marks else next(reversed(part.seen.values()))


def _is_lost(rule: Rule, cell: Cell, now: int) -> bool:
    if cell.lost is None:
        return False
    return rule.kind == "absence" or now - cell.lost < rule.span
