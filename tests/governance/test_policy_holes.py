"""Ways in which policies could allow what nobody meant, or stop the runtime: each is refused or denied."""

from __future__ import annotations

from typing import Any

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core.principals import Principal
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import Demand
from perdure.governance import policy as engine
from perdure.governance.policy import PolicyRequest, load
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_obligations import TIERS, obligations_of
from perdure.governance.policy_schema import ATTRIBUTES_MAX, fitted, input_of, left_out
from tests.governance.test_policy import ALL, ANNA, CLERK, LOOK, OTTO, PAY, TOOLS, asked, kind, made, spec

ANY = '@id("any") permit (principal, action, resource);'
ROBOT = Principal(kind="service", name="robot", groups=("batch",))


# -- who asks
def test_nobody_is_allowed_nothing() -> None:
    for name, is_model in (("pay", False), ("m", True), ("unheard-of", False)):
        assert made(ANY).decide(asked(name, chain=(), is_model=is_model)).kind == "deny"


def test_a_model_does_not_pass_for_the_tool_of_its_name() -> None:
    text = (
        ANY
        + '@id("no") forbid (principal, action, resource) when { resource is Tool && resource has effect && resource.effect == "irreversible" };'
    )
    model, tool = asked("pay", is_model=True, arguments={}), asked()
    for order in ((model, tool), (tool, model)):
        policies = made(text)
        found = {request.is_model: policies.decide(request).kind for request in order}
        assert found == {True: "allow", False: "deny"}, order


def test_entities_of_two_runs_and_of_changed_groups_are_not_mixed_up() -> None:
    policies = made('@id("f") permit (principal in Group::"finance", action, resource);')
    for groups, expected in ((("finance",), "allow"), ((), "deny"), (("finance", "finance"), "allow")):
        assert (
            policies.decide(asked(chain=(Principal(kind="user", name="anna", groups=groups),))).kind
            == expected
        )


def test_a_role_is_no_group_and_an_agent_no_user_of_its_name() -> None:
    text = """
    @id("role") permit (principal in Role::"finance", action, resource);
    @id("user") permit (principal == User::"clerk", action, resource);
    @id("batch") permit (principal is Service in Group::"batch", action, resource);
    """
    policies = made(text)
    assert policies.decide(asked(chain=(ANNA,))).kind == "deny", "a group of the same name as a role"
    assert policies.decide(asked(chain=(CLERK,))).kind == "deny", "an agent of the same name as a user"
    assert policies.decide(asked(chain=(ROBOT,))).kind == "allow"


def test_a_text_that_looks_like_an_entity_is_a_text() -> None:
    text = '@id("x") permit (principal == User::"anna", action, resource);'
    for name in (
        'User::"anna"',
        'anna"',
        "anna\\",
        "ann\u0430",
        "anna\u200b",
        "Anna",
        'x" || principal == User::"anna',
    ):
        assert kind(text, chain=(Principal(kind="user", name=name),))[0] == "deny", name
        assert kind(text, chain=(Principal(kind="agent", name=name),))[0] == "deny", name
    assert kind(text, chain=(Principal(kind="user", name="anna"),))[0] == "allow"
    typed = '@id("x") permit (principal, action == Action::"pay", resource) when { context.input.to == User::"anna" };'
    with pytest.raises(PolicyInvalidError, match="does not fit"):
        made(typed)


@pytest.mark.parametrize("name", ["__entity", "__extn", "__expr"])
def test_arguments_cannot_smuggle_in_entities_or_extensions(name: str) -> None:
    inner = {"type": "object", "properties": {"type": {"type": "string"}, "id": {"type": "string"}}}
    tool = spec("t", {name: inner})
    text = f'@id("x") permit (principal, action == Action::"t", resource) when {{ context.input["{name}"] has id && context.input["{name}"].id == "anna" }};'
    policies = made(text, [tool])
    assert policies.decide(asked("t", arguments={name: {"type": "User", "id": "anna"}})).kind == "allow", (
        "a plain record"
    )
    assert policies.decide(asked("t", arguments={name: "User::anna"})).kind == "deny"


