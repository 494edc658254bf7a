"""Secrets are taken out of whatever is stored: known values in every usual encoding, and the shapes of common credentials.

Answers go to the program as they came; the journal has them redacted, so a replayed answer has a placeholder where the first
one had a secret.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

PLACEHOLDER = b"[secret]"
BASE64_LENGTH_MIN = 8  # of the part that does not depend on what surrounds it; shorter ones occur by accident

# Each shape has a mark that is cheap to look for; most texts have none of them. Where the mark is short, the pattern begins
# with a literal and looks behind after it: `re` then skips at the speed of C.
SHAPES: tuple[tuple[str, bytes, bytes], ...] = (
    ("anthropic", rb"sk-ant-", rb"sk-ant-[A-Za-z0-9_-]{20,}"),
    ("openai", rb"sk-", rb"sk-(?<![A-Za-z0-9_-]sk-)(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,}"),
    ("github", rb"gh", rb"gh(?<![A-Za-z0-9]gh)[pousr]_[A-Za-z0-9]{36,}"),
    ("github", rb"github_pat_", rb"github_pat_[A-Za-z0-9_]{36,}"),
    ("gitlab", rb"glpat-", rb"glpat-[A-Za-z0-9_-]{20,}"),
    ("slack", rb"xox", rb"xox[abposr]-[A-Za-z0-9-]{20,}"),
    ("aws", rb"A", rb"A(?<![A-Za-z0-9+/=]A)(?:KIA|SIA)[A-Z2-7]{16}(?![A-Za-z0-9+/=])"),
    ("google", rb"AIza", rb"AIza(?<![A-Za-z0-9_-]AIza)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("stripe", rb"_live_", rb"(?<![A-Za-z0-9])[sr]k_live_[A-Za-z0-9]{20,}"),
    ("npm", rb"npm_", rb"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("jwt", rb"eyJ", rb"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"),
    (
        "private-key",
        rb"PRIVATE KEY",
        rb"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,20000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    ),
)
_shapes = [(name, mark, re.compile(pattern)) for name, mark, pattern in SHAPES]


class Redactor:
    """Finds secrets in bytes.

    Args:
        known: gives the values of every secret resolved so far.
    """

    def __init__(self, known: Callable[[], tuple[str, ...]]) -> None:
        self._known = known
        self._values: tuple[str, ...] = ()
        self._pattern: re.Pattern[bytes] | None = None

    def clean(self, data: bytes) -> tuple[bytes, list[str]]:
        """The data without secrets, and which kinds were found (never which values).

        Placeholders have no character that JSON or an event stream would have to escape, so what was well formed stays so.
        """
        found: list[str] = []
        values = self._known()
        if values != self._values:
            self._values, self._pattern = values, _pattern_of(values)
        if self._pattern is not None:
            data, count = self._pattern.subn(PLACEHOLDER, data)
            if count:
                found.append("secret")
        for name, mark, pattern in _shapes:
            if mark in data:
                data, count = pattern.subn(f"[credential:{name}]".encode(), data)
                if count:
                    found.append(name)
        return data, found


def _pattern_of(values: tuple[str, ...]) -> re.Pattern[bytes] | None:
    forms = {form for value in values for form in forms_of(value)}
    if not forms:
        return None
    return re.compile(
        b"|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
    )


def forms_of(value: str) -> Iterator[bytes]:
    """A value plain, within JSON (once and twice), URL-encoded, as hexadecimal digits, and in base64 at every place."""
    data = value.encode()
    yield data
    for ascii_only in (True, False):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield once.encode()
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1].encode()
    for safe in ("", "/", "-_.~"):
        yield quote(value, safe=safe).encode()
    yield data.hex().encode()
    yield data.hex().upper().encode()
    for shift in range(3):
        # Only the characters that depend on the value alone: the first and last may share bits with what surrounds it.
        coded = base64.b64encode(b"\0" * shift + data)
        start = (shift * 8 + 5) // 6
        end = (shift + len(data)) * 8 // 6
        core = coded[start:end]
        if len(core) >= BASE64_LENGTH_MIN:
            yield core
            yield core.translate(bytes.maketrans(b"+/", b"-_"))
