"""How calls of a restarted program are recognised: canonical JSON, masks, identities, rows, differences."""

from __future__ import annotations

import copy
import struct
import time
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.core.canonical import _written, canonical, canonical_digest
from perdure.core.errors import BrokenInvariantError, InputInvalidError
from perdure.kernel.identity import (
    VOLATILE,
    Identity,
    Row,
    Rows,
    difference,
    identify_model,
    identify_tool,
    match,
    tool_names,
)
from perdure.kernel.masks import mask, mask_arguments, shape

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Mixed on purpose: ASCII, beyond U+FFFF, and between the surrogates and U+FFFF, where UTF-16 and UTF-8 sort apart.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a", "\U0001f600", "\ufb33", '":1e5', "[-0.0,"]
)
WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [1e15, 1e16, 1e21, 1e-6, 9.5e-7, 100.0, -0.0, 0.1]
)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | REAL | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2089, 12, 31))
WILD = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


# -- canonical JSON
@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_rfc_8785_lists_them(bits: str, text: str) -> None:
    number = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert canonical(number).decode() == text
    assert canonical([{"a": number}]).decode() == f'[{{"a":{text}}}]'


def test_keys_sort_by_utf_16_and_texts_are_escaped_as_in_ecmascript() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = canonical(dict.fromkeys(keys, 0)).decode()
    assert written == '{"\\r":0,"1":0,"\u0080":0,"\u00f6":0,"\u20ac":0,"\U0001f600":0,"\ufb33":0}'
    assert (
        canonical('\x00\x08\t\n\x0b\x0c\r"\\/\x7f\u2028').decode()
        == '"\\u0000\\b\\t\\n\\u000b\\f\\r\\"\\\\/\x7f\u2028"'
    )
    assert canonical_digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@given(JSON)
@QUICK
def test_the_fast_way_gives_the_bytes_of_the_slow_way(value: Any) -> None:
    slow = _written(value, strict=True)
    assert canonical(value) == canonical(value, strict=False) == slow
    assert canonical(msgspec.json.decode(slow), strict=False) == slow  # reading it back changes nothing


@given(WILD)
@QUICK
def test_the_lenient_way_takes_everything(value: Any) -> None:
    assert canonical(value, strict=False) == canonical(copy.deepcopy(value), strict=False)
    assert identify_model("chat/completions", value).exact and identify_tool("act", value).exact


@pytest.mark.parametrize(
    ("value", "lenient"),
    [
        (2**53, b"9007199254740992"),
        ({"a": [-(2**70)]}, b'{"a":[-1180591620717411303424]}'),
        (float("nan"), b"null"),
        ([float("inf")], b"[null]"),
        ("\ud800", b'"\xed\xa0\x80"'),
    ],
)
def test_what_rfc_8785_cannot_say_is_refused_unless_lenient(value: Any, lenient: bytes) -> None:
    with pytest.raises(InputInvalidError):
        canonical(value)
    assert canonical(value, strict=False) == lenient


def test_a_large_integer_is_refused_with_advice() -> None:
    with pytest.raises(InputInvalidError, match="pass it as a string"):
        canonical({"amount": 2**60})
    with pytest.raises(InputInvalidError, match="pass plain data"):
        canonical({"thing": object()})


