"""SPIFFE IDs: every name has exactly one, and it gives the name back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import InputInvalidError
from perdure.governance.spiffe import Workload, decoded, encoded, read_workload

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
# SPIFFE-ID 1.0: what a trust domain and a path segment may hold.
FORM = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)+")


@given(NAMES, NAMES)
def test_an_id_is_a_spiffe_id_and_reads_back(agent: str, run: str) -> None:
    found = Workload("perdure.example", agent, run)
    assert FORM.fullmatch(found.uri) and len(found.uri) <= 2_048
    assert read_workload(found.uri) == found


@given(NAMES, NAMES)
def test_different_names_have_different_segments(one: str, two: str) -> None:
    assert (encoded(one) == encoded(two)) == (one == two)


@given(st.text("_abcdef05.-", min_size=1, max_size=8))
def test_a_segment_is_read_only_if_it_is_the_one_spelling(segment: str) -> None:
    try:
        name = decoded(segment)
    except InputInvalidError:
        return
    assert encoded(name) == segment


def test_examples() -> None:
    assert Workload("a.b", "desk").uri == "spiffe://a.b/agent/desk"
    assert Workload("a.b", "desk-2", "01hx.3").uri == "spiffe://a.b/agent/desk-2/run/01hx.3"
    assert encoded("my_agent") == "my__agent" and encoded("a/b") == "a_2fb" and encoded("é") == "_c3_a9"
    assert encoded(".") == "_2e" and encoded("..") == "_2e." and encoded("...") == "..."


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://a/agent",
        "spiffe://a/agent/",
        "spiffe://a/agent/x/",
        "spiffe://a/agent/x/run",
        "spiffe://a/agent/x/run/",
        "spiffe://a/agent/x/run/1/",
        "spiffe://a//agent/x",
        "spiffe://A/agent/x",
        "spiffe://a:1/agent/x",
        "spiffe://u@a/agent/x",
        "spiffe://a/user/x",
        "spiffe://a/agent/x?q",
        "spiffe://a/agent/x#f",
        "spiffe://a/agent/%41",
        "spiffe://a/agent/_41",
        "spiffe://a/agent/_C3_A9",
        "spiffe://a/agent/_c3",
        "spiffe://a/agent/_",
        "spiffe://a/agent/..",
        "spiffe://a/agent/.",
        "SPIFFE://a/agent/x",
        "https://a/agent/x",
        "a/agent/x",
        "spiffe://a/agent/x\n",
        "spiffe://a/agent/é",
        f"spiffe://a/agent/{'x' * 2_100}",
    ],
)
def test_what_is_no_identity(uri: str) -> None:
    with pytest.raises(InputInvalidError):
        read_workload(uri)


def test_lengths_are_bounded() -> None:
    assert len(Workload("a" * 255, "é" * 200, "r" * 100).uri) <= 2_048
    for domain, agent, run in (
        ("a" * 256, "x", ""),
        ("", "x", ""),
        ("a", "", ""),
        ("a", "x" * 201, ""),
        ("a", "x", "r" * 201),
        ("a", "\U0001f600" * 200, "r"),
        ("a", "\ud800", ""),
    ):
        with pytest.raises(InputInvalidError):
            Workload(domain, agent, run)
