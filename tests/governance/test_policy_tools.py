"""What operators work with: explanations, lint and tables of tests."""

from __future__ import annotations

import pytest

from perdure.core.principals import Principal
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_explain import explain
from perdure.governance.policy_lint import lint
from perdure.governance.policy_table import read_cases, request_of, run_cases
from tests.governance.test_policy import ANNA, CLERK, OTTO, asked, made

RULES = """@id("clerks")
permit (principal in Role::"clerks", action == Action::"pay", resource)
when { context.input.cents <= 100 };

@id("finance") @hold("head")
permit (principal in Group::"finance", action == Action::"pay", resource)
when { context.input.cents <= 1000 };

@id("look") permit (principal, action == Action::"look", resource);
@id("nobody") @reason("not to evil")
forbid (principal, action == Action::"pay", resource) when { context.input.to == "evil" };
"""


# -- explain
def test_each_link_is_explained_with_what_decided_and_what_nearly_did() -> None:
    found = explain(made(RULES), asked(chain=(CLERK, OTTO, ANNA), arguments={"to": "a", "cents": 500}))
    assert found.verdict.kind == "deny"
    clerk, otto, anna = found.links
    assert (clerk.is_allowed, clerk.decision, [item.id for item in clerk.near]) == (False, "Deny", ["clerks"])
    assert (clerk.deciding, clerk.errors) == ((), ())
    [near] = clerk.near
    assert (near.file, near.line) == ("a.cedar", 1)
    assert "cents <= 100" in near.text.replace("(", "").replace(")", "").replace('["cents"]', "cents")
    assert (otto.is_allowed, otto.near) == (False, ()), "no scope fits: nothing is near"
    assert (anna.is_allowed, [item.id for item in anna.deciding]) == (True, ["finance"]), (
        "links after a denial too"
    )
    assert "@hold" in anna.deciding[0].text


def test_a_forbid_is_shown_and_permits_that_held_are_not_near() -> None:
    found = explain(made(RULES), asked(arguments={"to": "evil", "cents": 50}))
    [link] = found.links
    assert ([item.id for item in link.deciding], link.near) == (["nobody"], ())
    assert found.verdict.reasons[0].message == "not to evil"


def test_an_error_is_shown() -> None:
    text = '@id("a") permit (principal, action, resource); @id("e") forbid (principal, action == Action::"pay", resource) when { context.input.cents * 9223372036854775807 > 5 };'
    [link] = explain(made(text), asked()).links
    assert (link.decision, link.is_allowed) == ("Allow", False)
    assert "overflow" in link.errors[0]


@pytest.mark.parametrize(
    "request_",
    [
        asked("unheard-of"),
        asked(chain=()),
        asked(arguments={"to": 5, "cents": 5}),
        asked(chain=(Principal(kind="agent", name="\ud800"),)),
    ],
    ids=range(4),
)
def test_what_cannot_be_asked_is_explained_by_its_verdict(request_: object) -> None:
    found = explain(made(RULES), request_)  # type: ignore[arg-type]
    assert (found.links, found.verdict.kind) == ((), "deny")
    assert found.verdict.reasons[0].message


def test_models_are_explained() -> None:
    text = '@id("m") permit (principal, action == Action::"model_request", resource == Model::"s") when { context.governance.risk == "low" };'
    [link] = explain(made(text), asked("s", is_model=True)).links
    assert [item.id for item in link.near] == ["m"]
    [other] = explain(made(text), asked("l", is_model=True)).links
    assert other.near == ()


# -- lint
def codes(text: str) -> set[tuple[str, str]]:
    return {(item.code, item.policy) for item in lint(made(text))}