# -- masks
MASKED = [
    ("at 2026-11-23T05:30:37Z.", "at <time>."),
    ("2026-11-23 05:30:37.123456+00:00", "<time>"),
    ("2026-11-23T05:30 and 2026/11/23", "<time> and <time>"),
    ("\\n2026-11-23", "\\n<time>"),
    ("Mon, 23 Nov 2026 05:30:37 +0000", "<time> <time>"),
    ("Mon Nov 23 05:30:37 2026", "<time>"),
    ("Today is Monday, November 23, 2026", "Today is <time>"),
    ("11/23/2026, 23.11.2026, 1st May 2026", "<time>, <time>, <time>"),
    ("5:30 PM or 05:30:37", "<time> or <time>"),
    ("20261123T053037Z 20261123053037", "<time> <time>"),
    ("1790055037 1790055037123 1790055037123456 1790055037123456789", "<time> <time> <time> <time>"),
    ('{"at":1790055037.25}', '{"at":<time>}'),
    ("550e8400-E29B-41d4-a716-446655440000", "<id>"),
    ("run_550e8400e29b41d4a716446655440000/x", "run_<id>/x"),
    ("pid 1234, (PID=7), \\npid: 12", "<number>, (<number>), \\n<number>"),
    ("<Tool at 0x7f3a12bc9d10> in /tmp/tmpab12cd_x/a", "<Tool <number>> in /tmp<number>/a"),
    ("http://127.0.0.1:41234 localhost:8080", "http://<number> <number>"),
]
KEPT = [
    "main.py:12:34", "0.1790055037", "5551234567", "rapid 12", "gpt-5.2", "1e5", "May 5 people", "Wed 12 people",
    "a" * 64, "5" * 20, "12:30:45:12", "x 5550e8400-e29b-41d4-a716-446655440000", "call_a1b2c3d4e5f6g7h8i9j0k1l2", "2026",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MASKED)
def test_what_is_new_on_every_start_is_masked_in_requests(text: str, expected: str) -> None:
    assert mask(text.encode()).decode() == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_is_kept(text: str) -> None:
    assert mask(text.encode()).decode() == text


@pytest.mark.parametrize(
    "text",
    [
        "2026-12-01",
        "2026-12-01T14:00:00Z",
        "14:00",
        "1790055037",
        "1790055037000",
        "550e8400-e29b-41d4-a716-446655440000",
    ],
)
def test_what_may_be_a_choice_is_kept_in_arguments(text: str) -> None:
    assert mask_arguments(text.encode()).decode() == text


@pytest.mark.parametrize(
    "text", ["2026-12-01T14:00:00.123Z", "1790055037.5", "1790055037123", "1790055037123456"]
)
def test_what_nobody_would_choose_is_masked_in_arguments(text: str) -> None:
    assert mask_arguments(text.encode()) == b"<time>"


@given(st.binary(max_size=80))
@QUICK
def test_masks_take_any_bytes_and_keep_line_feeds(data: bytes) -> None:
    assert mask(data).count(b"\n") == data.count(b"\n")
    assert shape(b"worker 12 of deadbeef01") == b"worker 0 of <id>"


# -- identities of requests
def chat(
    *, when: str = "2026-11-23T05:30:37Z", results: tuple[str, ...] = ("sunny", "sunny"), **more: Any
) -> dict[str, Any]:
    """Two parallel calls of one tool and their results."""
    ids = [f"call_{number}" for number in range(len(results))]
    calls = [
        {"id": name, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for name in ids
    ]
    return {
        "model": "gpt-5",
        "messages": [
            {"role": "system", "content": f"You are desk 7. It is {when}."},
            {"role": "user", "content": "How is the weather?"},
            *([{"role": "assistant", "content": None, "tool_calls": calls}] if ids else []),
            *(
                {"role": "tool", "tool_call_id": name, "content": text}
                for name, text in zip(ids, results, strict=True)
            ),
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        **more,
    }


def responses(*, output: Any = "sunny", **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-5",
        "instructions": "You are a desk.",
        "input": [
            {"role": "user", "content": "How is the weather?"},
            {
                "type": "function_call",
                "call_id": "call_0",
                "id": "fc_0",
                "name": "weather",
                "arguments": "{}",
            },
            {"type": "function_call_output", "call_id": "call_0", "output": output},
        ],
        "tools": [{"type": "function", "name": "weather"}, {"type": "web_search"}],
        **more,
    }


def messages(*, content: Any = "sunny", is_error: bool = False, **more: Any) -> dict[str, Any]:
    result = {"type": "tool_result", "tool_use_id": "toolu_0", "content": content}
    return {
        "model": "claude-sonnet-5",
        "max_tokens": 100,
        "system": [{"type": "text", "text": "You are a desk."}],
        "messages": [
            {"role": "user", "content": "How is the weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_0", "name": "weather", "input": {}}],
            },
            {"role": "user", "content": [{**result, "is_error": True} if is_error else result]},
        ],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        **more,
    }


def of(body: Any, endpoint: str = "chat/completions") -> Identity:
    return identify_model(endpoint, body)


