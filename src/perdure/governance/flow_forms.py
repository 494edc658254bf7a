"""Whether a value occurs in a text, as itself or in one of the few forms that say exactly the same.

The question is asked of *trusted* text, so a yes must be right: an attacker gains whatever is wrongly said to occur. Therefore a value
must stand there whole, bounded on both sides (`acme.com` does not occur in `acme.com.evil` nor in `x@acme.com`), and no form maps two
different things onto one: no Unicode normalisation, no change of case but for what is told apart by digits or has an ``@``. A no that
is wrong costs a question.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgspec

SHORT_MAX = 2  # characters: so short a value is in every text, so it counts only where it is all there is
REMEMBERED_MAX = 64  # characters of a value whose forms are remembered: it is compared again soon
SCALAR_MAX = 4_096  # characters of a value that other forms are tried for
IDENTIFIER_MIN, IDENTIFIER_MAX = 8, 64  # characters without spacing: IBANs, card, telephone and order numbers
IDENTIFIER_DIGITS_MIN = 2
SHARED_MIN = 6  # characters from which a part of a word is taken for more than chance
TRIES_MAX = 1_000  # places in one text that are looked at for one form
_JOINERS = frozenset("._@/+-:=%&#?~")  # between two letters or digits they make one thing of both
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[ -][A-Za-z0-9]+)*")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,9})?")
_GROUP_BEFORE = re.compile(r"(?:^|[ -])[0-9]+[ -]\Z")
_GROUP_AFTER = re.compile(r"[ -][0-9]+(?![a-z0-9])")
_ESCAPE = re.compile(r"\\(.)")
_encoder = msgspec.json.Encoder(order=None)


class Forms(msgspec.Struct, frozen=True, kw_only=True):
    """How a value may be written.

    Attributes:
        exact: as it is, in JSON without the quotes.
        folded: in lower case; for what does not depend on case.
        squeezed: in lower case without spaces and hyphens; for identifiers.
        numbers: as numbers are written.
        stems: what these begin with, up to the first point or comma.
    """

    exact: str = ""
    folded: tuple[str, ...] = ()
    squeezed: str = ""
    numbers: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()


class Text:
    """A text to look in; what is derived from it is made when it is needed first."""

    __slots__ = ("_lower", "_squashed", "_squeezed", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._lower: str | None = None
        self._squeezed: str | None = None
        self._squashed: str | None = None

    @property
    def lower(self) -> str:
        """In lower case."""
        if self._lower is None:
            self._lower = self.text.lower()
        return self._lower

    @property
    def squeezed(self) -> str:
        """In lower case, without spaces and hyphens."""
        if self._squeezed is None:
            self._squeezed = self.lower.replace(" ", "").replace("-", "")
        return self._squeezed

    @property
    def squashed(self) -> str:
        """Its letters and digits, in one case and width."""
        if self._squashed is None:
            plain = unicodedata.normalize("NFKC", self.text).casefold()
            self._squashed = "".join(c for c in plain if c.isalnum())
        return self._squashed


def written(value: Any) -> str | None:
    """Data as JSON whose line breaks and tabs are spaces, so that words stay apart; ``None`` if JSON cannot say it."""
    try:
        text = _encoder.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    if "\\\\" in text:  # a backslash of the text's own before an `n` is no line break
        return _ESCAPE.sub(lambda match: " " if match[1] in "ntr" else match[0], text)
    if "\\" in text:
        text = text.replace("\\n", " ").replace("\\t", " ").replace("\\r", " ")
    return text


def forms(value: Any, *, is_amount: bool = False) -> Forms:
    """How a scalar may be written.

    Args:
        value: a string or number; anything else, and whatever JSON cannot say, has no form, so it occurs nowhere.
        is_amount: a string of digits is a number too, so that ``50`` is ``50.00``; account numbers are not (``050``).
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return Forms()
    if isinstance(value, str) and len(value) > REMEMBERED_MAX:
        return _forms(value, is_amount)
    return _remembered(value, is_amount)


def _forms(value: str | int | float, is_amount: bool) -> Forms:  # noqa: FBT001 - one key of the cache
    if not isinstance(value, str):
        return _number_forms(Forms(), repr(value))
    text = written(value)
    if text is None or not value.strip():
        return Forms()
    exact = text[1:-1].strip()
    if len(exact) > SCALAR_MAX:
        return Forms(exact=exact)
    return _string_forms(exact, is_amount=is_amount)


_remembered = lru_cache(maxsize=4_096, typed=True)(_forms)


def _string_forms(exact: str, *, is_amount: bool) -> Forms:
    folded: tuple[str, ...] = ()
    squeezed = ""
    if exact.isascii():
        if "@" in exact and " " not in exact:
            folded = (exact.lower(),)
        elif _IDENTIFIER.fullmatch(exact):
            short = exact.replace(" ", "").replace("-", "").lower()
            digits = sum(c.isdigit() for c in short)
            if IDENTIFIER_MIN <= len(short) <= IDENTIFIER_MAX and digits >= IDENTIFIER_DIGITS_MIN:
                squeezed = short
    found = Forms(exact=exact, folded=folded, squeezed=squeezed)
    return _number_forms(found, exact) if is_amount else found


def _number_forms(found: Forms, text: str) -> Forms:
    numbers = _numbers(text)
    stems = {re.split(r"[.,]", number, maxsplit=1)[0] for number in numbers}
    return msgspec.structs.replace(found, numbers=numbers, stems=tuple(stems))


