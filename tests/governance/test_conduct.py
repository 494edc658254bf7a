"""Sequence rules: each kind, what counts, what cannot be checked, files that are refused, and states that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.core.verdicts import Demand, Verdict
from perdure.governance.conduct import advance, judge, overdue, replayed
from perdure.governance.conduct_errors import ConductInvalidError, ConductStateError
from perdure.governance.conduct_patterns import Event, key_of
from perdure.governance.conduct_rules import CELLS_MAX, RULES_MAX, Rules
from perdure.governance.conduct_state import LATE_MAX, State

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies" / "conduct.toml"
EFFECTS: dict[str, Any] = {"look": "read", "ask": "read", "lock": "reversible"}
TOOLS = ("look", "ask", "lock", "pay", "pay.fast", "send", "sent_list", "approve")
S = "succeeded"


def event(tool: str, state: Any = "requested", at_ms: int = 0, **arguments: Any) -> Event:
    effect = EFFECTS.get(tool, "irreversible")
    return Event(tool=tool, effect=effect, state=state, at_ms=at_ms, arguments=arguments)


def rules_of(text: str, *, then: str = "deny", tools: tuple[str, ...] = TOOLS) -> Rules:
    return Rules.load(f'[[rule]]\nid = "r"\nreason = "because"\nthen = "{then}"\n{text}', tools)


class Life:
    """A run under one set of rules."""

    def __init__(self, text: str, **options: Any) -> None:
        self.rules = rules_of(text, **options)
        self.state = State.fresh(self.rules)

    def judge(self, tool: str, at_ms: int = 0, state: str = "requested", **arguments: Any) -> Verdict:
        return judge(self.rules, self.state, event(tool, state, at_ms, **arguments))

    def see(self, tool: str, *states: str, at_ms: int = 0, **arguments: Any) -> None:
        for state in states:
            advance(self.rules, self.state, event(tool, state, at_ms, **arguments))

    def does(self, tool: str, at_ms: int = 0, **arguments: Any) -> str:
        """Acts as a run does: what is allowed succeeds, the rest is refused; the first code, or nothing."""
        verdict = self.judge(tool, at_ms, **arguments)
        ends = ("refused",) if verdict.kind != "allow" else ("intended", "succeeded")
        self.see(tool, "requested", *ends, at_ms=at_ms, **arguments)
        return verdict.reasons[0].code if verdict.reasons else ""


# -- each kind ---------------------------------------------------------------------------------
def test_after_denies_until_something_else_came_between() -> None:
    life = Life('kind = "after"\nfirst = "look"\naction = "send"\nunless = "ask"')
    assert life.does("send") == ""
    life.does("look")
    assert life.does("send") == "conduct-after"
    assert life.does("pay") == ""
    life.does("ask")
    assert life.does("send") == ""
    life.does("look")
    assert life.does("send") == "conduct-after"


def test_after_holds_within_its_time_only() -> None:
    life = Life('kind = "after"\nfirst = "look"\naction = "send"\nwithin = "10s"')
    life.does("look", at_ms=1_000)
    assert life.does("send", at_ms=10_999) == "conduct-after"
    assert life.does("send", at_ms=11_000) == ""


def test_what_begins_a_rule_counts_from_its_intent_and_what_ends_it_when_it_succeeded() -> None:
    life = Life('kind = "after"\nfirst = "look"\naction = "send"\nunless = "ask"')
    life.see("look", "requested", "refused")
    assert life.does("send") == ""
    life.see("look", "requested", "intended")  # nobody knows yet whether it happened
    assert life.does("send") == "conduct-after"
    life.see("ask", "requested", "intended", "failed")
    assert life.does("send") == "conduct-after"


def test_count_limits_what_is_let_through_in_a_time() -> None:
    life = Life('kind = "count"\naction = "pay*"\nmax = 2\nwithin = "1m"')
    assert [life.does("pay", at_ms=at) for at in (0, 1)] == ["", ""]
    assert life.does("pay.fast", at_ms=2) == "conduct-count"
    assert life.does("pay", at_ms=59_999) == "conduct-count"
    assert life.does("pay", at_ms=60_000) == ""
    assert life.does("pay", at_ms=60_000) == "conduct-count"


def test_actions_that_are_under_way_count_and_denied_ones_do_not() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 1\nwithin = "1h"')
    for _ in range(5):
        life.see("pay", "requested", "refused")
    assert life.judge("pay").kind == "allow"
    life.see("pay", "requested", "intended")
    assert life.judge("pay").is_deny


def test_denied_attempts_count_if_the_rule_says_so() -> None:
    life = Life('kind = "count"\naction = {tool = "pay", state = "requested"}\nmax = 2')
    life.see("pay", "requested", "refused")
    life.see("pay", "requested", "refused")
    assert life.judge("pay").is_deny


def test_failures_can_be_counted() -> None:
    life = Life('kind = "count"\naction = {tool = "pay", state = "failed"}\nmax = 2\nwithin = "1m"')
    for _ in range(2):
        assert life.judge("pay").kind == "allow"
        life.see("pay", "requested", "intended", "failed")
    assert life.judge("pay").is_deny  # it could fail once more


def test_a_window_of_actions_is_measured_in_what_the_agent_asks_for() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 1\nwithin = "3 actions"')
    assert life.does("pay") == ""
    assert life.does("look") == ""
    assert life.does("pay") == "conduct-count"
    assert life.does("pay") == ""


def test_a_limit_of_nothing_means_never() -> None:
    for within in ("", 'within = "1h"'):
        assert Life(f'kind = "count"\naction = "pay"\nmax = 0\n{within}').does("pay") == "conduct-count"


def test_distinct_limits_different_values() -> None:
    life = Life('kind = "distinct"\naction = "send"\nof = "to.0.mail"\nmax = 2\nwithin = "1h"')
    mails = ["a", "b", "a", "c", "b", "d"]
    found = [life.does("send", at_ms=at, to=[{"mail": mail}]) for at, mail in enumerate(mails)]
    assert found == ["", "", "", "conduct-distinct", "", "conduct-distinct"]
    assert life.does("send", at_ms=3_600_003, to=[{"mail": "c"}]) == ""


def test_sum_limits_integers_in_a_time_and_over_the_whole_run() -> None:
    life = Life('kind = "sum"\naction = "pay"\nof = "cents"\nmax = 100\nwithin = "10s"')
    found = [
        life.does("pay", at_ms=at, cents=cents) for at, cents in ((0, 60), (1, 40), (2, 1), (10_000, 60))
    ]
    assert found == ["", "", "conduct-sum", ""]
    assert life.does("pay", at_ms=10_000, cents=1) == "conduct-sum"
    assert life.does("pay", at_ms=10_001, cents=1) == ""
    whole = Life('kind = "sum"\naction = "pay"\nof = "cents"\nmax = 100')
    assert [whole.does("pay", at_ms=at * 10**9, cents=34) for at in range(3)] == ["", "", "conduct-sum"]


@pytest.mark.parametrize("cents", [None, "60", 1.5, True, -1])
def test_what_cannot_be_summed_is_denied(cents: Any) -> None:
    life = Life('kind = "sum"\naction = "pay"\nof = "cents"\nmax = 100\nwithin = "10s"')
    assert life.does("pay", cents=cents) == "conduct-value-invalid"
    life.see("pay", "intended", cents=cents)  # it happened all the same: the sum is not known for as long
    assert life.does("pay", at_ms=9_999, cents=1) == "conduct-incomplete"
    assert life.does("pay", at_ms=10_000, cents=1) == ""


def test_require_wants_something_before() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = "look"\nwithin = "10s"')
    assert life.does("pay") == "conduct-require"
    life.see("look", "requested", "intended", "failed")
    assert life.does("pay") == "conduct-require"
    life.does("look", at_ms=5)
    assert [life.does("pay", at_ms=at) for at in (6, 10_004, 10_005)] == ["", "", "conduct-require"]


def test_an_approval_releases_one_action_only() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = "approve"\nonce = true\nper = "order"')
    life.does("approve", order=7)
    assert life.does("pay", order=8) == "conduct-require"
    assert life.does("pay", order="7") == "conduct-require"
    assert life.does("pay", order=7) == ""
    assert life.does("pay", order=7) == "conduct-require"
    life.does("approve", order=7)
    life.does("approve", order=7)
    assert [life.does("pay", order=7) for _ in range(3)] == ["", "", "conduct-require"]


def test_an_approval_is_used_up_by_the_intent_whatever_comes_of_it() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = "approve"\nonce = true')
    life.does("approve")
    life.see("pay", "requested", "refused")
    assert life.judge("pay").kind == "allow"
    life.see("pay", "requested", "intended", "failed")
    assert life.judge("pay").is_deny


def test_unused_approvals_beyond_the_bound_are_forgotten_which_lets_less_through() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = "approve"\nonce = true\nentries = 2')
    for at in range(5):
        life.does("approve", at_ms=at)
    assert [life.does("pay", at_ms=9) for _ in range(3)] == ["", "", "conduct-require"]


ABSENCE = 'kind = "absence"\nfirst = "lock"\nfollowed_by = "send"\nwithin = "10s"\nper = "door"\n'


def test_what_must_follow_and_does_not_is_found() -> None:
    life = Life(ABSENCE)
    life.does("lock", at_ms=1_000, door="a")
    life.does("lock", at_ms=5_000, door="a")
    life.does("lock", at_ms=6_000, door="b")
    assert overdue(life.rules, life.state, 10_999) == []
    (found,) = overdue(life.rules, life.state, 11_000)
    assert (found.rule, found.code, found.key, found.since_ms, found.due_ms, found.ended_ms) == (
        "r",
        "conduct-absence",
        '"a"',
        1_000,
        11_000,
        None,
    )
    life.does("send", at_ms=12_000, door="b")
    life.does("send", at_ms=12_000, door="a")
    (late,) = overdue(life.rules, life.state, 99_000)
    assert (late.code, late.key, late.since_ms, late.ended_ms) == ("conduct-late", '"a"', 1_000, 12_000)


def test_an_action_can_be_denied_while_something_is_overdue() -> None:
    life = Life(ABSENCE + 'action = "pay"')
    life.does("lock", door="a")
    assert life.does("pay", at_ms=9_999) == ""
    assert life.does("pay", at_ms=10_000) == "conduct-absence"
    life.does("send", at_ms=10_000, door="a")
    assert life.does("pay", at_ms=10_000) == ""


def test_late_ends_are_kept_in_a_bounded_list() -> None:
    life = Life(ABSENCE)
    for number in range(LATE_MAX + 3):
        life.does("lock", at_ms=number * 20_000, door="a")
        life.does("send", at_ms=number * 20_000 + 15_000, door="a")
    found = overdue(life.rules, life.state, 0)
    assert [item.since_ms for item in found] == [number * 20_000 for number in range(3, LATE_MAX + 3)]
    assert life.state.cells[0].late_more == 3


# -- what the answer is ------------------------------------------------------------------------
def test_a_hold_names_who_may_release_it() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 0\nroles = ["finance"]\nquorum = 2', then="hold")
    verdict = life.judge("pay")
    assert (verdict.kind, verdict.demands) == ("hold", (Demand(roles=("finance",), quorum=2),))
    assert (verdict.reasons[0].rule, verdict.reasons[0].message) == ("r", "because")


def test_restrict_denies_what_is_no_read_and_asks_for_the_level() -> None:
    life = Life('kind = "count"\naction = {effect = ["read", "irreversible"]}\nmax = 0', then="restrict")
    assert (life.judge("pay").kind, life.judge("pay").obligations) == ("deny", {"contain": "restrict"})
    assert (life.judge("look").kind, life.judge("look").obligations) == ("allow", {"contain": "restrict"})
    assert life.judge("lock").obligations == {}


def test_watch_lets_everything_through_and_says_so() -> None:
    life = Life('kind = "sum"\nof = "cents"\naction = "pay"\nmax = 0', then="watch")
    for cents, code in ((5, "conduct-sum"), ("?", "conduct-value-invalid")):
        verdict = life.judge("pay", cents=cents)
        assert (verdict.kind, verdict.obligations) == ("allow", {"contain": "watch"})
        assert [reason.code for reason in verdict.reasons] == [code]


def test_the_strictest_rule_wins_and_every_reason_is_told() -> None:
    made = [
        f'[[rule]]\nid = "{then}"\nkind = "count"\naction = "pay"\nmax = 0\nreason = "x"\nthen = "{then}"\n'
        + ('roles = ["a"]\n' if then == "hold" else "")
        for then in ("watch", "hold", "restrict", "deny")
    ]
    for number in range(4):
        rules = Rules.load("".join(made[: number + 1]), TOOLS)
        verdict = judge(rules, State.fresh(rules), event("pay"))
        assert verdict.kind == ("allow", "hold", "deny", "deny")[number]
        assert [reason.rule for reason in verdict.reasons] == ["watch", "hold", "restrict", "deny"][
            : number + 1
        ]
        assert bool(verdict.demands) == (number == 1)
        assert verdict.obligations["contain"] == ("watch" if number < 2 else "restrict")


def test_the_stricter_level_is_asked_for_whatever_comes_first() -> None:
    for order in (("watch", "restrict"), ("restrict", "watch")):
        made = [f'[[rule]]\nid = "{then}"\nkind = "count"\naction = "pay"\nmax = 0\nreason = "x"\nthen = "{then}"\n' for then in order]  # fmt: skip
        rules = Rules.load("".join(made), TOOLS)
        assert judge(rules, State.fresh(rules), event("pay")).obligations == {"contain": "restrict"}


def test_a_released_action_is_not_counted_twice() -> None:
    life = Life('kind = "count"\naction = {tool = "pay", state = "requested"}\nmax = 1')
    assert life.judge("pay").kind == "allow"
    life.see("pay", "requested")  # held by somebody else
    assert life.judge("pay", state="intended").kind == "allow"
    assert life.judge("pay").is_deny


def test_a_clock_that_goes_back_opens_no_window() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 1\nwithin = "10s"')
    life.does("pay", at_ms=100_000)
    assert life.does("pay", at_ms=5) == "conduct-count"
    assert life.does("pay", at_ms=110_000) == ""


# -- conditions and pins -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("condition", "fitting", "not_fitting", "undecided"),
    [
        ('">1000"', 1001, 1000, "5000"),
        ('">= 1000"', 1000, 999, None),
        ('"<-3"', -4, -3, True),
        ('"<=10"', 10.0, 10.5, float("nan")),
        ('"EUR"', "EUR", "USD", 5),
        ('"!=EUR"', "USD", "EUR", 5),
        ('"=5"', 5, "6", [5]),
        ("5", 5, 6, "5"),
        ("true", True, False, 1),
        ('["EUR", "USD"]', "USD", "GBP", {}),
        ('"~*@shop.[x]"', "a@shop.[x]", "a@shop.x", 1),
    ],
)
def test_conditions_on_arguments(condition: str, fitting: Any, not_fitting: Any, undecided: Any) -> None:
    life = Life(f'kind = "count"\naction = {{tool = "pay", where = {{"a.b" = {condition}}}}}\nmax = 0')
    assert life.judge("pay", a={"b": fitting}).is_deny
    assert life.judge("pay", a={"b": not_fitting}).kind == "allow"
    assert life.judge("pay", a={"b": undecided}).is_deny  # what cannot be told counts against the action
    assert life.judge("pay", a=[]).is_deny


def test_an_undecided_condition_releases_nothing() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = {tool = "approve", where = {by = "anna"}}')
    life.does("approve", by=5)
    assert life.does("pay") == "conduct-require"
    life.does("approve", by="anna")
    assert life.does("pay") == ""


def test_what_is_undecided_is_not_other_than_something_either() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = {tool = "approve", where = {by = "!=bob"}}')
    life.does("approve", by=5)
    assert life.does("pay") == "conduct-require"
    life.does("approve", by="anna")
    assert life.does("pay") == ""


def test_a_table_of_conditions_is_a_path_and_all_must_hold() -> None:
    life = Life('kind = "count"\naction = {tool = "pay", where = {to.bank = "x", cents = ">5"}}\nmax = 0')
    assert life.judge("pay", to={"bank": "x"}, cents=6).is_deny
    assert life.judge("pay", to={"bank": "y"}, cents=6).kind == "allow"


def test_a_long_argument_costs_no_more_than_its_length() -> None:
    life = Life('kind = "count"\naction = {tool = "pay", where = {a = "~*x*x*x*x*x*x*y"}}\nmax = 0')
    assert life.judge("pay", a="x" * 200_000).kind == "allow"


def test_pins_tell_types_apart_but_not_ways_to_write_a_number() -> None:
    values = [1, "1", True, "true", 1.5, "x" * 500, "x" * 501, 10**40]
    assert len({key_of(value) for value in values}) == len(values)
    assert key_of(1.0) == key_of(1)
    assert all(len(key_of(value) or "") <= 65 for value in values)
    assert [key_of(value) for value in (None, [], {})] == [None, None, None]


def test_a_pin_may_be_called_otherwise_in_one_of_the_patterns() -> None:
    text = 'kind = "require"\naction = "pay"\nneeds = {tool = "look", per = "id"}\nper = "order"'
    life = Life(text)
    life.does("look", id=5)
    assert (life.does("pay", order=5), life.does("pay", order=6)) == ("", "conduct-require")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('kind = "count"\naction = "pay"\nmax = 5', "conduct-pin-missing"),
        ('kind = "after"\nfirst = "pay"\naction = "send"', "conduct-pin-missing"),
        ('kind = "absence"\nfirst = "pay"\nfollowed_by = "send"\nwithin = "1s"', "conduct-pin-missing"),
        ('kind = "require"\naction = "pay"\nneeds = "look"', "conduct-require"),
    ],
)
def test_without_the_argument_of_the_pin_the_answer_is_no(text: str, code: str) -> None:
    life = Life(f'{text}\nper = "order"')
    life.does("look", order=1)
    assert life.does("pay") == code
    assert life.does("pay", order=[1]) == code
    assert life.does("pay", order=1) == ""


def test_after_without_a_pin_is_denied_only_if_it_could_be_meant() -> None:
    life = Life('kind = "after"\nfirst = "look"\naction = "send"\nper = "order"')
    assert life.does("send") == ""
    life.does("look", order=1)
    assert life.does("send") == "conduct-pin-missing"
    assert (life.does("send", order=2), life.does("send", order=1)) == ("", "conduct-after")


# -- bounds ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        'kind = "count"\naction = "pay"\nmax = 5',
        'kind = "sum"\nof = "cents"\naction = "pay"\nmax = 5',
        'kind = "distinct"\nof = "cents"\naction = "pay"\nmax = 5',
        'kind = "after"\nfirst = "pay"\naction = "send"',
    ],
)
def test_full_partitions_deny_until_one_is_over_and_forget_nothing(text: str) -> None:
    life = Life(f'{text}\nper = "order"\npartitions = 3\nwithin = "10s"')
    assert [life.does("pay", at_ms=at, order=at, cents=1) for at in range(4)] == [
        "", "", "", "conduct-partitions-full",
    ]  # fmt: skip
    assert life.does("pay", at_ms=9_999, order=3, cents=1) == "conduct-partitions-full"
    assert life.does("pay", at_ms=10_000, order=3, cents=1) == ""  # that of 0 is over
    assert life.does("pay", at_ms=10_000, order=0, cents=1) == "conduct-partitions-full"
    assert len(life.state.cells[0].parts) == 3


def test_there_is_room_again_as_soon_as_any_of_them_is_over() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 5\nper = "order"\npartitions = 2\nwithin = "10s"')
    assert [life.does("pay", at_ms=at, order=order) for at, order in ((0, 1), (1, 2), (5_000, 1))] == [""] * 3
    assert life.does("pay", at_ms=10_000, order=3) == "conduct-partitions-full"
    assert life.does("pay", at_ms=10_001, order=3) == ""


def test_what_could_not_be_kept_denies_for_as_long_as_it_would_count() -> None:
    life = Life('kind = "count"\naction = "pay"\nmax = 5\nper = "order"\npartitions = 1\nwithin = "10s"')
    life.does("pay", order=1)
    life.see("pay", "intended", at_ms=5_000, order=2)  # although it would have been denied
    assert life.does("pay", at_ms=14_999, order=1) == "conduct-incomplete"
    assert life.does("pay", at_ms=15_000, order=1) == ""
    whole = Life('kind = "count"\naction = "pay"\nmax = 5\nper = "order"\npartitions = 1')
    whole.does("pay", order=1)
    whole.see("pay", "intended", order=2)
    assert whole.does("pay", at_ms=10**12, order=1) == "conduct-incomplete"


def test_obligations_that_cannot_be_kept_are_denied_and_reported() -> None:
    life = Life(ABSENCE + "partitions = 1")
    assert [life.does("lock", door=door) for door in "ab"] == ["", "conduct-partitions-full"]
    life.see("lock", "intended", door="b")
    assert life.does("lock", door="a") == "conduct-incomplete"
    assert [item.code for item in overdue(life.rules, life.state, 1)] == ["conduct-incomplete"]


def test_full_partitions_of_what_is_needed_forget_the_oldest_which_lets_less_through() -> None:
    life = Life('kind = "require"\naction = "pay"\nneeds = "look"\nper = "order"\npartitions = 2')
    for order in range(3):
        life.does("look", order=order)
    assert [life.does("pay", order=order) for order in range(3)] == ["conduct-require", "", ""]


def test_more_amounts_than_can_be_kept_are_denied_and_nothing_is_forgotten() -> None:
    life = Life('kind = "sum"\naction = "pay"\nof = "cents"\nmax = 100\nwithin = "10s"\nentries = 3')
    found = [life.does("pay", at_ms=at, cents=1) for at in (0, 1_000, 2_000, 3_000)]
    assert found == ["", "", "", "conduct-window-full"]
    assert life.does("pay", at_ms=3_000, cents=0) == ""
    life.see(
        "pay", "intended", at_ms=4_000, cents=90
    )  # all the same: the two oldest are now as old as the second
    assert life.does("pay", at_ms=10_999, cents=8) == "conduct-sum"
    assert life.does("pay", at_ms=11_000, cents=9) == ""


def test_the_state_stays_small_whatever_happens() -> None:
    text = EXAMPLE.read_text()
    tools = (
        "look_up",
        "refund",
        "approve",
        "read_customer",
        "send_mail",
        "redact",
        "reserve",
        "buy",
        "give_back",
    )
    rules = Rules.load(text, tools)
    state = State.fresh(rules)
    sizes = []
    for number in range(12_000):
        tool = tools[number % len(tools)]
        made = {"order": number, "cents": number, "item": number, "to": "x"}
        for become in ("requested", "intended", "succeeded"):
            advance(rules, state, event(tool, become, number * 10, **made))
        if number in (5_000, 11_999):
            sizes.append(len(msgspec.json.encode(state.to_data(rules))))
    assert sizes[1] < sizes[0] * 1.2
    assert sizes[1] < 100_000


def test_amounts_larger_than_any_store_can_hold_stay_in_range() -> None:
    life = Life(
        'kind = "sum"\naction = "pay"\nof = "cents"\nmax = 5\nwithin = "10s"\nentries = 2', then="watch"
    )
    for at in range(9):
        life.does("pay", at_ms=at, cents=10**50)
    data = msgspec.json.decode(msgspec.json.encode(life.state.to_data(life.rules)))
    state = State.from_data(life.rules, data)
    assert state == life.state


# -- files that are refused --------------------------------------------------------------------
COUNT = 'kind = "count"\naction = "pay"\nmax = 1\n'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (COUNT + "limit = 5", "limit"),
        (COUNT.replace("max", "maximum"), "maximum"),
        (COUNT.replace("count", "counting"), "kind"),
        (COUNT.replace("max = 1", ""), "max"),
        (COUNT.replace("max = 1", "max = -1"), "max"),
        (COUNT.replace("max = 1", 'max = "1"'), "max"),
        (COUNT.replace("max = 1", "max = 5000\nwithin = '1h'"), "max"),
        (COUNT.replace('"pay"', '"payy"'), "action.tool"),
        (COUNT.replace('"pay"', '{tool = ["pay", "Pay"]}'), "action.tool"),
        (COUNT.replace('"pay"', '{tool = "pay", stat = "failed"}'), "action.stat"),
        (COUNT.replace('"pay"', '{tool = "pay", state = "done"}'), "action.state"),
        (COUNT.replace('"pay"', '{effect = "write"}'), "action.effect"),
        (COUNT.replace('"pay"', "{}"), "action"),
        (COUNT.replace('"pay"', '{tool = "pay", per = "x"}'), "action.per"),
        (COUNT.replace('"pay"', '{tool = "pay", where = {a = ">many"}}'), "action.where"),
        (COUNT.replace('"pay"', '{tool = "pay", where = {a = 1.5}}'), "action.where"),
        (COUNT.replace('"pay"', '{tool = "pay", where = {a = []}}'), "action.where"),
        (COUNT.replace('"pay"', '{tool = "pay", where = {"a..b" = 1}}'), "action.where"),
        (COUNT + 'within = "an hour"', "within"),
        (COUNT + 'within = "0s"', "within"),
        (COUNT + 'per = "a."', "per"),
        (COUNT + "partitions = 5", "partitions"),
        (COUNT + f'per = "a"\npartitions = {CELLS_MAX + 1}', "partitions"),
        (COUNT + 'roles = ["finance"]', "roles"),
        ('kind = "distinct"\naction = "pay"\nmax = 257\nof = "a"', "max"),
        ('kind = "distinct"\naction = "pay"\nmax = 1\nof = ""', "of"),
        ('kind = "sum"\naction = "pay"\nmax = 1\nof = "a"\nentries = 0', "entries"),
        ('kind = "absence"\nfirst = "pay"\nfollowed_by = "send"', "within"),
        ('kind = "absence"\nfirst = "pay"\nfollowed_by = "send"\nwithin = "5 actions"', "within"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_rule_and_field(text: str, field: str) -> None:
    with pytest.raises(ConductInvalidError, match="rule `r`") as caught:
        rules_of(text)
    assert caught.value.facts == {"rule": "r", "field": field}
    assert caught.value.code == "conduct-invalid"


@pytest.mark.parametrize(
    ("text", "rule", "field"),
    [
        ("rule = [", "", ""),
        ("[[rules]]", "", "rules"),
        ("rule = 5", "", "rule"),
        ("rule = [5]", "number 1", ""),
        ("[[rule]]\n" * (RULES_MAX + 1), "", "rule"),
        (f'[[rule]]\nid = "a b"\nthen = "deny"\nreason = "x"\n{COUNT}', "a b", "id"),
        (f'[[rule]]\nid = "a"\nthen = "deny"\nreason = " "\n{COUNT}', "a", "reason"),
        (f'[[rule]]\nid = "a"\nthen = "forbid"\nreason = "x"\n{COUNT}', "a", "then"),
        (f'[[rule]]\nid = "a"\nthen = "hold"\nreason = "x"\n{COUNT}', "a", "roles"),
        (
            f'[[rule]]\nid = "a"\nthen = "hold"\nroles = ["x"]\nquorum = 0\nreason = "x"\n{COUNT}',
            "a",
            "quorum",
        ),
        (f'[[rule]]\nid = "a"\nthen = "deny"\nreason = "x"\n{COUNT}' * 2, "a", "id"),
    ],
)
def test_a_file_is_used_whole_or_not_at_all(text: str, rule: str, field: str) -> None:
    with pytest.raises(ConductInvalidError) as caught:
        Rules.load(text, TOOLS)
    assert caught.value.facts == {"rule": rule, "field": field}


def test_no_rules_allow_everything() -> None:
    rules = Rules.load("", TOOLS)
    assert judge(rules, State.fresh(rules), event("pay")).kind == "allow"


def test_a_tool_that_came_after_the_rules_is_held_against_their_globs_and_effects() -> None:
    for text, kind in (('"pay*"', "deny"), ('{effect = "irreversible"}', "deny"), ('"pay"', "allow")):
        life = Life(f'kind = "count"\naction = {text}\nmax = 0')
        assert life.judge("pay_later").kind == kind


def test_letters_of_another_case_are_another_tool() -> None:
    assert Life('kind = "count"\naction = "pay*"\nmax = 0').judge("PAY").kind == "allow"


# -- states that do not fit --------------------------------------------------------------------
def test_a_state_of_other_rules_is_refused_and_built_anew_from_history() -> None:
    life = Life(COUNT)
    life.does("pay")
    data = life.state.to_data(life.rules)
    changed = rules_of(COUNT.replace("1", "2"))
    with pytest.raises(ConductStateError):
        State.from_data(changed, data)
    history = [event("pay", state) for state in ("requested", "intended", "succeeded")]
    assert judge(changed, replayed(changed, history), event("pay")).kind == "allow"
    assert judge(life.rules, replayed(life.rules, history), event("pay")).is_deny


def test_a_damaged_state_is_refused() -> None:
    life = Life(
        'kind = "sum"\naction = "pay"\nof = "cents"\nmax = 9\nwithin = "10s"\nper = "to"\npartitions = 2'
    )
    for at in range(2):
        life.does("pay", at_ms=at, cents=1, to="x")
    good = life.state.to_data(life.rules)
    assert State.from_data(life.rules, good) == life.state
    part = ["", [1, 2], [1, 1], [], 2]
    for change in (
        {"parts": [[*part[:1], [2, 1], *part[2:]]]},
        {"parts": [[*part[:2], [1], *part[3:]]]},
        {"parts": [[*part[:2], [1, -1], *part[3:]]]},
        {"parts": [part, part]},
        {"parts": [[str(number), *part[1:]] for number in range(3)]},
        {"parts": 5},
        {"surprise": 1},
    ):
        damaged = {**good, "rules": [{**good["rules"][0], **change}]}
        with pytest.raises(ConductStateError):
            State.from_data(life.rules, damaged)
    for damaged in ({**good, "version": 2}, {**good, "rules": []}, {}, [], None):
        with pytest.raises(ConductStateError):
            State.from_data(life.rules, damaged)


# -- the example -------------------------------------------------------------------------------
def test_the_example_does_what_it_says() -> None:
    tools = (
        "look_up",
        "refund",
        "approve",
        "read_customer",
        "send_mail",
        "redact",
        "reserve",
        "buy",
        "give_back",
    )
    life = Life(COUNT)
    life.rules = Rules.load(EXAMPLE.read_text(), tools)
    life.state = State.fresh(life.rules)
    assert life.does("refund", order="A1", cents=900) == "conduct-require"
    life.does("look_up", order="A1")
    assert life.does("refund", order="A1", cents=900) == ""
    verdict = life.judge("refund", order="A1", cents=90_000)
    assert (verdict.kind, verdict.demands[0].roles) == ("hold", ("finance",))
    life.does("approve", order="A1")
    assert life.does("refund", order="A1", cents=90_000) == ""
    assert life.does("refund", order="A1", cents=90_000) == "conduct-require"
    assert life.does("refund", order="A1", cents=109_101) == "conduct-require"
    assert [reason.rule for reason in life.judge("refund", order="A1", cents=109_101).reasons] == [
        "approved-once",
        "money-a-day",
    ]
    life.does("read_customer")
    assert life.does("send_mail", to="service@shop.example") == ""
    assert life.does("send_mail", to="x@example.org") == "conduct-after"
    life.does("redact")
    assert life.does("send_mail", to="x@example.org") == ""
    life.does("reserve", item="tea")
    assert life.does("reserve", at_ms=600_000, item="salt") == "conduct-absence"
    life.does("buy", at_ms=600_000, item="tea")
    assert life.does("reserve", at_ms=600_000, item="salt") == ""