def same(one: Identity, other: Identity) -> set[str]:
    """The levels on which both may meet."""
    return {
        name
        for name in Identity.__struct_fields__
        if getattr(one, name) and getattr(one, name) == getattr(other, name)
    }


PINNED = [
    (
        "53943568781c6aa186848a5703021c8e",
        "0e53e911a7d12313cd1129b99767ce4a",
        "eb31fa33d7d7e87a98e4b11b96ef4f5f",
        "1530a2c7a3944cdaa645a71b27a19c32",
    ),
    (
        "ed2ff73434558064040691730d91205e",
        "8b75a8f5d2e680ee10c1665b91a5243a",
        "62bbfb87001155acd44be8b8c127a972",
        "2142e3bc23a853b79d6648956c1e6b7a",
    ),
    (
        "858142967a54fd25c43f08e6054eb9a5",
        "636367c5eb46e0bc084a02fba4c93415",
        "5e51ee9bf53e88c9b985aa3af60eeb93",
        "86ece3dd68eb02be7374ad752d0de302",
    ),
]
PINNED_TOOL = (
    "50e620b8a7f1d782ba4944f8a40ead5c",
    "e41fbb7b1e5711789eca787395874449",
    "e41fbb7b1e5711789eca787395874449",
    "e41fbb7b1e5711789eca787395874449",
)
ALL = {"exact", "masked", "causal", "ordinal"}
SAMPLES = [("chat/completions", chat()), ("responses", responses()), ("messages", messages())]


@pytest.mark.parametrize(("endpoint", "body"), SAMPLES)
def test_volatile_fields_and_the_order_of_keys_never_count(endpoint: str, body: dict[str, Any]) -> None:
    noisy: dict[str, Any] = {name: {"trace": 1} for name in sorted(VOLATILE)}
    noisy.update(reversed(list(copy.deepcopy(body).items())))
    noisy["tools"][0]["_meta"] = {"progressToken": 7}
    assert of(noisy, endpoint) == of(body, endpoint)
    assert all(len(value) == 32 for value in msgspec.structs.astuple(of(body, endpoint)))


def shuffled(value: Any, order: Any) -> Any:
    if isinstance(value, dict):
        keys = order.draw(st.permutations(list(value)))
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(JSON, st.data())
@QUICK
def test_the_order_of_keys_never_counts(value: Any, order: st.DataObject) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": value}]}
    assert of(shuffled(body, order)) == of(body)


@given(TIMES, TIMES, st.uuids(), st.uuids(), st.integers(2, 99_999), st.integers(2, 99_999))
@QUICK
def test_times_and_random_ids_count_for_exact_only(
    one: Any, other: Any, a: Any, b: Any, p: int, q: int
) -> None:
    forms = ("%Y-%m-%dT%H:%M:%S", "%a, %d %b %Y %H:%M:%S +0000", "%A, %B %d, %Y, %H:%M", "%Y%m%d_%H%M%S")
    for form in forms:
        first = of(chat(when=f"{one.strftime(form)} {a} {a.hex} pid {p}"))
        second = of(chat(when=f"{other.strftime(form)} {b} {b.hex} pid {q}"))
        assert same(first, second) >= ALL - {"exact"}


@given(st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT, min_size=1, max_size=3))
@QUICK
def test_other_results_are_another_request_and_swapped_ones_are_not(one: list[str], other: list[str]) -> None:
    first, second = of(chat(results=tuple(one))), of(chat(results=tuple(other)))
    if sorted(mask(text.encode()) for text in one) != sorted(mask(text.encode()) for text in other):
        assert same(first, second) <= {"ordinal"}
        assert match(first, [Row(1, second)], ()) is None
    assert same(first, of(chat(results=tuple(reversed(one))))) >= {"causal", "ordinal"}


