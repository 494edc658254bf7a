"""What an approver reads: text in which nothing is hidden, nothing passes for something else, and two values never look alike."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.core.canonical import canonical
from perdure.core.verdicts import Reason

if TYPE_CHECKING:
    from perdure.governance.claims import ActionClaim

SHOWN_MAX = 2_000  # characters of one value; of a longer one beginning, end, length and digest are shown
ENDS = 600  # characters of each end: enough to recognise a text by
# Letters of other scripts that most fonts draw like an ASCII letter. A word of nothing else could be read as an ASCII word.
_TWINS = frozenset("аеорсухіјѕһԁԛԝӏьгпикАВЕКМНОРСТУХІЈЅԌοανυρικτχγΑΒΕΖΗΙΚΜΝΟΡΤΥΧօսոհցլզք")
_LATIN = frozenset("ßæøœðþłđħŋÆØŒÐÞŁĐĦŊ")  # Latin letters without an ASCII letter inside, not like one either
_MARKS = frozenset("€£¥§°–—“”‘’„‚«»…·¿¡×")  # punctuation of ordinary texts that is no twin of ASCII
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
)  # counted as letters, marks or symbols, and drawn as nothing
_VARIATIONS = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0000, 0xE0FFF))


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """The text for an approver and its SHA-256 in hexadecimal digits."""

    text: str
    digest: str


def render(claim: ActionClaim, reasons: Sequence[Reason] = (), also: str = "") -> Display:
    """Show an action, one line for each part. The same action and reasons always give the same text.

    ``also`` is what else the same signature would release.

    Long values are shown by both ends, their length in characters and the digest of the whole, and say so.
    """
    lines = [f"tool       {clear(claim.tool)}", f"run        {clear(claim.run)}, call {claim.seq}"]
    lines.append(f"acting     {clear(' for '.join(claim.principals))}")
    lines += [f"asked for  {clear(reason.message)} ({clear(reason.code)})" for reason in reasons]
    if also:
        lines.append(f"also       {clear(also)}")
    lines.append(f"policies   {clear(claim.policy) or 'none'}")
    lines.append(f"declared   {clear(claim.tool_digest) or 'none'}")
    lines.append("arguments")
    arguments = claim.arguments if isinstance(claim.arguments, dict) else {"": claim.arguments}
    lines += [f"  {_name(name)} = {_value(value)}" for name, value in sorted(arguments.items())]
    text = "\n".join(lines)
    return Display(text=text, digest=hashlib.sha256(text.encode()).hexdigest())


def clear(text: str) -> str:
    """Text that a terminal cannot be fooled by, in printable characters without line breaks.

    By its code point (``<U+0430>``) stands: what is not seen (control characters, marks of direction, fillers, variation
    selectors), what another writing of the same text would have otherwise (NFD, full width, ligatures), letters beside ASCII
    that are not Latin, words that consist of twins of ASCII letters, and digits and signs that are not ASCII.
    """
    if text.isascii() and text.isprintable() and "<U+" not in text:
        return text
    return " ".join(_token(token) for token in text.split(" "))


def _name(name: str) -> str:
    """A name is bare only if it cannot be taken for more than a name."""
    return name if name.isascii() and name.isidentifier() else _short(_quoted(name))


def _value(value: Any) -> str:
    """JSON, so that quotes inside of a text cannot end it."""
    return _short(
        _quoted(value) if isinstance(value, str) else clear(canonical(value, strict=False).decode())
    )


def _quoted(text: str) -> str:
    return '"' + clear(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _short(text: str) -> str:
    if len(text) <= SHOWN_MAX:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (
        f"{text[:ENDS]} <{len(text) - 2 * ENDS} of {len(text)} characters are not shown; SHA-256 of the whole: "
        f"{digest}> {text[-ENDS:]}"
    )


def _token(token: str) -> str:
    letters = [c for c in token if c.isalpha()]
    has_ascii = any(c.isascii() and c.isalnum() for c in token)
    is_all_twins = bool(letters) and all(c in _TWINS for c in letters)
    is_composed = unicodedata.normalize("NFC", token) == token
    shown = [
        _point(c)
        if _is_hidden(c)
        or _is_twin(c, beside_ascii=has_ascii, is_all_twins=is_all_twins, is_composed=is_composed)
        else c
        for c in token
    ]
    # A text that spells a code point itself must not look like the character.
    return "".join(
        _point("<") if c == "<" and token.startswith("<U+", i) else shown[i] for i, c in enumerate(token)
    )


def _is_hidden(character: str) -> bool:
    point = ord(character)
    return (
        not character.isprintable()
        or character in _UNSEEN
        or any(first <= point <= last for first, last in _VARIATIONS)
    )


def _is_twin(character: str, *, beside_ascii: bool, is_all_twins: bool, is_composed: bool) -> bool:
    if character.isascii() or character in _MARKS:
        return False
    kind = unicodedata.category(character)
    if unicodedata.normalize("NFKC", character) != character or kind[0] in "NPSZ":
        return True
    if kind[0] == "M":
        return beside_ascii or not is_composed
    if _is_plain_latin(character):
        return False
    return beside_ascii or is_all_twins or "LATIN" in unicodedata.name(character, "LATIN")


def _is_plain_latin(character: str) -> bool:
    return character in _LATIN or unicodedata.normalize("NFD", character)[0].isascii()


def _point(character: str) -> str:
    return f"<U+{ord(character):04X}>"