def test_names_that_are_no_text_are_denied() -> None:
    for chain in (
        (Principal(kind="agent", name="\ud800"),),
        (CLERK, Principal(kind="user", name="u", groups=("\udfff",))),
    ):
        assert made(ANY).decide(asked(chain=chain)).reasons[0].code == "policy-error"
    assert kind(ANY, arguments={"to": "\ud800", "cents": 1}) == ("deny", ["policy-error"])
    assert kind(ANY, arguments={"to": "\x00" * 3, "cents": 1})[0] == "allow"


def test_huge_arguments_are_judged() -> None:
    text = (
        '@id("x") permit (principal, action == Action::"pay", resource) when { context.input.to like "*z" };'
    )
    assert kind(text, arguments={"to": "x" * 2_000_000 + "z", "cents": 1})[0] == "allow"
    assert kind(text, arguments={"to": "x" * 2_000_000, "cents": 1})[0] == "deny"
    assert kind(ANY, arguments={"to": "x", "cents": 1, "more": [[[[[]]]]] * 10_000})[0] == "allow"


# -- errors
def test_cedar_itself_would_allow_what_an_erring_forbid_forbids() -> None:
    """The reason why an error is a denial; if this fails one day, Cedar has changed."""
    text = "permit (principal, action, resource); forbid (principal, action, resource) when { context.n * 9223372036854775807 > 5 };"
    asking = {"principal": 'A::"a"', "action": 'Action::"b"', "resource": 'C::"c"', "context": {"n": 5}}
    answer = cedarpy.is_authorized(asking, text, [])
    assert answer.allowed
    assert answer.diagnostics.errors


def test_an_error_in_any_policy_denies_whatever_else_decides() -> None:
    overflow = "when { context.input.cents * 9223372036854775807 > 5 }"
    for effect in ("permit", "forbid"):
        text = f'{ANY} @id("e") {effect} (principal, action == Action::"pay", resource) {overflow};'
        assert kind(text) == ("deny", ["policy-error"])
    only_users = f'{ANY} @id("e") forbid (principal is User, action == Action::"pay", resource) {overflow};'
    assert kind(only_users)[0] == "allow"
    assert kind(only_users, chain=(CLERK, ANNA)) == ("deny", ["policy-error"])


def test_a_field_of_the_context_that_is_missing_denies() -> None:
    ask = "permit (principal, action, resource) when { context.governance has confidence && context.governance.confidence > 50 };"
    assert kind(f'@id("x") {ask}', confidence=None) == ("deny", ["policy-none"])
    assert kind(f'@id("x") {ask}', confidence=51)[0] == "allow"
    bare = '@id("x") permit (principal, action, resource) when { context.governance.confidence > 50 };'
    with pytest.raises(PolicyInvalidError, match="confidence"):
        made(bare)
    assert kind(ANY, arguments={"to": "a"}) == ("deny", ["policy-error"]), "a required argument"


def test_money_is_whole_numbers() -> None:
    text = '@id("x") permit (principal, action, resource) when { context.governance has budget_left_usd_micros && context.governance.budget_left_usd_micros >= 1 };'
    for left, expected in ((1, "allow"), (0, "deny"), (None, "deny"), (2**63 - 1, "allow"), (2**63, "deny")):
        assert kind(text, budget_left_usd_micros=left)[0] == expected, left
    assert kind(ANY, arguments={"to": "a", "cents": 1.0})[0] == "deny"


# -- loading
@pytest.mark.parametrize("group", ["tool_call", "read", "write"])
def test_equal_to_a_group_would_be_about_nothing_and_is_refused(group: str) -> None:
    for effect in ("permit", "forbid"):
        with pytest.raises(PolicyInvalidError, match=f'action in Action::"{group}"'):
            made(f'@id("x") {effect} (principal, action == Action::"{group}", resource);')
    assert made(f'{ANY} @id("x") forbid (principal, action in Action::"{group}", resource);').policies


