"""What an approver reads: nothing hidden, nothing that passes for something else."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.verdicts import Reason
from perdure.governance.claims import ActionClaim
from perdure.governance.display import SHOWN_MAX, clear, render


def claim(**arguments: Any) -> ActionClaim:
    return ActionClaim(
        run="r1", seq=3, tool="pay", tool_digest="t" * 64, arguments=arguments,
        principals=("agent:clerk", "user:ute"), policy="p" * 64,
    )  # fmt: skip


FOOLING = {
    "mixed scripts": ("p\u0430ypal", "p<U+0430>ypal"),
    "a whole word of twins": ("\u0430\u0440\u0440\u04cf\u0435", "<U+0430><U+0440><U+0440><U+04CF><U+0435>"),
    "a twin beside a digit": ("\u04301pple", "<U+0430>1pple"),
    "a twin beside a sign": ("\u0430-team", "<U+0430>-team"),
    "a Latin twin": ("\u0251cme", "<U+0251>cme"),
    "direction": ("a\u202etxt.exe", "a<U+202E>txt.exe"),
    "zero width": ("ac\u200bme", "ac<U+200B>me"),
    "a variation selector": ("ac\ufe0fme", "ac<U+FE0F>me"),
    "a tag": ("ac\U000e0041me", "ac<U+E0041>me"),
    "a filler": ("ac\u3164me", "ac<U+3164>me"),
    "an empty braille cell": ("a\u2800b", "a<U+2800>b"),
    "no-break space": ("a\u00a0b", "a<U+00A0>b"),
    "a terminal's commands": ("\x1b[2J\x07\r", "<U+001B>[2J<U+0007><U+000D>"),
    "a line break": ("x\ntool = y", "x<U+000A>tool = y"),
    "decomposed": ("e\u0301", "e<U+0301>"),
    "full width": ("\uff41cme", "<U+FF41>cme"),
    "a ligature": ("\ufb01nance", "<U+FB01>nance"),
    "other digits": ("1\u0660\u0660", "1<U+0660><U+0660>"),
    "another point": ("1\u066b000", "1<U+066B>000"),
    "another slash": ("a\u2215b", "a<U+2215>b"),
    "a code point in letters": ("p<U+0430>ypal", "p<U+003C>U+0430>ypal"),
}


@pytest.mark.parametrize(("text", "shown"), FOOLING.values(), ids=FOOLING)
def test_what_fools_an_eye_stands_by_its_code_point(text: str, shown: str) -> None:
    assert shown in render(claim(to=text)).text

    assert clear(text) == shown


@pytest.mark.parametrize(
    "text", ["Zo\u00eb M\u00fcller", "\u0391\u03b8\u03ae\u03bd\u03b1", "\u041c\u043e\u0441\u043a\u0432\u0430", "\u6771\u4eac", "Stra\u00dfe 5", "12 \u20ac"]
)  # fmt: skip
def test_ordinary_words_stay_readable(text: str) -> None:
    assert clear(text) == text


def test_a_value_cannot_end_its_line_or_its_quotes() -> None:
    assert '"x\\" (checked by \\"bob"' in render(claim(to='x" (checked by "bob')).text
    assert '"to = \\"acme\\"  # was" = "evil"' in render(claim(**{'to = "acme"  # was': "evil"})).text


def test_long_values_say_what_is_not_shown() -> None:
    text = "x" * 5_000 + "evil" + "x" * 5_000
    shown = render(claim(note=text)).text
    digest = hashlib.sha256(f'"{text}"'.encode()).hexdigest()
    assert f"of {len(text) + 2} characters are not shown; SHA-256 of the whole: {digest}" in shown
    assert "not shown" not in render(claim(note="x" * (SHOWN_MAX - 2))).text
    assert render(claim(note=text)).digest != render(claim(note=text.replace("evil", "good"))).digest


def test_the_digest_is_that_of_the_text_and_of_the_reasons() -> None:
    one = render(claim(to="acme"), [Reason(code="policy-hold", message="a large sum")])
    assert one.digest == hashlib.sha256(one.text.encode()).hexdigest()
    assert "a large sum (policy-hold)" in one.text
    assert render(claim(to="acme")).digest != one.digest
    assert "9007199254740993" in render(claim(cents=2**53 + 1)).text, (
        "also what cannot be signed can be looked at"
    )


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_texts_never_look_alike(one: str, other: str) -> None:
    assert (clear(one) == clear(other)) == (one == other)
    assert clear(one).isprintable()


@given(st.text(max_size=60))
def test_one_line_for_each_argument(text: str) -> None:
    text = text.encode(errors="replace").decode()
    shown = render(claim(**{"a": text, text: 1})).text
    assert len(shown.split("\n")) <= 9
    assert all(line.isprintable() for line in shown.split("\n"))
