"""Conduct rules: each kind, the bounds, and every automaton against a reader of the whole history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.governance.conduct import PINS_MAX, SUM_ENTRIES_MAX, Conduct, Event
from perdure.governance.conduct_rules import ConductInvalidError, Rule, load_rules

TOOLS = ("look", "pay", "mail.send", "mail.read", "review")


def rules(text: str) -> tuple[Rule, ...]:
    return load_rules(text, TOOLS)


def rule(**fields: Any) -> str:
    lines = [f"{name} = {_toml(value)}" for name, value in {"id": "r", **fields}.items()]
    return "\n".join(["[[rule]]", *lines])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value) if isinstance(value, int) else f'"{value}"'


def event(name: str, at_s: int = 0, state: str = "intended", **arguments: Any) -> Event:
    effect = "read" if name in ("look", "mail.read") else "irreversible"
    return Event(name=name, effect=effect, at_ms=at_s * 1000, arguments=arguments, state=state)


def kinds(text: str, *events: Event) -> list[str]:
    """What is said of each event, when it happens all the same where it is allowed."""
    conduct, found = Conduct(rules(text)), []
    for item in events:
        if item.state == "intended":
            verdict = conduct.judge(item)
            found.append(verdict.kind)
            if verdict.kind != "allow":
                continue
        conduct.advance(item)
    return found


def test_look_before_you_pay() -> None:
    text = rule(kind="require", event={"tool": "pay"}, before={"tool": "look"})
    looked = event("look", 1, "succeeded")
    assert kinds(text, event("pay")) == ["deny"]
    assert kinds(text, event("look", 1), looked, event("pay", 2), event("pay", 3)) == ["allow"] * 3
    assert kinds(text, event("look", 1), event("look", 1, "failed"), event("pay", 2)) == ["allow", "deny"]
    once = rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, once=True)
    assert kinds(once, looked, event("pay", 2), event("pay", 3)) == ["allow", "deny"], "one look, one payment"
    soon = rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, within="10s")
    assert kinds(soon, looked, event("pay", 10), event("pay", 11)) == ["allow", "deny"]
    each = rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, per="to")
    assert kinds(
        each, event("look", 1, "succeeded", to="a"), event("pay", 2, to="b"), event("pay", 2, to="a")
    ) == ["deny", "allow"]


def test_after_reading_strangers_mail_nothing_is_sent_without_a_review() -> None:
    text = rule(
        kind="after", event={"tool": "mail.send"}, before={"tool": "mail.read"}, without={"tool": "review"}
    )
    read, reviewed = event("mail.read", 1, "succeeded"), event("review", 2, "succeeded")
    assert kinds(text, event("mail.send")) == ["allow"]
    assert kinds(text, read, event("mail.send", 3)) == ["deny"]
    assert kinds(text, read, reviewed, event("mail.send", 3)) == ["allow"]
    assert kinds(text, read, reviewed, read, event("mail.send", 3)) == ["deny"]


def test_counts_sums_and_different_values() -> None:
    pays = [event("pay", second, cents=10, to=str(second % 3)) for second in range(6)]
    assert kinds(rule(kind="count", event={"tool": "pay"}, at_most=2), *pays) == [
        "allow",
        "allow",
        "deny",
        "deny",
        "deny",
        "deny",
    ]
    assert (
        kinds(rule(kind="count", event={"tool": "pay"}, at_most=2, within="2s"), *pays)
        == ["allow", "allow"] * 3
    )
    assert kinds(rule(kind="count", event={"tool": "pay"}, at_most=0), *pays)[0] == "deny"
    assert kinds(rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=25), *pays) == [
        "allow",
        "allow",
        "deny",
        "deny",
        "deny",
        "deny",
    ]
    assert kinds(rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=20, within="3s"), *pays)[:4] == [
        "allow",
        "allow",
        "deny",
        "allow",
    ]
    assert kinds(rule(kind="distinct", event={"tool": "pay"}, of="to", at_most=2), *pays) == [
        "allow",
        "allow",
        "deny",
        "allow",
        "allow",
        "deny",
    ]
    assert kinds(rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=5), event("pay", cents="3")) == [
        "deny"
    ], "what is no number"
    held = Conduct(
        rules(
            rule(
                kind="count",
                event={"effect": "irreversible"},
                at_most=0,
                then="hold",
                roles=["head"],
                reason="too often",
            )
        )
    )
    verdict = held.judge(event("pay"))
    assert (verdict.kind, verdict.demands[0].roles, verdict.reasons[0].message) == (
        "hold",
        ("head",),
        "too often",
    )
    assert held.judge(event("look")).kind == "allow"


def test_what_is_refused_or_held_does_not_count() -> None:
    text = rule(kind="count", event={"tool": "pay"}, at_most=1)
    assert kinds(text, event("pay", 0, "refused"), event("pay", 1), event("pay", 2)) == ["allow", "deny"]


def test_where_a_bound_would_be_passed_the_answer_is_no() -> None:
    conduct = Conduct(rules(rule(kind="count", event={"tool": "pay"}, at_most=5, per="to")))
    for number in range(PINS_MAX):
        conduct.advance(event("pay", to=number))
    assert conduct.judge(event("pay", to="new")).reasons[0].code == "conduct-full"
    assert conduct.judge(event("pay", to=1)).kind == "allow"
    conduct = Conduct(rules(rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=10**9, within="1d")))
    for _ in range(SUM_ENTRIES_MAX):
        conduct.advance(event("pay", 1, cents=1))
    assert "amounts are in the window" in conduct.judge(event("pay", 2, cents=1)).reasons[0].message


@pytest.mark.parametrize(
    "text",
    [
        "[[rule]", "x = 1", rule(kind="count", event={"tool": "pya"}, at_most=1), rule(kind="never", event={"tool": "pay"}),
        rule(kind="count", event={"tool": "pay"}), rule(kind="sum", event={"tool": "pay"}, at_most=1), rule(kind="require", event={"tool": "pay"}),
        rule(kind="count", event={"tool": "pay"}, at_most=1, before={"tool": "look"}), rule(kind="count", event={"tool": "pay"}, at_most=1, within="soon"),
        rule(kind="count", event={"tool": "pay"}, at_most=-1), rule(kind="count", event={"tool": "pay"}, at_most=1, colour="red"),
        rule(kind="count", event={"tool": "pay", "kind": "x"}, at_most=1), rule(kind="count", event={"tool": "pay"}, at_most=1, once=True),
        rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, at_most=1), rule(kind="count", event={"tool": "pay"}, at_most=1) + "\n" + rule(kind="count", event={"tool": "pay"}, at_most=2),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_used_are_refused(text: str) -> None:
    with pytest.raises(ConductInvalidError):
        rules(text)


# -- against a reader of the whole history
NAIVE = {
    "require": rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, without={"tool": "review"}, within="5s", per="to"),
    "require once": rule(kind="require", event={"tool": "pay"}, before={"tool": "look"}, once=True),
    "after": rule(kind="after", event={"tool": "pay"}, before={"tool": "look"}, without={"tool": "review"}, within="4s"),
    "count": rule(kind="count", event={"tool": "pay"}, at_most=2, within="4s", per="to"),
    "count all": rule(kind="count", event={"tool": "pay"}, at_most=4),
    "sum": rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=7, within="4s"),
    "sum all": rule(kind="sum", event={"tool": "pay"}, of="cents", at_most=9),
    "distinct": rule(kind="distinct", event={"tool": "pay"}, of="to", at_most=1, within="3s"),
}  # fmt: skip


def naive(rule: Rule, history: list[Event], now: Event) -> bool:
    """Whether ``now`` is allowed, read off the whole history."""
    mine = [
        item
        for item in history
        if not rule.per or item.arguments.get(rule.per) == now.arguments.get(rule.per)
    ]
    since = now.at_ms - rule.window_ms
    paid = [item for item in mine if item.name == "pay" and item.state == "intended" and item.at_ms > since]
    if rule.kind in ("require", "after"):
        seen = None
        for item in mine:
            if rule.once and item.name == "pay" and item.state == "intended":
                seen = None
            if rule.without is not None and item.name == "review" and item.state == "succeeded":
                seen = None
            if item.name == "look" and item.state == "succeeded":
                seen = item.at_ms
        has_seen = seen is not None and seen > since
        return has_seen if rule.kind == "require" else not has_seen
    if rule.kind == "count":
        return len(paid) < (rule.at_most or 0)
    if rule.kind == "sum":
        return sum(item.arguments["cents"] for item in paid) + now.arguments["cents"] <= (rule.at_most or 0)
    return len({item.arguments["to"] for item in paid} | {now.arguments["to"]}) <= (rule.at_most or 0)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(NAIVE)),
    st.lists(
        st.tuples(
            st.sampled_from(["pay", "look", "review"]),
            st.integers(0, 2),
            st.sampled_from("ab"),
            st.integers(0, 4),
        ),
        max_size=40,
    ),
)
def test_an_automaton_says_what_the_whole_history_says(
    name: str, steps: list[tuple[str, int, str, int]]
) -> None:
    [found] = rules(NAIVE[name])
    conduct, history, now_s = Conduct([found]), [], 0
    for tool, gap, to, cents in steps:
        now_s += gap
        state = "intended" if tool == "pay" else "succeeded"
        item = event(tool, now_s, state, to=to, cents=cents)
        if tool == "pay":
            allowed = conduct.judge(item).kind == "allow"
            assert allowed == naive(found, history, item)
            if not allowed:
                continue
        conduct.advance(item)
        history.append(item)