DEEP = 50_000
NESTED = [
    "(" * DEEP + "true" + ")" * DEEP,
    "[" * DEEP + "1" + "]" * DEEP + ".isEmpty()",
    "{a:" * DEEP + "1" + "}" * DEEP + " == {}",
    "if true then " * DEEP + "true" + " else false" * DEEP,
    "[1]" + ".contains(1)" * DEEP,
    "context has a" + ".a" * DEEP,
    " || ".join(["true"] * DEEP),
    "1" + " + 1" * DEEP + " > 1",
    '"' + "(" * 100 + '" == "x" && ' + "(" * DEEP + "true" + ")" * DEEP,
    "// \"\n" + "(" * DEEP + "true" + ")" * DEEP,
    "// \r" + "(" * DEEP + "true" + ")" * DEEP,
    '"\\"" == "x" && ' + "(" * DEEP + "true" + ")" * DEEP,
    "(" * DEEP,
    "(" * DEEP + ";" + "(" * DEEP,
    "(;" * DEEP,
    ")" * DEEP + "(" * DEEP,
]  # fmt: skip


@pytest.mark.parametrize("condition", NESTED, ids=range(len(NESTED)))
def test_a_text_that_would_end_the_process_is_refused(condition: str) -> None:
    """Cedar's parser overflows the stack, which no ``except`` can catch."""
    with pytest.raises(PolicyInvalidError, match=r"line 2, has more than"):
        made(f"// a comment\npermit (principal, action, resource) when {{ {condition} }};")


def test_brackets_in_texts_and_comments_do_not_count() -> None:
    text = f'{ANY} // {"(" * 500} "\n@id("x") permit (principal, action == Action::"pay", resource) when {{ context.input.to == "{"(" * 500} \\" {"[" * 500}" }};'
    assert set(made(text).policies) == {"any", "x"}
    wide = " ".join(
        f'@id("p{n}") permit (principal, action, resource) when {{ ((true)) }};' for n in range(600)
    )
    assert len(made(wide).policies) == 600, "it is counted for each policy by itself"


def test_a_condition_that_cedar_cannot_hold_is_refused_by_name() -> None:
    many = " || ".join(f"context.governance.hour == {n}" for n in range(200))
    text = f'{ANY}\n\n@id("long")\npermit (principal, action, resource) when {{ {many} }};'
    with pytest.raises(
        PolicyInvalidError, match="policy `long` of `a.cedar`, line 3, has a condition of too many parts"
    ):
        made(text)
    listed = ", ".join(map(str, range(2_000)))
    assert (
        kind(
            f'@id("l") permit (principal, action, resource) when {{ [{listed}].contains(context.governance.hour) }};'
        )[0]
        == "allow"
    )


def test_what_is_wrong_is_named_with_its_line() -> None:
    good = '@id("good")\npermit (principal, action == Action::"look", resource);\n\n'
    bad = '@id("bad") // not so\n@reason("a;b")\npermit (principal, action == Action::"pay", resource)\nwhen { context.input.cnets > 5 };\n'
    with pytest.raises(
        PolicyInvalidError, match=r"policy `bad` of `a.cedar`, line 4, does not fit.*cnets"
    ) as found:
        made(good + bad)
    assert (found.value.facts["file"], found.value.facts["line"], found.value.facts["policy"]) == (
        "a.cedar",
        4,
        "bad",
    )
    with pytest.raises(PolicyInvalidError, match=r"`a.cedar`, line 4, cannot be read: unexpected token"):
        made(good + "permit (principal action);\n" + good)
    with pytest.raises(PolicyInvalidError, match=r"line 4, cannot be read"):
        made(good + 'permit (principal, action, resource) when { "')
    many = "".join(bad.replace('"bad"', f'"bad{n}"') for n in range(5))
    with pytest.raises(PolicyInvalidError, match=r"bad0.*bad1.*bad2.*and 2 more"):
        made(many)
    assert made(good + good.replace("good", "too")).policies["too"].line == 4


@pytest.mark.parametrize(
    ("annotations", "match"),
    [
        ('@quorum("2")', "without `@hold`"),
        ('@deadline("4h")', "without `@hold`"),
        ('@escalate("head")', "without `@hold`"),
        ('@sandbox("gvsior")', "expected one of none, process"),
        ("@sandbox", "expected one of"),
        ("@redact", "without a value"),
        ('@limit(" , ")', "without a value"),
        ('@hold("x") @quorum("17")', "from 1 to 16"),
        ('@hold("x") @quorum("٢")', "from 1 to 16"),
        ('@hold("x") @quorum("-1")', "from 1 to 16"),
        ('@hold("x") @deadline("0h")', "expected a time"),
        ('@hold("x") @deadline("4h 30m")', "expected a time"),
        ('@hodl("x")', "known are"),
    ],
)
def test_an_annotation_that_cannot_be_followed_is_refused(annotations: str, match: str) -> None:
    with pytest.raises(PolicyInvalidError, match=match) as found:
        made(f'{ANY}\n@id("x") {annotations} permit (principal, action, resource);')
    assert "policy `x` of `a.cedar`, line 2," in found.value.message