@pytest.mark.parametrize(
    ("endpoint", "one", "other"),
    [
        ("chat/completions", chat(), chat(results=("sunny", "rain"))),
        ("responses", responses(), responses(output="rain")),
        ("responses", responses(), responses(output=[{"type": "input_text", "text": "rain"}])),
        ("responses", responses(previous_response_id="resp_1"), responses(previous_response_id="resp_2")),
        ("messages", messages(), messages(content="rain")),
        ("messages", messages(), messages(is_error=True)),  # the ids alone replayed a wrong answer here
        ("chat/completions", chat(), chat(stream=True)),  # recorded bytes of a stream are no document
        ("chat/completions", chat(), chat(model="gpt-5-2025-08-07")),
        ("chat/completions", chat(model="gpt-5-2025-08-07"), chat(model="gpt-5-2025-08-08")),
        ("chat/completions", chat(results=()), chat(results=(), tools=[])),
    ],
)
def test_another_position_never_answers(endpoint: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert match(of(one, endpoint), [Row(1, of(other, endpoint))], ()) is None


@pytest.mark.parametrize(("endpoint", "body"), SAMPLES)
def test_a_prompt_that_no_mask_knows_is_met_by_its_facts(endpoint: str, body: dict[str, Any]) -> None:
    other = copy.deepcopy(body)
    (other.get("messages") or other["input"])[-3 if endpoint == "responses" else 0]["content"] = (
        "Hallo, purple bicycle!"
    )
    if endpoint == "chat/completions":
        other["messages"][1]["content"] = "purple bicycle"
    assert match(of(other, endpoint), [Row(4, of(body, endpoint))], ()) == (4, "causal")


def test_ids_that_the_program_mints_are_no_facts() -> None:
    one, other = chat(results=("sunny",)), chat(results=("sunny",))
    one["messages"][2]["tool_calls"][0]["id"] = "pyd_ai_550e8400e29b41d4a716446655440000"
    other["messages"][2]["tool_calls"][0]["id"] = "pyd_ai_650e8400e29b41d4a716446655440000"
    assert of(one).causal == of(other).causal != of(chat(results=("sunny",))).causal


def test_first_calls_have_no_causal_level_and_later_ones_no_ordinal_answer() -> None:
    first = of(chat(results=()))
    assert first.causal == "" and first.ordinal
    other = chat(results=())
    other["messages"][1]["content"] = "Quite another question"
    assert match(of(other), [Row(1, first)], ()) == (1, "ordinal")
    assert match(of(other), [Row(1, first)], (), weakest="causal") is None
    assert match(of(chat()), [Row(1, first)], ()) is None
    other["messages"][0]["content"] = "You are somebody else."
    assert match(of(other), [Row(1, first)], ()) is None


def test_a_conversation_without_tools_goes_by_what_the_model_said() -> None:
    def turn(said: str, asked: str) -> Identity:
        talk = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "go on"},
        ]
        return of({"model": "m", "messages": talk})

    assert same(turn("yes", "a"), turn("yes", "b")) == {"causal", "ordinal"}
    assert match(turn("yes", "a"), [Row(1, turn("no", "a"))], ()) is None
    assert (
        match(
            of({"model": "m", "messages": [{"role": "user", "content": "a"}]}), [Row(1, turn("yes", "a"))], ()
        )
        is None
    )


def test_examples_in_a_prompt_do_not_make_two_agents_one() -> None:
    def first(system: str) -> Identity:
        roles = [("system", system), ("user", "2+2?"), ("assistant", "4"), ("user", "now you")]
        return of({"model": "m", "messages": [{"role": role, "content": text} for role, text in roles]})

    assert match(first("You count."), [Row(1, first("You read."))], ()) is None
    assert match(first("You count 3."), [Row(1, first("You count 4."))], ()) == (1, "causal")


def test_identities_are_kept_in_journals_so_a_change_of_any_digest_is_deliberate() -> None:
    """A change here means that runs which began before it are met by *exact* only, or not at all."""
    assert [msgspec.structs.astuple(of(body, endpoint)) for endpoint, body in SAMPLES] == PINNED
    assert (
        msgspec.structs.astuple(identify_tool("book", {"day": "2026-12-01", "at": 1790055037.5}))
        == PINNED_TOOL
    )


@pytest.mark.parametrize("endpoint", ["embeddings", "messages/count_tokens"])
def test_what_depends_on_its_input_only_has_two_levels(endpoint: str) -> None:
    one, other = of({"model": "e", "input": "cats"}, endpoint), of({"model": "e", "input": "dogs"}, endpoint)
    assert one.causal == one.ordinal == "" and match(one, [Row(1, other)], ()) is None


