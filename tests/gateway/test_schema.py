"""Gate 1: arguments that do not fit are refused with a message that says where and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import ArgumentsInvalidError, DefinitionError
from perdure.gateway.schema import ArgumentSchema

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "nights": {"type": "integer", "minimum": 1},
        "guests": {"type": "array", "items": {"$ref": "#/$defs/guest"}},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"guest": {"type": "object", "properties": {"age": {"type": "integer"}}}},
}


def test_what_fits_passes() -> None:
    ArgumentSchema(SCHEMA).check({"city": "Rome", "nights": 2, "guests": [{"age": 3}]}, "book")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'city' is a required property"),
        ({"city": 5}, "`city`: 5 is not of type 'string'"),
        ({"city": "Rome", "nights": 0}, "`nights`: 0 is less than the minimum"),
        ({"city": "Rome", "guests": [{"age": "old"}]}, "`guests[0].age`"),
        ({"city": "Rome", "more": 1}, "more"),
        ({"city": "x" * 2_000_000}, "over"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentsInvalidError) as caught:
        ArgumentSchema(SCHEMA).check(arguments, "book")
    assert told in caught.value.message
    assert "book" in caught.value.message
    assert len(caught.value.message) < 2_000


def test_deep_arguments_are_refused() -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(ArgumentsInvalidError, match="deeper"):
        ArgumentSchema({"type": "object"}).check({"a": value}, "book")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "object", "properties": {"a": {"type": "nothing"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema.json"}}},
        {"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}},
    ],
)
def test_bad_schemas_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        ArgumentSchema(schema)


def test_a_reference_that_leads_nowhere_is_a_no() -> None:
    schema = ArgumentSchema({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})
    with pytest.raises(ArgumentsInvalidError, match="cannot be checked"):
        schema.check({"a": 1}, "book")


PLAIN = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["name"],
    "additionalProperties": False,
}
VALUES = st.one_of(
    st.text(max_size=3),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.none(),
    st.lists(st.integers()),
)


@given(
    st.dictionaries(st.sampled_from(["name", "count", "sure", "other"]), VALUES),
    st.sampled_from([True, False, None]),
    st.booleans(),
)
def test_the_short_way_says_what_the_validator_says(arguments: Any, more: Any, loose: bool) -> None:  # noqa: FBT001
    parameters = {**PLAIN, "required": [] if loose else ["name"]}
    if more is not None:
        parameters["additionalProperties"] = more
    schema = ArgumentSchema(parameters)
    slow = ArgumentSchema({**parameters, "$comment": "not plain any more"})
    assert slow._plain is None
    outcomes = []
    for one in (schema, slow):
        try:
            one.check(arguments, "t")
            outcomes.append("fits")
        except ArgumentsInvalidError as error:
            outcomes.append(error.message)
    assert outcomes[0] == outcomes[1]


def test_the_short_way_is_not_taken_for_more_than_scalars() -> None:
    for part in (
        {"type": "string", "pattern": "a"},
        {"type": ["string", "null"]},
        {"type": "array"},
        {"enum": [1]},
        True,
    ):
        assert ArgumentSchema({"type": "object", "properties": {"a": part}})._plain is None
    assert ArgumentSchema({"type": "object", "properties": {}, "maxProperties": 1})._plain is None