def test_ids() -> None:
    assert set(
        made("permit (principal, action, resource); @id forbid (principal, action, resource);").policies
    ) == {"a.cedar#1", "a.cedar#2"}
    with pytest.raises(PolicyInvalidError, match="two policies have the id `a.cedar#2`"):
        made('@id("a.cedar#2") permit (principal, action, resource); permit (principal, action, resource);')
    odd = {
        r"a\"b": 'a"b',
        r"\u{1F600}": "\U0001f600",
        "ж": "ж",
        r"new\nline": "new\nline",
        "policy0": "policy0",
    }
    for written, meant in odd.items():
        verdict = made(f'@id("{written}") forbid (principal, action, resource);').decide(asked())
        assert verdict.reasons[0].rule == meant
    swapped = made(
        '@id("policy1") permit (principal, action, resource); @id("policy0") forbid (principal is User, action, resource);'
    )
    assert swapped.decide(asked()).reasons[0].rule == "policy1", (
        "the parser's own names do not get in the way"
    )


def test_nothing_at_all_allows_nothing() -> None:
    for texts in ({}, {"a.cedar": ""}, {"a.cedar": "// nothing\n"}):
        assert load(texts, TOOLS).decide(asked()).reasons[0].code == "policy-none"


# -- obligations
def test_the_strongest_sandbox_wins_whatever_the_order() -> None:
    for first, second in ((0, 3), (3, 0), (5, 1), (2, 2)):
        text = f"""
        @id("a") @sandbox("{TIERS[first]}") @redact("iban, name") permit (principal, action, resource);
        @id("b") @sandbox("{TIERS[second]}") @redact("name") @limit("3/h") permit (principal, action, resource);
        @id("c") @limit("5/d") permit (principal is User, action, resource);
        """
        verdict = made(text).decide(asked(chain=(CLERK, ANNA)))
        assert verdict.obligations == {
            "sandbox": TIERS[max(first, second)],
            "redact": "iban, name",
            "limit": "3/h, 5/d",
        }