def occurs(wanted: Forms, place: Text) -> bool:
    """Whether a value stands in a text, whole."""
    if wanted.exact and _occurs_exactly(wanted.exact, place.text):
        return True
    # All forms of a number begin with one of its stems, and most texts have none of them.
    if any(stem in place.text for stem in wanted.stems) and any(
        _occurs_number(number, place.text) for number in wanted.numbers
    ):
        return True
    if wanted.folded and any(_occurs_exactly(text, place.lower) for text in wanted.folded):
        return True
    if wanted.squeezed and wanted.squeezed in place.squeezed:
        # What the squeezed text joins may belong to two things: look again where it really stands.
        pattern = re.compile("[ -]?".join(wanted.squeezed))
        return any(
            _is_bounded(place.lower, *match.span()) and not _has_more_groups(place.lower, match)
            for match in pattern.finditer(place.lower)
        )
    return False


def _has_more_groups(text: str, match: re.Match[str]) -> bool:
    """Whether a number that is written in groups goes on with one more: then this is a part of another one."""
    before = text[max(0, match.start() - IDENTIFIER_MAX) : match.start()]
    return _GROUP_BEFORE.search(before) is not None or _GROUP_AFTER.match(text, match.end()) is not None


def equals(wanted: Forms, place: Text) -> bool:
    """Whether a value is all that a text says."""
    text = _bare(place.text)
    return (
        (bool(wanted.exact) and wanted.exact == text)
        or text in wanted.numbers
        or text.lower() in wanted.folded
        or (bool(wanted.squeezed) and wanted.squeezed == _bare(place.squeezed))
    )


def _bare(text: str) -> str:
    """Without the quotes of a JSON string."""
    return text.removeprefix('"').removesuffix('"').strip()


def contains(outer: Forms, inner: Text) -> bool:
    """Whether a value occurs in a text, or the text in the value: either may have been made from the other."""
    text = _bare(inner.text)
    if len(text) > SHORT_MAX and text in outer.exact:
        return True
    return occurs(outer, inner)


def shares(wanted: Forms, place: Text) -> bool:
    """Whether a value may have been made from a text or a part of it, or contains it: by letters and digits only, if they are not few.

    A store may write what it was given in another way, so whatever the usual ones are is left out: case, spacing, marks, widths.
    """
    if occurs(wanted, place):
        return True
    known = place.squashed
    needles = {Text(item).squashed for item in (wanted.exact, *wanted.numbers)}
    return any(
        (len(needle) >= SHARED_MIN and needle in known) or (len(known) >= SHARED_MIN and known in needle)
        for needle in needles
    )


def _occurs_exactly(needle: str, text: str) -> bool:
    if len(needle) <= SHORT_MAX:
        return f'"{needle}"' in text
    at = text.find(needle)
    for _ in range(TRIES_MAX):
        if at < 0:
            return False
        if _is_bounded(text, at, at + len(needle)):
            return True
        at = text.find(needle, at + 1)
    return False


def _is_bounded(text: str, start: int, end: int) -> bool:
    """Whether what stands there is whole: neither side goes on with it."""
    if start:
        before = text[start - 1]
        if _goes_on(before) or before in "/\\":
            return False
        # `IBAN:DE89...` is common, and a letter with a colon is no part of what follows.
        is_joined = before in _JOINERS and start > 1 and _goes_on(text[start - 2])
        if is_joined and not (before == ":" and text[start - 2].isalpha()):
            return False
    if end < len(text):
        after, beyond = text[end], text[end + 1 : end + 2]
        if _goes_on(after) or (after == "\\" and beyond == "\\"):
            return False
        if after in _JOINERS and beyond and _goes_on(beyond):
            return False
    return True


def _goes_on(c: str) -> bool:
    """Whether a character is part of a word; marks and invisible characters are."""
    return c.isalnum() or c == "_" or (c > "\x7f" and unicodedata.category(c)[0] in "MC")


def _occurs_number(number: str, text: str) -> bool:
    at = text.find(number)
    for _ in range(TRIES_MAX):
        if at < 0:
            return False
        if _is_bounded(text, at, at + len(number)) and not _is_part_of_number(text, at, at + len(number)):
            return True
        at = text.find(number, at + 1)
    return False


def _is_part_of_number(text: str, start: int, end: int) -> bool:
    """Whether there is a sign, another group of digits, or a per cent sign."""
    before, farther = text[max(0, start - 1) : start], text[max(0, start - 2) : start - 1]
    after, beyond = text[end : end + 1], text[end + 1 : end + 2]
    if before and before in "-\u2212+":
        return True
    if before and before in ".,'’" and farther.isdigit():
        return True
    return bool(after) and (after == "%" or (after in ".,'’" and beyond.isdigit()))


def _numbers(text: str) -> tuple[str, ...]:
    """The ways to write a number.

    One text is read in one way only: a comma before exactly three digits groups thousands, and a single point is a decimal point.
    """
    if _DECIMAL.fullmatch(text) is None:
        try:
            number = Decimal(text)
        except InvalidOperation:
            return ()
        text = f"{number:f}" if number.is_finite() and abs(number.adjusted()) <= 15 else text
        if _DECIMAL.fullmatch(text) is None:
            return (text,)
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    ends = {f".{fraction}", f".{fraction.ljust(2, '0')}"} if fraction else {"", ".0", ".00"}
    found = [whole + end for end in ends]
    grouped = f"{int(whole):,}"
    if grouped != whole:
        found += [grouped + end for end in ends]
    if len(fraction) != 3:  # otherwise the comma would group thousands
        tail = fraction.ljust(2, "0")
        commas = {f",{tail}", f",{fraction}" if fraction else f",{tail}"}
        found += [whole + end for end in commas]
        found += [grouped.replace(",", ".") + end for end in commas if grouped != whole]
    return tuple(sorted(f"{sign}{item}" for item in set(found)))
