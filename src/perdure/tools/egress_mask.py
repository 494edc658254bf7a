"""Keeps a credential that the proxy put in out of what comes back."""

from __future__ import annotations

import re

from perdure.gateway.redact import forms_of

# What lets whoever asks choose how an answer is written: packed, the secret in it is not found; in parts, nor is it.
UNMASKABLE = frozenset({b"accept-encoding", b"range", b"if-range", b"a-im"})


class Mask:
    """Takes a secret out of a stream, in the forms that :func:`forms_of` knows; what replaces it is as long, so that lengths stay true.

    Held back is only an end that may be the beginning of the secret. A server that packs its answer unasked, or ends a chunk within
    the secret, is not seen through.
    """

    def __init__(self, secret: str) -> None:
        self._forms = tuple({form for form in forms_of(secret) if form}) if secret else ()
        longest_first = sorted(self._forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first))) if self._forms else None
        self._longest = max(map(len, self._forms), default=0)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may go on."""
        if self._pattern is None:
            return data
        whole = self._pattern.sub(_stars, self._held + data)
        for size in range(min(self._longest - 1, len(whole)), 0, -1):
            end = whole[-size:]
            if any(form.startswith(end) for form in self._forms):
                self._held = end
                return whole[:-size]
        self._held = b""
        return whole

    def end(self) -> bytes:
        """The rest."""
        rest, self._held = self._held, b""
        return rest


def _stars(found: re.Match[bytes]) -> bytes:
    return b"*" * len(found[0])