@given(
    st.lists(
        st.fixed_dictionaries(
            {"sandbox": st.sampled_from(TIERS)}, optional={"redact": st.sampled_from(["a", "a,b", "c"])}
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
def test_obligations_do_not_depend_on_the_order_and_none_gets_lost(
    asked_for: list[dict[str, str]], chance: Any
) -> None:
    found = obligations_of(asked_for)
    chance.shuffle(asked_for)
    assert obligations_of(asked_for) == found
    assert all(TIERS.index(found["sandbox"]) >= TIERS.index(item["sandbox"]) for item in asked_for)
    assert all(
        set(item.get("redact", "").split(",")) - {""} <= set(found.get("redact", "").split(", "))
        for item in asked_for
    )


def test_holds_of_several_links_and_policies_all_count() -> None:
    text = """
    @id("a") @hold("finance") permit (principal is Agent, action, resource);
    @id("b") @hold("legal") @quorum("2") permit (principal is Agent, action, resource);
    @id("c") @hold("finance") permit (principal is User, action, resource);
    @id("d") permit (principal, action, resource);
    """
    verdict = made(text).decide(asked(chain=(CLERK, ANNA)))
    assert verdict.kind == "hold"
    assert verdict.demands == (Demand(roles=("finance",)), Demand(roles=("legal",), quorum=2))
    assert {reason.rule for reason in verdict.reasons} == {"a", "b", "c"}
    denied = made(text + '@id("no") forbid (principal == User::"otto", action, resource);').decide(
        asked(chain=(CLERK, OTTO))
    )
    assert (denied.kind, denied.demands) == ("deny", ()), "nobody can release what is forbidden"


# -- schemas of others
HOSTILE: list[dict[str, Any]] = [
    {"anyOf": None}, {"$defs": [], "properties": {"a": {"$ref": "#/$defs/x"}}}, {"properties": []}, {"properties": {"a": 5, "b": None, "c": []}},
    {"required": True, "properties": {"a": {"type": "string"}}}, {"required": 5}, {"properties": {"a": {"type": {"x": 1}}}}, {"properties": {"a": {"type": []}}},
    {"properties": {"a": {"$ref": 5}, "b": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}}, {"properties": {"a": {"type": "array", "items": [1]}}},
    {"properties": {"\ud800": {"type": "string"}, "": {"type": "string"}, "a\x00": {"type": "string"}}},
]  # fmt: skip


@pytest.mark.parametrize("parameters", HOSTILE, ids=range(len(HOSTILE)))
def test_a_schema_that_is_none_is_left_out_and_stops_nothing(parameters: dict[str, Any]) -> None:
    tool = ToolSpec(name="t", parameters={"type": "object", **parameters})
    assert made(ANY, [tool, PAY]).decide(asked()).kind == "allow"


def test_a_schema_that_multiplies_is_left_out_as_a_whole() -> None:
    def node(depth: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"p{n}": {"$ref": "#/$defs/N"} for n in range(depth)}}

    bomb = ToolSpec(name="t", parameters={**node(300), "$defs": {"N": node(300)}})
    assert (input_of(bomb), left_out(bomb)) == ({}, ("input",))
    wide = spec("w", {f"p{n}": {"type": "string"} for n in range(ATTRIBUTES_MAX)})
    assert (len(input_of(wide)), left_out(wide)) == (ATTRIBUTES_MAX, ())
    assert made(ANY, [bomb, PAY]).decide(asked("t", arguments={"p0": {}})).kind == "allow"


def test_what_policies_cannot_see_is_listed() -> None:
    tool = spec(
        "t",
        {
            "price": {"type": "number"}, "any": {}, "either": {"type": ["integer", "string"]}, "maybe": {"type": ["integer", "null"]},
            "deep": {"type": "object", "properties": {"ok": {"type": "string"}, "no": {"oneOf": [{"type": "string"}]}}},
            "mixed": {"type": "array", "items": {"type": ["string", "null"]}},
        },
        anyOf=[{"required": ["price"]}, {"required": ["any"]}],
    )  # fmt: skip
    assert left_out(tool) == ("input.price", "input.any", "input.either", "input.deep.no", "input.mixed")
    assert set(input_of(tool)) == {"maybe", "deep"}
    assert input_of(tool)["maybe"]["required"] is False, "it may be null, and null is absent"
    policies = made(
        '@id("x") permit (principal, action == Action::"t", resource) when { context.input has maybe && context.input.maybe > 1 };',
        [tool],
    )
    for value, expected in ((2, "allow"), (1, "deny"), (None, "deny")):
        assert policies.decide(asked("t", arguments={"maybe": value, "deep": {"ok": "x"}})).kind == expected
    with pytest.raises(PolicyInvalidError, match="price"):
        made(
            '@id("x") permit (principal, action == Action::"t", resource) when { context.input.price < 5 };',
            [tool],
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["string", "integer", "object", "array", "null", "#/$defs/a", "a"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "properties", "required", "items", "anyOf", "$ref", "$defs", "a", "__entity"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["properties", "required", "$defs", "anyOf", "type"]), JSON), JSON)
def test_no_schema_and_no_argument_raises(parameters: dict[str, Any], arguments: Any) -> None:
    tool = ToolSpec(name="t", parameters={**parameters, "type": "object"})
    policies = made(ANY, [tool])
    given_arguments = arguments if isinstance(arguments, dict) else {"a": arguments}
    assert policies.decide(asked("t", arguments=given_arguments)).kind in ("allow", "deny")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["permit", "forbid", "(", ")", "principal", ",", "action", "resource", ";", "when", "{", "}", '"', "\\", "//", "\n", "true", "[", "]", "@id", "if", "?principal", ".", "||", ANY, "é"]), max_size=40))  # fmt: skip
def test_any_text_loads_or_is_refused(words: list[str]) -> None:
    try:
        found = made(" ".join(words))
    except PolicyInvalidError as error:
        assert error.message
    else:
        assert found.decide(asked()).kind in ("allow", "deny")