def test_tool_names_in_every_format() -> None:
    assert tool_names(chat()) == ["weather"]
    assert tool_names(responses()) == ["weather", "web_search"]
    assert tool_names(messages()) == ["weather"]
    assert tool_names({"functions": [{"name": "old"}], "tools": None}) == ["old"]
    assert tool_names({"tools": "nonsense"}) == tool_names({"tools": [1, "x"]}) == []


# -- identities of tool calls
def test_a_tool_call_with_other_arguments_is_another_act() -> None:
    one = identify_tool("book", {"day": "2026-12-01", "user": "ada", "key": 1})
    assert one == identify_tool(
        "book", {"key": 1, "user": "ada", "day": "2026-12-01", "_meta": {"progressToken": 3}}
    )
    assert one.masked == one.causal == one.ordinal
    for name, arguments in [
        ("book", {"day": "2026-12-02", "user": "ada", "key": 1}),
        ("book", {"day": "2026-12-01", "user": "bob", "key": 1}),  # volatile in a request, an argument here
        ("cancel", {"day": "2026-12-01", "user": "ada", "key": 1}),
    ]:
        assert match(identify_tool(name, arguments), [Row(1, one)], ()) is None


def test_a_tool_call_is_met_whatever_the_program_minted_for_it() -> None:
    one = identify_tool(
        "pay", {"to": "ada", "idempotency_key": "a1", "clientRequestId": 5, "at": 1790055037.5}
    )
    other = identify_tool(
        "pay", {"to": "ada", "idempotency_key": "b2", "clientRequestId": 6, "at": 1790055038.25}
    )
    assert match(other, [Row(3, one)], ()) == (3, "masked")

    for name in ("request_id", "trace_id", "timestamp", "order"):
        row = Row(1, identify_tool("find", {name: "550e8400-e29b-41d4-a716-446655440000"}))
        assert match(identify_tool("find", {name: "650e8400-e29b-41d4-a716-446655440000"}), [row], ()) is None


@pytest.mark.parametrize("depth", [50, 5_000])
def test_data_that_is_nested_too_deeply_is_refused_not_fatal(depth: int) -> None:
    body: Any = {"_meta": 1, "\u00e9": "\U0001f600"}
    for _ in range(depth):
        body = {"a": [body]}
    if depth < 100:
        assert identify_model("responses", {"model": "m", "input": [body]}) and identify_tool("act", body)
        assert difference(body, {"a": 1})
        return
    for ask in (
        lambda: identify_model("responses", {"model": "m", "x": body}),
        lambda: identify_tool("act", body),
    ):
        with pytest.raises(InputInvalidError, match="nested too deeply|recursion"):
            ask()
    assert difference(body, [body, body])


# -- rows
def test_rows_answer_once_in_their_order_at_the_strongest_level() -> None:
    early, late = of(chat(when="2026-11-23")), of(chat(when="2026-11-24"))
    rows = Rows([Row(1, early), Row(2, late), Row(3, early)])
    assert rows.match(late) == (2, "exact")
    rows.consume(2)
    assert rows.match(late) == (1, "masked")
    assert rows.match(late, weakest="exact") is None
    rows.consume(1)
    assert rows.match(early) == (3, "exact") and rows.left() == [3]
    rows.release(1)
    assert rows.match(early) == (1, "exact") and rows.left() == [1, 3]
    rows.remove(1)
    rows.release(1)
    assert rows.match(early) == (3, "exact") and rows.left() == [3]
    rows.consume(3)
    assert rows.match(early) is None and rows.left() == []
    with pytest.raises(BrokenInvariantError):
        rows.add(3, late)


def test_of_two_questions_after_the_same_facts_each_gets_its_own_answer() -> None:
    title, summary = chat(), chat()
    title["messages"][0]["content"] = "Find a title"
    summary["messages"][0]["content"] = "Summarise"
    rows = Rows([Row(1, of(title)), Row(2, of(summary))])
    summary["messages"][1]["content"] = "purple bicycle"
    assert rows.match(of(summary)) == (2, "causal")