def test_a_permit_behind_a_wall_of_groups_is_unreachable() -> None:
    wall = '@id("wall") forbid (principal, action in Action::"write", resource);'
    behind = '@id("p") permit (principal in Role::"a", action == Action::"pay", resource) when { context.input.cents < 5 };'
    assert ("unreachable", "p") in codes(wall + behind)
    beside = '@id("p") permit (principal in Role::"a", action in [Action::"pay", Action::"look"], resource) when { true };'
    assert ("unreachable", "p") not in codes(wall + beside)
    for open_wall in (
        '@id("wall") forbid (principal is User, action in Action::"write", resource);',
        '@id("wall") forbid (principal, action in Action::"write", resource) when { context.governance.hour < 5 };',
    ):
        assert ("unreachable", "p") not in codes(open_wall + behind)


def test_the_same_scope_with_other_demands_is_not_the_same() -> None:
    scope = 'permit (principal in Role::"a", action == Action::"look", resource);'
    assert codes(f'@id("a") {scope} @id("b") @reason("why") {scope}') == {("shadowed", "b")}
    assert codes(f'@id("a") {scope} @id("b") @hold("x") {scope}') == set()


def test_lint_of_many_policies_is_quick() -> None:
    text = "".join(
        f'@id("p{n}") permit (principal == User::"u{n}", action == Action::"look", resource);'
        for n in range(2_000)
    )
    assert lint(made(text)) == []


# -- tables
def problem(row: str, text: str = RULES) -> str:
    [found] = run_cases(made(text), read_cases(f"- {{name: x, agent: clerk, roles: [clerks], {row}}}"))
    return found.problem


def test_a_denial_that_no_policy_meant_does_not_meet_a_row() -> None:
    assert "could not be judged" in problem("tool: pya, expect: deny"), "misspelt: it would be met for ever"
    assert "could not be judged" in problem("tool: pay, arguments: {to: a}, expect: deny")
    assert problem("tool: pya, expect: deny, code: policy-tool-unknown") == ""
    assert problem("tool: pay, arguments: {to: a}, expect: deny, code: policy-error") == ""
    assert problem("tool: pay, arguments: {to: a, cents: 101}, expect: deny, code: policy-none") == ""
    assert (
        problem(
            "tool: pay, arguments: {to: evil, cents: 5}, expect: deny, code: policy-denied, rules: [nobody]"
        )
        == ""
    )
    assert "expected the code `policy-none`" in problem(
        "tool: pay, arguments: {to: evil, cents: 5}, expect: deny, code: policy-none"
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- {name: x, agent: a, expect: deny}", "either a `tool` or a `model`"),
        ("- {name: x, agent: a, tool: t, model: m, expect: deny}", "either a `tool` or a `model`"),
        ("- {name: x, agent: a, tool: t, user: u, service: s, expect: deny}", "write two rows"),
        ("- {name: x, agent: a, tool: t, expect: deny, expect: allow}", "`expect` is given twice, line 1"),
        ("- name: x\n  agent: a\n  tool: t\n  arguments: {n: 1, n: 2}\n  expect: deny", "`n` is given twice"),
        ("- &a [*a]", "cannot be read"),
        ("- !!python/object/apply:os.system [ls]", "cannot be read"),
        ("- {name: x, agent: a, tool: t, expect: deny, confidence: high}", "confidence"),
        ("just a text", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_is_not_meant_so_is_refused(text: str, match: str) -> None:
    with pytest.raises(PolicyInvalidError, match=match):
        read_cases(text)


def test_every_part_of_a_row_is_asked_for() -> None:
    [row] = read_cases(
        "- {name: x, agent: a, roles: [r], through: [b], service: s, groups: [g], tool: t, arguments: {n: 1}, risk: high, labels: [l],"
        " sources: [o], confidence: 7, at_ms: 5, approved: true, budget_left_usd_micros: 9, expect: allow}"
    )
    made_request = request_of(row)
    assert [(link.kind, link.name, link.groups) for link in made_request.chain] == [
        ("agent", "a", ("r",)), ("agent", "b", ()), ("service", "s", ("g",)),
    ]  # fmt: skip
    assert (made_request.risk, made_request.at_ms, made_request.approved) == ("high", 5, True)
    assert (made_request.confidence, made_request.budget_left_usd_micros) == (7, 9)
    assert (made_request.labels, made_request.sources) == ({"l"}, {"o"})
