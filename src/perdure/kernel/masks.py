"""Masks: what a program makes anew on every start (times, random ids, process ids) is replaced in canonical JSON.

They work on the text of a whole document at once, not on its values: one pass over 30 KB costs a fraction of visiting every
string. No mask matches a line feed, so documents that are joined by line feeds stay apart. Each pattern begins with a character class or a literal: that is what lets `re` skip prose at the speed of C.

=============================  ==============================================  ========  =========
what                           example                                         requests  arguments
=============================  ==============================================  ========  =========
date and time                  2026-11-23T05:30:37Z, 2026-11-23 05:30          yes       with fraction
date                           2026-11-23, 11/23/2026, Nov 23, 2026            yes       no
time of day                    05:30:37, 5:30 PM                               yes       no
RFC 2822, ctime                Mon, 23 Nov 2026 05:30:37 +0000                 yes       no
compact                        20261123T053037Z, 20261123053037                yes       no
epoch                          10, 13, 16, 19 digits, or seconds with point    yes       not round
UUID                           with dashes, or 32 hexadecimal digits           yes       no
process id                     pid 1234, pid=1234                              yes       no
address, temporary name, port  at 0x7f3a12bc, /tmp/tmpab12cd_x, localhost:123  yes       no
=============================  ==============================================  ========  =========

Requests are the texts of prompts. The arguments of a tool are what a person or a model chose: ``book(day="2026-12-01")`` and
``book(day="2026-12-02")`` are two acts, as are ``delete(id=A)`` and ``delete(id=B)``, so only what nobody would choose is
masked there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TIME, ID, NUMBER = b"<time>", b"<id>", b"<number>"

_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]{0,6}\.?"
_YEAR = rb"(?:19|20)[0-9]{2}(?![0-9])"
_ZONE = rb"(?:[ ]?(?:Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}(?![0-9])))?"
_CLOCK = rb"[0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?(?:[ ]?[AaPp]\.?[Mm]\b\.?)?" + _ZONE
_NOT_INSIDE = rb"(?<![0-9][0-9])(?<![0-9]\.[0-9])"  # the first digit of its number, and not a decimal place
_EPOCH = rb"(?<=1)[5-9][0-9]{8}"  # 2017 to 2033: ten digits in that range are seldom anything else

_STAMP = re.compile(
    rb"[0-9]" + _NOT_INSIDE + rb"(?:"
    # 2026-11-23, with or without a time
    rb"[0-9]{3}(?P<d>[-/.])[01][0-9](?P=d)[0-3][0-9](?![0-9])(?:(?:[T_]|[ ](?:at[ ])?)" + _CLOCK + rb")?"
    # 20261123T053037Z
    rb"|(?<=[12])[09][0-9]{2}[01][0-9][0-3][0-9][T_-]?[0-2][0-9][0-5][0-9][0-5][0-9](?:\.[0-9]+)?Z?(?![0-9])"
    rb"|" + _EPOCH + rb"(?:\.[0-9]+|(?:[0-9]{3}){0,3})(?![0-9])"
    # 23.11.2026, 11/23/2026
    rb"|[0-9]?(?P<e>[/.])[0-3]?[0-9](?P=e)" + _YEAR +
    # 23 November 2026
    rb"|[0-9]?(?:st|nd|rd|th)?[ -]" + _MONTH + rb",?[ -]" + _YEAR +
    # 05:30:37, but neither line:column nor an address
    rb"|(?<![:][0-9])(?:(?<=[0-2])[0-9])?:[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?(?:[ ]?[AaPp]\.?[Mm]\b\.?)?"
    + _ZONE + rb"(?![:0-9])"
    rb")"
)  # fmt: skip
# November 23, 2026 and Nov 23 05:30:37 2026. The first letter has matched already, so the rest names no more than months.
_NAMED = re.compile(
    rb"[JFMASOND](?:an|eb|ar|pr|ay|un|ul|ug|ep|ct|ov|ec)[a-z]{0,7}\.?[ ]{1,2}[0-9]{1,2}(?:st|nd|rd|th)?"
    rb"(?:,?[ ]" + _YEAR + rb"|,?[ ]" + _CLOCK + rb"(?:[ ]" + _YEAR + rb")?)"
)
_WEEKDAY = re.compile(rb"[MTWFS](?:on|ue|ed|hu|ri|at|un)[a-z]{0,6},?[ ]<time>")
# A word of its own; the `n` of an escaped line feed before it is no letter of it.
_PROCESS = re.compile(
    rb"[Pp](?:id|ID)(?:(?<![A-Za-z_]...)|(?<=\\[nrt]...))[\\\"' :=#(]{1,5}[0-9]{1,10}(?![0-9])"
)
# Each with the literal that it begins with: most documents have none of them.
_PLACES = tuple(
    (literal, re.compile(re.escape(literal) + rest))
    for literal, rest in (
        (b"/tmp", rb"[a-z0-9_]{8}\b"),
        (b"at 0x", rb"[0-9a-fA-F]{6,16}\b"),
        (b"127.0.0.1:", rb"[0-9]{4,5}\b"),
        (b"localhost:", rb"[0-9]{4,5}\b"),
    )
)
_MACHINE = re.compile(
    rb"[0-9]" + _NOT_INSIDE + rb"(?:"
    rb"[0-9]{3}-[01][0-9]-[0-3][0-9][T_ ][0-2][0-9]:[0-5][0-9]:[0-5][0-9][.,][0-9]{1,9}" + _ZONE +
    # Whole seconds and milliseconds that end in 000 may be somebody's choice.
    rb"|" + _EPOCH + rb"(?:\.[0-9]+|[0-9]{3}(?<!000)|[0-9]{6}|[0-9]{9})(?![0-9])"
    rb")"
)  # fmt: skip

_AS_ZERO = bytes.maketrans(b"123456789abcdefABCDEF", b"0" * 21)
_UUID_SHAPE = re.compile(rb"00000000(?:-0000-0000-0000-000000000000|000000000000000000000000)0*")
_HEX_SHAPE = re.compile(rb"00000000+")
_DIGITS = re.compile(rb"[0-9]+")


def mask(document: bytes) -> bytes:
    """Canonical JSON without what differs between two starts of one program (the column "requests")."""
    text = _STAMP.sub(TIME, _NAMED.sub(TIME, _without_uuids(document)))
    if b" <time>" in text:
        text = _WEEKDAY.sub(TIME, text)
    if b"pid" in text or b"PID" in text:
        text = _PROCESS.sub(NUMBER, text)
    for literal, pattern in _PLACES:
        if literal in text:
            text = pattern.sub(NUMBER, text)
    return text


def mask_arguments(document: bytes) -> bytes:
    """Canonical JSON of a tool's arguments without what nobody would choose (the column "arguments")."""
    return _MACHINE.sub(TIME, document)


def shape(masked: bytes) -> bytes:
    """What is left of a masked text when numbers and hexadecimal runs do not count."""
    runs = (found.span() for found in _HEX_SHAPE.finditer(masked.translate(_AS_ZERO)))
    return _DIGITS.sub(b"0", _cut(masked, runs))


def _without_uuids(text: bytes) -> bytes:
    # With every hexadecimal digit as `0`, UUIDs all look alike, and a search for a literal is ten times as fast as one
    # for a class that a quarter of all letters are in.
    zeros = text.translate(_AS_ZERO)
    spans = [found.span() for found in _UUID_SHAPE.finditer(zeros)]
    if not spans:
        return text
    alone = [
        (begin, end) for begin, end in spans if end - begin in (32, 36) and zeros[begin - 1 : begin] != b"0"
    ]
    return _cut(text, alone)


def _cut(text: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    at = 0
    for begin, end in spans:
        parts += (text[at:begin], ID)
        at = end
    parts.append(text[at:])
    return b"".join(parts)