class Steps:
    """What rows must do, written the plain way."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.free: set[int] = set()

    def match(self, asked: Identity) -> tuple[int, str] | None:
        for level in ("exact", "masked", "causal", "ordinal"):
            for row in sorted(self.rows, key=lambda row: row.call):
                mine, its = getattr(asked, level), getattr(row.identity, level)
                allowed = level != "ordinal" or (not asked.causal and not row.identity.causal)
                if row.call in self.free and mine and mine == its and allowed:
                    return row.call, level
        return None


IDENTITIES = st.builds(
    Identity,
    exact=st.sampled_from(["e1", "e2", "e3"]),
    masked=st.sampled_from(["m1", "m2"]),
    causal=st.sampled_from(["", "c1", "c2"]),
    ordinal=st.just("o1"),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "consume", "release", "remove", "match"]), st.integers(1, 8), IDENTITIES
        ),
        max_size=40,
    )
)
@QUICK
def test_rows_do_what_the_plain_way_does(steps: list[tuple[str, int, Identity]]) -> None:
    rows, plain = Rows(), Steps()
    used: set[int] = set()
    for verb, call, identity in steps:
        known = any(row.call == call for row in plain.rows)
        if verb == "add" and call not in used:
            used.add(call)
            rows.add(call, identity)
            plain.rows.append(Row(call, identity))
            plain.free.add(call)
        elif verb == "consume":
            rows.consume(call)
            plain.free.discard(call)
        elif verb == "release":
            rows.release(call)
            plain.free |= {call} if known else set()
        elif verb == "remove":
            rows.remove(call)
            plain.free.discard(call)
            plain.rows = [row for row in plain.rows if row.call != call]
        assert rows.match(identity) == plain.match(identity)
        assert rows.left() == sorted(plain.free)


def test_thousands_of_rows_are_matched_fast() -> None:
    asked = [identify_tool("act", {"number": number // 3}) for number in range(6_000)]
    rows = Rows(Row(number, identity) for number, identity in enumerate(asked))
    begin = time.perf_counter()
    for number, identity in enumerate(asked):
        assert rows.match(identity) == (number, "exact")
        rows.consume(number)
    assert len(asked) / (time.perf_counter() - begin) > 20_000


def test_a_request_of_thirty_kilobytes_is_identified_fast() -> None:
    body = chat(
        results=tuple(
            f"{number}: " + "the agent looked at data for customer 12 " * 40 for number in range(19)
        )
    )
    assert 30_000 < len(canonical(body)) < 40_000
    best = 1.0
    for _ in range(20):
        begin = time.perf_counter()
        of(body)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.005  # under 1 ms here; the rest is for slow machines


# -- differences
def test_a_difference_names_places_and_shortens_values() -> None:
    expected, found = chat(when="2026-11-23"), chat(when="2026-11-24", temperature=1)
    found["messages"][1]["content"] = "How is the water?"
    found["messages"].append({"role": "user"})
    assert difference(expected, found) == [
        "messages[1].content: expected `How is the weather?`, found `How is the water?`",
        'messages[5]: expected nothing, found `{"role":"user"}`',
        "temperature: expected nothing, found `1`",
    ]
    assert difference(chat(when="2026-11-23"), chat(when="2026-11-24")) == [
        "messages[0].content: expected `You are desk 7. It is 2026-11-23.`, found `You are desk 7. It is 2026-11-24.`"
    ]
    assert difference(chat(user="ada"), chat(seed=1), ignore=VOLATILE) == []
    [line] = difference("x" * 500 + "a" + "y" * 500, "x" * 500 + "b" + "y" * 500)
    assert (
        line.startswith("the whole: expected `…xxx")
        and "xay" in line
        and "xbx" not in line
        and len(line) < 200
    )


@given(JSON, JSON)
@QUICK
def test_a_difference_is_empty_only_between_equals(one: Any, other: Any) -> None:
    assert difference(one, copy.deepcopy(one)) == []
    lines = difference(one, other, limit=3)
    assert len(lines) <= 3
    if canonical(one) != canonical(other):
        assert lines


def test_a_long_difference_says_how_much_is_left_out() -> None:
    assert difference(list(range(30)), list(range(1, 31)), limit=5)[-1] == "and 26 more places"
