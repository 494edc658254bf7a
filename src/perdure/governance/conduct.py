"""Sequence rules over a run's own actions, as small automata.

``judge`` says whether an action would break a rule, ``advance`` takes in what has happened, ``overdue`` says what has not.
What each of them costs depends on the rules, never on the length of the history. A run's events must come one after
another: between judging an action and taking in that it is intended, nothing else of the run may be judged, or two actions
could both use the last place.

Nothing that restricts is forgotten to save room. What cannot be kept or checked is denied, with a code of its own:
``conduct-partitions-full``, ``conduct-window-full``, ``conduct-pin-missing``, ``conduct-value-invalid``,
``conduct-incomplete``. Only a rule that merely watches does not deny then either.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from perdure.core.verdicts import ALLOW, Demand, Kind, Reason, Verdict
from perdure.governance.conduct_automata import Breach, breach_of, mark_of, record
from perdure.governance.conduct_patterns import Event
from perdure.governance.conduct_rules import Rule, Rules, Then
from perdure.governance.conduct_state import State

CONTAIN = "contain"  # the obligation that says to which level the run is to be contained
_TEXT: dict[str, str] = {
    "partitions-full": "it is about more different values than can be told apart",
    "window-full": "there are more amounts within the time than can be kept",
    "pin-missing": "the argument that it goes by is missing",
    "value-invalid": "the argument that it goes by is missing or of another type",
    "incomplete": "something that it counts could not be kept",
}


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that had to follow did not, or not in time.

    Attributes:
        rule: which rule says so.
        then: what it asks for.
        code: ``conduct-absence``; ``conduct-late`` if it followed after its time; ``conduct-incomplete`` if the rule
            could not keep everything.
        message: for people.
        key: the value of the pin.
        since_ms: when it was that something had to follow.
        due_ms: by when.
        ended_ms: when it followed.
        roles: for ``hold``, who may sign.
    """

    rule: str
    then: Then
    code: str
    message: str
    key: str
    since_ms: int
    due_ms: int
    ended_ms: int | None = None
    roles: tuple[str, ...] = ()


def judge(rules: Rules, state: State, event: Event) -> Verdict:
    """Whether this event, if it happened, would break a rule. Changes nothing.

    An action that is ``requested`` or ``intended`` is judged as if it came to any state that it can still come to. A held
    action that is judged again when it is released is ``intended``: its request is taken in already.

    Returns:
        The strictest answer with every reason. ``restrict`` denies what is no read. With ``restrict`` and ``watch`` the
        obligation ``contain`` names the level that the rule asks for.
    """
    kind: Kind = "allow"
    reasons: list[Reason] = []
    demands: list[Demand] = []
    level = ""
    for place in rules.about(event.tool):
        rule = rules.rules[place]
        breach = breach_of(rule, state.cells[place], event, mark_of(rule, state, event))
        if not breach:
            continue
        reasons.append(_reason(rule, breach))
        match "deny" if breach != "broken" and rule.then != "watch" else rule.then:
            case "deny":
                kind = "deny"
            case "restrict":
                level = "restrict"
                kind = "deny" if event.effect != "read" else kind
            case "hold":
                kind = "hold" if kind == "allow" else kind
                demand = Demand(roles=rule.roles, quorum=rule.quorum)
                demands += [] if demand in demands else [demand]
            case "watch":
                level = level or "watch"
    if not reasons:
        return ALLOW
    return Verdict(
        kind=kind,
        reasons=tuple(reasons),
        demands=tuple(demands) if kind == "hold" else (),
        obligations={CONTAIN: level} if level else {},
    )


def advance(rules: Rules, state: State, event: Event) -> State:
    """Take in an event, after it is recorded; also one that was denied, as ``requested`` and then ``refused``.

    Returns:
        The same state, changed.
    """
    state.now_ms = max(state.now_ms, event.at_ms)
    if event.state == "requested":
        state.actions += 1
    for place in rules.about(event.tool):
        rule = rules.rules[place]
        record(rule, state.cells[place], event, mark_of(rule, state, event, is_taken=True))
    return state


def replayed(rules: Rules, events: Iterable[Event]) -> State:
    """The state after a history: for a run whose state was not kept, or was kept for other rules."""
    state = State.fresh(rules)
    for event in events:
        advance(rules, state, event)
    return state


def overdue(rules: Rules, state: State, now_ms: int) -> list[Violation]:
    """What had to follow and has not, or came too late, in the order of the rules.

    A violation is given each time, until what had to follow has come; one that came too late is given for good (the last
    16 of each rule). ``rule``, ``key`` and ``since_ms`` tell violations apart.
    """
    now_ms = max(now_ms, state.now_ms)
    found: list[Violation] = []
    for rule, cell in zip(rules.rules, state.cells, strict=True):
        if rule.kind != "absence":
            continue
        found += [
            _violation(rule, "conduct-late", late.key, late.since_ms, late.ended_ms) for late in cell.late
        ]
        for key, part in cell.parts.items():
            if now_ms - part.marks[0] < rule.span:
                break  # the oldest come first
            found.append(_violation(rule, "conduct-absence", key, part.marks[0]))
        if cell.lost is not None:
            found.append(_violation(rule, "conduct-incomplete", "", cell.lost))
    return found


def _violation(rule: Rule, code: str, key: str, since_ms: int, ended_ms: int | None = None) -> Violation:
    return Violation(
        rule=rule.id, then=rule.then, code=code, message=rule.reason, key=key, since_ms=since_ms,
        due_ms=since_ms + rule.span, ended_ms=ended_ms, roles=rule.roles,
    )  # fmt: skip


def _reason(rule: Rule, breach: Breach) -> Reason:
    if breach == "broken":
        return Reason(code=f"conduct-{rule.kind}", message=rule.reason, rule=rule.id)
    return Reason(
        code=f"conduct-{breach}", message=f"rule `{rule.id}` cannot be checked: {_TEXT[breach]}", rule=rule.id
    )
