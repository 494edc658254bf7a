"""Policies: default deny, every link of the chain, errors deny, obligations, and what Cedar would let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core.principals import Principal
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import Demand
from perdure.governance.policy import PolicyRequest, PolicySet, load
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_lint import lint
from perdure.governance.policy_schema import fitted, input_of
from perdure.governance.policy_table import read_cases, run_cases

ROOT = Path(__file__).parents[2]


def spec(
    name: str, properties: dict[str, Any] | None = None, *, effect: Any = "irreversible", **more: Any
) -> ToolSpec:
    parameters = {"type": "object", "properties": properties or {}, "required": list(properties or {})}
    return ToolSpec(name=name, parameters={**parameters, **more}, effect=effect)


PAY = spec("pay", {"to": {"type": "string"}, "cents": {"type": "integer"}})
LOOK = spec("look", effect="read")
ODD = spec("mcp.tool-if", {"if": {"type": "string"}, "a b": {"type": "boolean"}})
TOOLS = [PAY, LOOK, ODD]
CLERK = Principal(kind="agent", name="clerk", run="r1", groups=("clerks",))
ANNA = Principal(kind="user", name="anna", groups=("finance",))
OTTO = Principal(kind="user", name="otto")


def made(text: str, tools: list[ToolSpec] | None = None) -> PolicySet:
    return load({"a.cedar": text}, tools or TOOLS)


def asked(name: str = "pay", *, chain: Any = (CLERK,), **options: Any) -> PolicyRequest:
    arguments = {"to": "acme", "cents": 5} if name == "pay" else {}
    return PolicyRequest(chain=tuple(chain), name=name, **{"arguments": arguments, **options})


def kind(text: str, *args: Any, **options: Any) -> tuple[str, list[str]]:
    verdict = made(text).decide(asked(*args, **options))
    return verdict.kind, [reason.code for reason in verdict.reasons]


ALL = "permit (principal, action, resource);"


def test_nothing_is_allowed_that_no_policy_allows() -> None:
    assert kind('@id("x") permit (principal, action == Action::"look", resource);') == (
        "deny",
        ["policy-none"],
    )
    assert kind(ALL) == ("allow", ["policy-allowed"])
    assert kind(ALL, "unheard-of") == ("deny", ["policy-tool-unknown"])


def test_a_forbid_wins_and_its_reason_is_told() -> None:
    text = (
        f'{ALL} @id("no") @reason("not on my watch") forbid (principal, action == Action::"pay", resource);'
    )
    verdict = made(text).decide(asked())
    assert (verdict.kind, verdict.reasons[0].rule, verdict.reasons[0].message) == (
        "deny",
        "no",
        "not on my watch",
    )


def test_every_link_of_the_chain_must_be_allowed() -> None:
    text = """
    @id("agents") permit (principal in Role::"clerks", action, resource);
    @id("people") permit (principal in Group::"finance", action == Action::"pay", resource);
    """
    assert kind(text)[0] == "allow"
    assert kind(text, chain=(CLERK, ANNA))[0] == "allow"
    verdict = made(text).decide(asked(chain=(CLERK, OTTO)))
    assert (verdict.kind, verdict.reasons[0].message) == ("deny", "no policy allows it to user `otto`"), (
        "no confused deputy"
    )
    assert kind(text, "look", chain=(CLERK, ANNA))[0] == "deny", "the agent may, the user may not"
    helper = Principal(kind="agent", name="helper", run="r2")
    assert kind(text, chain=(helper, CLERK, ANNA))[0] == "deny", "a child has no more than its own"
    assert kind(text, chain=(CLERK, helper, ANNA))[0] == "deny"


def test_a_forbid_that_errors_is_a_denial() -> None:
    """Cedar skips it and allows."""
    text = f"""{ALL}
    @id("overflow") forbid (principal, action == Action::"pay", resource) when {{ context.input.cents * 9223372036854775807 > 5 }};
    """
    assert kind(text) == ("deny", ["policy-error"])


def test_an_argument_that_does_not_fit_is_a_denial() -> None:
    for wrong in (
        {"to": "a", "cents": "5"},
        {"to": "a", "cents": 2**63},
        {"to": "a", "cents": 1.5},
        {"to": "a"},
        {"to": ["a"], "cents": 1},
        {"to": "a", "cents": True},
    ):
        assert kind(ALL, arguments=wrong) == ("deny", ["policy-error"]), wrong
    assert kind(ALL, arguments={"to": "a", "cents": 1, "extra": 2})[0] == "allow", (
        "the schema gate looks at that"
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("permit (principal, action", "cannot be read"),
        ('permit (principal, action == Action::"pya", resource);', "does not fit the tools"),
        ("permit (principal, action, resource) when { context.input.cents > 5 };", "does not fit the tools"),
        ('permit (principal, action == Action::"pay", resource) when { context.input.cnets > 5 };', "cnets"),
        (
            'permit (principal, action == Action::"pay", resource) when { context.input.cents == "5" };',
            "does not fit",
        ),
        ('permit (principal in Rolle::"x", action, resource);', "does not fit"),
        (
            '@id("a") permit (principal, action, resource); @id("a") forbid (principal, action, resource);',
            "two policies have the id",
        ),
        ('@holt("x") permit (principal, action, resource);', "has `@holt`"),
        ('@hold("x") @quorum("0") permit (principal, action, resource);', "expected a number"),
        ('@hold("x") @quorum("two") permit (principal, action, resource);', "expected a number"),
        ('@hold("x") @deadline("soon") permit (principal, action, resource);', "expected a time"),
        ("permit (principal == ?principal, action, resource);", "template"),
    ],
)
def test_policies_that_cannot_be_used_are_refused_as_a_whole(text: str, match: str) -> None:
    with pytest.raises(PolicyInvalidError, match=match):
        load(
            {
                "good.cedar": '@id("g") permit (principal, action == Action::"look", resource);',
                "bad.cedar": text,
            },
            TOOLS,
        )


def test_a_tool_with_the_name_of_a_group_is_refused() -> None:
    with pytest.raises(PolicyInvalidError, match="`write`"):
        load({"a.cedar": ALL}, [spec("write")])


def test_obligations_and_demands() -> None:
    text = """
    @id("a") @hold("finance, legal") @quorum("2") @deadline("30m") @escalate("head,cfo") @reason("it is much") @sandbox("gvisor")
    permit (principal is Agent, action == Action::"pay", resource);
    @id("b") @hold("security") @limit("3/h") permit (principal is User, action == Action::"pay", resource);
    """
    verdict = made(text).decide(asked(chain=(CLERK, ANNA)))
    assert verdict.kind == "hold"
    assert verdict.demands == (
        Demand(roles=("finance", "legal"), quorum=2, deadline_ms=1_800_000, escalation=("head", "cfo")),
        Demand(roles=("security",)),
    )
    assert verdict.obligations == {"sandbox": "gvisor", "limit": "3/h"}
    assert [reason.message for reason in verdict.reasons] == ["it is much", "policy `b`"]
    beside = made(text + ALL).decide(asked())
    assert beside.kind == "hold", "a permit without `@hold` beside it does not lift it"


def test_names_that_need_quoting() -> None:
    text = r'@id("q") permit (principal == Agent::"cl\"erk", action == Action::"mcp.tool-if", resource) when { context.input["if"] == "y" && context.input["a b"] };'
    odd = Principal(kind="agent", name='cl"erk', run="r")
    policies = made(text)
    good = {"if": "y", "a b": True}
    assert policies.decide(asked(ODD.name, chain=(odd,), arguments=good)).kind == "allow"
    assert policies.decide(asked(ODD.name, chain=(CLERK,), arguments=good)).kind == "deny"
    assert (
        policies.decide(asked(ODD.name, chain=(odd,), arguments={"if": 'y" || true || "', "a b": True})).kind
        == "deny"
    )
    for name in ('a", "x', "newline\n", "\u0430gent", "x" * 500, ""):
        assert made(ALL).decide(asked(chain=(Principal(kind="agent", name=name),))).kind in ("allow", "deny")


def test_what_the_runtime_says_of_an_action() -> None:
    text = """
    @id("a") permit (principal, action == Action::"pay", resource) when {
      context.governance.on_behalf_of.contains("user:anna") && context.governance.risk == "high" &&
      context.governance.hour == 13 && context.governance.weekday == 0 && context.governance.labels.contains("trusted") &&
      context.governance has confidence && context.governance.confidence >= 60 && resource.effect == "irreversible" };
    """
    monday = 1_795_440_000_000
    good: dict[str, Any] = {
        "chain": (CLERK, ANNA),
        "risk": "high",
        "at_ms": monday,
        "labels": frozenset({"trusted"}),
        "confidence": 70,
    }
    assert kind(text, **good)[0] == "allow"
    for change in (
        {"risk": "low"},
        {"confidence": 50},
        {"confidence": None},
        {"labels": frozenset()},
        {"at_ms": monday + 3_600_000},
        {"chain": (CLERK,)},
    ):
        assert kind(text, **{**good, **change})[0] == "deny", change


def test_models_are_asked_for_too() -> None:
    text = '@id("m") permit (principal, action == Action::"model_request", resource == Model::"small");'
    policies = made(text)
    assert policies.decide(asked("small", is_model=True)).kind == "allow"
    assert policies.decide(asked("large", is_model=True)).kind == "deny"


def test_the_digest_is_that_of_policies_and_tools() -> None:
    assert made(ALL).digest == made(ALL).digest
    assert made(ALL).digest != made(ALL + "\n").digest
    assert made(ALL).digest != made(ALL, [PAY]).digest


SCOPES = (
    "action",
    'action == Action::"pay"',
    'action in Action::"read"',
    'action in Action::"write"',
    'action in [Action::"look", Action::"pay"]',
    'action in Action::"tool_call"',
    'action == Action::"model_request"',
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["permit", "forbid"]),
            st.sampled_from(SCOPES),
            st.sampled_from(["principal", 'principal in Role::"clerks"', "principal is User"]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_slice_decides_as_the_whole(parts: list[tuple[str, str, str]]) -> None:
    text = "\n".join(
        f'@id("p{n}") {effect} ({who}, {scope}, resource);' for n, (effect, scope, who) in enumerate(parts)
    )
    sliced, whole = made(text), made(text)
    whole.is_about = lambda *_: True  # type: ignore[method-assign]
    for name in ("pay", "look"):
        for chain in ((CLERK,), (CLERK, ANNA)):
            request = asked(name, chain=chain)
            assert sliced.decide(request) == whole.decide(request)
    model = asked("m", is_model=True)
    assert sliced.decide(model) == whole.decide(model)


def test_types_of_arguments() -> None:
    parameters = {
        "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "f": {"type": "number"}, "any": {}, "u": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "tags": {"type": "array", "items": {"type": "string"}}, "deep": {"$ref": "#/$defs/Deep"}, "mixed": {"type": "array"},
    }  # fmt: skip
    deep = {
        "Deep": {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "number"}},
            "required": ["a"],
        }
    }
    found = input_of(spec("t", parameters, **{"$defs": deep}))
    assert set(found) == {"n", "tags", "deep"}, "what Cedar cannot hold is not there"
    assert found["n"]["required"] is False
    kinds = {"type": "Record", "attributes": found}
    assert fitted({"n": None, "tags": ["a"], "deep": {"a": True, "b": 1.5}, "f": 2.5}, kinds) == {
        "tags": ["a"],
        "deep": {"a": True},
    }


def test_lint() -> None:
    text = """
    permit (principal, action, resource);
    @id("same") permit (principal in Role::"a", action == Action::"look", resource);
    @id("same again") permit (principal in Role::"a", action == Action::"look", resource);
    @id("held") @hold("x") forbid (principal, action == Action::"pay", resource);
    @id("never") permit (principal in Role::"a", action == Action::"pay", resource);
    @id("wide") permit (principal in Role::"a", action in Action::"write", resource);
    """
    found = {(item.code, item.policy) for item in lint(made(text))}
    assert found == {
        ("id-missing", "a.cedar#1"), ("too-broad", "a.cedar#1"), ("shadowed", "same again"), ("hold-on-forbid", "held"),
        ("unreachable", "never"), ("too-broad", "wide"),
    }  # fmt: skip
    assert (
        lint(made('@id("good") permit (principal in Role::"a", action == Action::"look", resource);')) == []
    )


def test_the_examples() -> None:
    folder = Path(ROOT) / "examples" / "policies"
    tools = [
        spec("refund", {"order": {"type": "string"}, "cents": {"type": "integer"}}), spec("set_stock", {"item": {"type": "string"}, "count": {"type": "integer"}}),
        spec("undo.set_stock", {"action": {"type": "string"}}), LOOK,
    ]  # fmt: skip
    policies = load({"shop.cedar": (folder / "shop.cedar").read_text()}, tools)
    results = run_cases(policies, read_cases((folder / "tests.yaml").read_text()))
    assert [item.problem for item in results] == [""] * len(results)
    assert len(results) >= 6


@pytest.mark.parametrize(
    "text",
    [
        "- {name: a}",
        "{",
        "- {name: a, agent: b, expect: maybe}",
        "- {name: a, agent: b, expect: deny, tol: x}",
    ],
)
def test_a_table_that_cannot_be_read(text: str) -> None:
    with pytest.raises(PolicyInvalidError):
        read_cases(text)


def test_a_table_says_what_is_wrong() -> None:
    cases = read_cases(
        "- {name: a, agent: clerk, tool: pay, arguments: {to: x, cents: 1}, expect: hold, asks: [x], rules: [y]}"
    )
    [found] = run_cases(made(ALL), cases)
    assert "expected hold, found allow" in found.problem
    assert "expected to ask ['x']" in found.problem
    assert "expected ['y'] to decide" in found.problem
