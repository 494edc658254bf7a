"""The lattice of labels: its laws, its bounds, and what it says at them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import DefinitionError
from perdure.core.labels import MANY, PUBLIC, UNKNOWN, USER, Label, can_flow, join, join_all

names = st.sampled_from(["a", "b", "c", "tool:x", "run:r/1"])
labels = st.builds(
    Label,
    sources=st.lists(names, max_size=4).map(tuple),
    integrity=st.sampled_from(["trusted", "untrusted"]),
    readers=st.one_of(st.just(("*",)), st.lists(names, max_size=3).map(tuple)),
    secret=st.booleans(),
)


@given(labels, labels, labels)
def test_join_is_a_join(first: Label, second: Label, third: Label) -> None:
    assert join(first, second) == join(second, first)
    assert join(join(first, second), third) == join(first, join(second, third))
    assert join(first, first) == first
    assert join(PUBLIC, first) == first
    assert can_flow(first, join(first, second))


@given(labels, labels)
def test_nothing_gets_better_by_being_mixed(first: Label, second: Label) -> None:
    both = join(first, second)
    assert not both.is_trusted or (first.is_trusted and second.is_trusted)
    assert both.secret == (first.secret or second.secret)
    assert not both.is_public or (first.is_public and second.is_public)
    for reader in both.readers:
        assert reader in first.readers or first.readers == ("*",)


def test_too_many_sources_are_nobody_to_trust() -> None:
    many = join_all(Label(sources=(f"tool:{number}",), integrity="trusted") for number in range(100))
    assert many.sources == (MANY,)
    assert not many.is_trusted
    assert many.has_source("tool:7") and many.has_source("anything")
    assert join(many, USER) == join(USER, many)


def test_the_ends_of_the_lattice() -> None:
    assert join(UNKNOWN, USER) == UNKNOWN
    assert not UNKNOWN.is_public
    assert USER.is_trusted and USER.is_public
    assert not Label().is_trusted, "a stranger's text is not trusted"


@pytest.mark.parametrize(
    "fields",
    [{"sources": ("",)}, {"sources": ("x" * 300,)}, {"readers": tuple(str(n) for n in range(300))}],
)
def test_what_no_label_can_be(fields: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        Label(**fields)  # type: ignore[arg-type]


def test_an_integrity_that_is_none() -> None:
    with pytest.raises(DefinitionError, match="expected `trusted` or `untrusted`"):
        Label(integrity="perhaps")  # type: ignore[arg-type]