# -- equal to what it stands for
CONDITIONS = (
    "",
    'when { context.governance.risk == "high" }',
    'unless { principal in Role::"clerks" }',
    "when { context.governance.time * 9223372036854775807 > 5 }",
    'when { resource is Tool && resource.effect == "read" }',
    'when { context.governance.labels.contains("x") }',
)
SCOPES = (
    "action",
    'action == Action::"pay"',
    'action in Action::"read"',
    'action in Action::"write"',
    'action in [Action::"look", Action::"mcp.tool-if"]',
    'action in [Action::"read", Action::"pay"]',
    'action in Action::"pay"',
    'action in Action::"tool_call"',
    'action == Action::"model_request"',
)
WHO = (
    "principal",
    'principal in Role::"clerks"',
    "principal is User",
    'principal is User in Group::"finance"',
    'principal == Agent::"clerk"',
)
WHAT = ("resource", 'resource == Tool::"pay"', "resource is Tool", "resource is Model")
WRITTEN = st.tuples(
    st.sampled_from(["permit", "permit", "forbid"]), st.sampled_from(WHO), st.sampled_from(SCOPES), st.sampled_from(WHAT), st.sampled_from(CONDITIONS)
)  # fmt: skip
CHAINS = st.lists(st.sampled_from([CLERK, ANNA, OTTO, ROBOT]), min_size=1, max_size=3)


def texts_of(parts: list[tuple[str, str, str, str, str]]) -> list[str]:
    return [
        f'@id("p{n}") {effect} ({who}, {scope}, {what}) {when};'
        for n, (effect, who, scope, what, when) in enumerate(parts)
    ]


def usable(parts: list[tuple[str, str, str, str, str]]) -> str:
    """Those that validate: many a scope is about nothing."""
    good = []
    for text in texts_of(parts):
        try:
            made(text)
        except PolicyInvalidError:
            continue
        good.append(text)
    return "\n".join(good)


@settings(max_examples=80, deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=7), CHAINS, st.sampled_from(["low", "high"]))
def test_a_slice_decides_as_the_whole_for_links_conditions_and_errors(
    parts: Any, chain: Any, risk: Any
) -> None:
    text = usable(parts)
    sliced, whole = made(text), made(text)
    whole.is_about = lambda *_: True  # type: ignore[method-assign]
    for name, is_model in (
        ("pay", False),
        ("look", False),
        ("mcp.tool-if", False),
        ("m", True),
        ("pay", True),
    ):
        arguments = (
            {"if": "x", "a b": True}
            if name == "mcp.tool-if"
            else {"to": "a", "cents": 1}
            if name == "pay"
            else {}
        )
        request = PolicyRequest(
            chain=tuple(chain), name=name, is_model=is_model, arguments=arguments, risk=risk, at_ms=10**12
        )
        assert sliced.decide(request) == whole.decide(request)


@settings(max_examples=60, deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=7), CHAINS)
def test_a_chain_may_do_what_each_of_its_links_may(parts: Any, chain: Any) -> None:
    """Each link by itself, with bare Cedar on the text as written: the answer of the chain is their conjunction."""
    text = usable(parts)
    policies = made(text)
    for name in ("pay", "look"):
        request = asked(name, chain=tuple(chain))
        alone = []
        for link in chain:
            asking = {
                "principal": {"type": link.kind.capitalize(), "id": link.name}, "action": {"type": "Action", "id": name},
                "resource": {"type": "Tool", "id": name}, "context": policies.context_of(request),
            }  # fmt: skip
            answer = cedarpy.is_authorized(
                asking, text, policies._entity_list(link, request), policies._schema
            )
            alone.append(answer.allowed and not answer.diagnostics.errors)
        assert (policies.decide(request).kind == "allow") == all(alone)


# -- memory
def test_what_is_remembered_of_principals_is_bounded_and_the_oldest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "CACHED_MAX", 3)
    policies = made(ANY)
    people = [Principal(kind="user", name=f"u{n}") for n in range(5)]
    for person in (people[0], people[1], people[2], people[0], people[3]):
        policies._decided_before.clear()
        policies.decide(asked(chain=(person,)))
    assert [key[0].name for key in policies._entities] == ["u2", "u0", "u3"], (
        "u1 was not asked for the longest"
    )
    for run in range(10):
        policies._decided_before.clear()
        policies.decide(asked(chain=(Principal(kind="agent", name="a", run=f"r{run}"),)))
    assert len(policies._entities) == 3
    assert len([key for key in policies._entities if key[0].name == "a"]) == 1, "runs of one agent share one"


