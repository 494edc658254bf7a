"""Sequence rules against a slow evaluator that reads the whole history each time, on random rules and traces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest

from perdure.governance.conduct import advance, judge, overdue, replayed
from perdure.governance.conduct_patterns import Event
from perdure.governance.conduct_rules import Rules
from perdure.governance.conduct_state import State

TOOLS = ("look", "pay", "send", "shut")
EFFECTS: dict[str, Any] = {
    "look": "read",
    "pay": "irreversible",
    "send": "irreversible",
    "shut": "reversible",
}
STATES = ("requested", "intended", "succeeded", "failed", "refused")
BECOMES = {"requested": STATES, "intended": ("intended", "succeeded", "failed")}
TRACES = 120
LENGTH = 60


# -- the slow evaluator ------------------------------------------------------------------------
@dataclass(frozen=True)
class Then:
    """An event with when it was, in every unit."""

    event: Event
    marks: dict[str, int]


def fits(pattern: dict[str, Any], event: Event, states: tuple[str, ...]) -> bool:
    if pattern["state"] not in states or event.tool not in pattern["tool"]:
        return False
    return "where" not in pattern or event.arguments["amount"] > int(pattern["where"]["amount"][1:])


class Slow:
    """One rule, as a program over all that has happened."""

    def __init__(self, rule: dict[str, Any]) -> None:
        self.rule = rule
        within = rule.get("within", "")
        self.unit = "none" if not within else "actions" if "actions" in within else "ms"
        self.span = int(within.split()[0].rstrip("ms")) if within else 1
        self.past: list[Then] = []

    def marks(self, event: Event) -> dict[str, int]:
        last = self.past[-1].marks if self.past else {"ms": 0, "actions": 0, "none": 0}
        actions = last["actions"] + (event.state == "requested")
        return {"ms": max(last["ms"], event.at_ms), "actions": actions, "none": 0}

    def see(self, event: Event) -> None:
        self.past.append(Then(event, self.marks(event)))

    def key(self, event: Event) -> Any:
        return event.arguments[self.rule["per"]] if "per" in self.rule else None

    def hits(self, name: str, event: Event) -> list[tuple[int, Then]]:
        """The places in the past where a pattern fits, for the pin of this event."""
        pattern = self.rule.get(name)
        if pattern is None:
            return []
        return [
            (place, then)
            for place, then in enumerate(self.past)
            if fits(pattern, then.event, (then.event.state,)) and self.key(then.event) == self.key(event)
        ]

    def is_live(self, then: Then, event: Event) -> bool:
        return self.marks(event)[self.unit] - then.marks[self.unit] < self.span

    def breaks(self, event: Event) -> bool:
        rule = self.rule
        action = rule.get("action")
        if action is None or not fits(action, event, BECOMES.get(event.state, (event.state,))):
            return False
        live = [then.event for _, then in self.hits("action", event) if self.is_live(then, event)]
        match rule["kind"]:
            case "after":
                ended = max((place for place, _ in self.hits("unless", event)), default=-1)
                begun = self.hits("first", event)
                return any(place >= ended and self.is_live(then, event) for place, then in begun)
            case "count":
                return len(live) + 1 > rule["max"]
            case "sum":
                amounts = [one.arguments["amount"] for one in (*live, event)]
                return sum(amounts) > rule["max"]
            case "distinct":
                return len({one.arguments["who"] for one in (*live, event)}) > rule["max"]
            case "require":
                return not any(self.is_live(then, event) for then in self.unused(event))
            case _:
                return any(late["ended"] is None for late in self.late(self.marks(event)["ms"]))

    def unused(self, event: Event) -> list[Then]:
        """What is needed and was not used up by an earlier action."""
        needed = self.hits("needs", event)
        if not self.rule.get("once"):
            return [then for _, then in needed]
        used: set[int] = set()
        for place, then in self.hits("action", event):
            for other, need in needed:
                is_live = then.marks[self.unit] - need.marks[self.unit] < self.span
                if other < place and other not in used and is_live:
                    used.add(other)
                    break
        return [then for place, then in needed if place not in used]

    def late(self, now_ms: int) -> list[dict[str, Any]]:
        """What was due and has not come, or came late."""
        found = []
        for key in {self.key(then.event) for then in self.past}:
            since: int | None = None
            for then in self.past:
                if self.key(then.event) != key:
                    continue
                states = (then.event.state,)
                if fits(self.rule["followed_by"], then.event, states):
                    if since is not None and then.marks["ms"] - since >= self.span:
                        found.append({"since": since, "ended": then.marks["ms"]})
                    since = None
                if fits(self.rule["first"], then.event, states) and since is None:
                    since = then.marks["ms"]
            if since is not None and now_ms - since >= self.span:
                found.append({"since": since, "ended": None})
        return found


# -- random rules and traces -------------------------------------------------------------------
def some_pattern(chance: Random, state: str) -> dict[str, Any]:
    made: dict[str, Any] = {"tool": chance.sample(TOOLS, chance.choice((1, 1, 2)))}
    made["state"] = chance.choice((state, state, *STATES))
    if chance.random() < 0.3:
        made["where"] = {"amount": f">{chance.randrange(5, 25)}"}
    return made


def some_rule(chance: Random, number: int) -> dict[str, Any]:
    kind = chance.choice(("after", "require", "count", "distinct", "sum", "absence"))
    made: dict[str, Any] = {"id": f"r{number}", "kind": kind, "then": "deny", "reason": "because"}
    if chance.random() < 0.5:
        made["per"] = "who"
    made["within"] = chance.choice(("", "5 actions", "12 actions", "40ms", "100ms"))
    made["action"] = some_pattern(chance, "intended")
    match kind:
        case "after":
            made |= {"first": some_pattern(chance, "succeeded"), "unless": some_pattern(chance, "succeeded")}
        case "require":
            made |= {"needs": some_pattern(chance, "succeeded"), "once": chance.random() < 0.6}
        case "count" | "distinct":
            made["max"] = chance.randrange(0, 5)
        case "sum":
            made["max"] = chance.randrange(0, 120)
        case _:
            made |= {"first": some_pattern(chance, "succeeded"), "within": chance.choice(("40ms", "100ms"))}
            made["followed_by"] = some_pattern(chance, "succeeded")
    if kind in ("distinct", "sum"):
        made["of"] = "who" if kind == "distinct" else "amount"
    if not made["within"]:
        del made["within"]
    return made


def some_event(chance: Random, now_ms: int) -> Event:
    tool = chance.choice(TOOLS)
    return Event(
        tool=tool,
        effect=EFFECTS[tool],
        state=chance.choice(STATES),  # type: ignore[arg-type]
        at_ms=now_ms,
        arguments={"who": chance.choice(("a", "b", 1, "1")), "amount": chance.randrange(0, 40)},
    )


def toml(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(toml(item) for item in value) + "]"
        case _:
            return json.dumps(value)


def written(rules: list[dict[str, Any]]) -> str:
    return "\n".join(
        "[[rule]]\n" + "\n".join(f"{name} = {toml(value)}" for name, value in rule.items()) for rule in rules
    )


def compared(seed: int) -> set[str]:
    """Compare both on one trace; the kinds of rules that were broken in it."""
    chance = Random(seed)
    slow = [Slow(some_rule(chance, number)) for number in range(12)]
    rules = Rules.load(written([one.rule for one in slow]), TOOLS)
    state = State.fresh(rules)
    now_ms = 1_000
    broken: set[str] = set()
    for _ in range(LENGTH):
        now_ms += chance.choice((0, 1, 7, 30, -5))
        event = some_event(chance, now_ms)
        before = msgspec.json.encode(state.to_data(rules))
        found = {reason.rule for reason in judge(rules, state, event).reasons}
        assert found == {one.rule["id"] for one in slow if one.breaks(event)}, event
        assert msgspec.json.encode(state.to_data(rules)) == before  # judging changes nothing
        broken |= {one.rule["kind"] for one in slow if one.rule["id"] in found}
        if chance.random() < 0.3:  # a snapshot, and another process that goes on from it
            state = State.from_data(rules, msgspec.json.decode(before))
        state = advance(rules, state, event)
        for one in slow:
            one.see(event)
        if chance.random() < 0.2:
            at_ms = now_ms + chance.randrange(0, 200)
            latest = max(at_ms, state.now_ms)
            seen = {(item.rule, item.since_ms, item.ended_ms) for item in overdue(rules, state, at_ms)}
            wanted = [one for one in slow if one.rule["kind"] == "absence"]
            assert seen == {
                (one.rule["id"], late["since"], late["ended"]) for one in wanted for late in one.late(latest)
            }
    again = replayed(rules, [then.event for then in slow[0].past])
    assert again.to_data(rules) == state.to_data(rules)
    return broken


@pytest.mark.parametrize("seed", range(TRACES))
def test_the_automata_answer_as_the_whole_history_does(seed: int) -> None:
    compared(seed)


def test_the_traces_break_rules_of_every_kind() -> None:
    assert set().union(*map(compared, range(20))) == {
        "after",
        "require",
        "count",
        "distinct",
        "sum",
        "absence",
    }


def test_the_comparison_can_fail() -> None:
    rule = {"id": "r", "kind": "count", "then": "deny", "reason": "x", "max": 1, "within": "10ms"}
    rule["action"] = {"tool": ["pay"], "state": "intended"}
    slow = Slow({**rule, "max": 2})
    rules = Rules.load(written([rule]), TOOLS)
    event = Event(
        tool="pay",
        effect="irreversible",
        state="intended",
        at_ms=5,
        arguments={"who": "a", "amount": 1},
    )
    slow.see(event)
    assert judge(rules, advance(rules, State.fresh(rules), event), event).is_deny
    assert not slow.breaks(event)