def test_digests() -> None:
    files = {"a.cedar": ALL, "b.cedar": '@id("b") permit (principal, action, resource);'}
    known = load(files, TOOLS).digest
    assert load(dict(reversed(files.items())), list(reversed(TOOLS))).digest == known, (
        "the order does not matter"
    )
    assert load({"a.cedar": files["b.cedar"], "b.cedar": files["a.cedar"]}, TOOLS).digest != known, "names do"
    assert load(files, [PAY, LOOK]).digest != known
    changed = spec("look", {"what": {"type": "string"}}, effect="read")
    assert load(files, [PAY, changed, TOOLS[2]]).digest != known
    assert made(ANY).decide(asked()).policy == made(ANY).digest
    assert made(ANY).decide(asked(chain=())).policy == made(ANY).digest, "a denial has it too"


def test_a_number_and_a_text_are_never_taken_for_each_other() -> None:
    long = {"type": "Long"}
    for wrong in (True, 1.0, "1", None, [1], 2**63, -(2**63)):
        with pytest.raises(ValueError, match="expected a Long"):
            fitted(wrong, long)
    assert fitted(2**63 - 1, long) == 2**63 - 1


REQUESTS = st.lists(
    st.builds(
        asked,
        st.sampled_from(["pay", "look"]),
        chain=CHAINS.map(tuple),
        risk=st.sampled_from(["low", "high"]),
        at_ms=st.sampled_from([0, 3 * 3_600_000]),
        approved=st.booleans(),
        labels=st.sampled_from([frozenset(), frozenset({"untrusted"}), frozenset({"untrusted", "made"})]),
        confidence=st.sampled_from([None, 10, 90]),
    ),
    min_size=2,
    max_size=6,
)
LOOKING = (
    *CONDITIONS,
    'when { context.governance.labels.contains("untrusted") }',
    "when { context.governance has confidence && context.governance.confidence < 50 }",
    "when { context.governance.approved }",
    "when { context.governance.hour > 1 }",
    'unless { context.governance == context.governance && context.governance.risk == "high" }',
    "when { context == context }",
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["permit", "permit", "forbid"]), st.sampled_from(WHO), st.sampled_from(SCOPES), st.sampled_from(WHAT),
            st.sampled_from(LOOKING),
        ),
        min_size=1,
        max_size=6,
    ),
    REQUESTS,
)  # fmt: skip
def test_what_is_remembered_is_what_would_be_decided(parts: Any, requests: Any) -> None:
    text = usable(parts)
    policies = made(text)
    for request in requests:
        remembered = policies.decide(request)
        policies_anew = made(text)
        assert remembered == policies_anew.decide(request)


def test_decisions_are_told_apart_by_what_policies_look_at_and_by_nothing_else() -> None:
    policies = made(
        '@id("p") permit (principal, action == Action::"pay", resource) when { context.input.cents < 1000 };'
    )
    for run in range(5):
        policies.decide(
            asked(chain=(Principal(kind="agent", name="a", run=f"r{run}"),), at_ms=run * 10_000_000)
        )
    assert len(policies._decided_before) == 1
    assert policies.decide(asked(arguments={"to": "acme", "cents": 5_000})).kind == "deny"
    assert policies.decide(asked(arguments={"to": "other", "cents": 5})).kind == "allow"
    assert policies.decide(asked(arguments={"cents": 5})).kind == "deny", (
        "an argument that is missing is noticed"
    )
    assert policies.decide(asked(arguments={"to": 7, "cents": 5})).kind == "deny", "and one of another type"


def test_what_is_remembered_of_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DECISIONS_MAX", 3)
    policies = made('@id("p") permit (principal, action, resource) when { context.input == context.input };')
    for cents in range(10):
        policies.decide(asked(arguments={"to": "acme", "cents": cents}))
    assert len(policies._decided_before) <= 3
