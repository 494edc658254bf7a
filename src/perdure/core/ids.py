"""Identifiers: sortable by time, short, safe in URLs and file names."""

from __future__ import annotations

from perdure.core.errors import UsageError
from perdure.core.limits import NAME_LENGTH_MAX

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
RESERVED = "perdure."  # how topics of the runtime's own begin


def run_id(now_ms: int, chance: int) -> str:
    """A run's id: 10 characters of time and 12 (60 bits) of chance, so ids sort by time of start."""
    return _base32(now_ms, 10) + _base32(chance, 12)


def child_id(parent: str, call: int) -> str:
    """The id of the run that ``parent`` starts in its call ``call``: the same on every attempt."""
    return f"{parent}.{call}"


def action_key(run: str, call: int) -> str:
    """The idempotency key of a durable call: the run and the call's number, never an attempt."""
    return f"{run}/{call}"


def checked_name(what: str, name: str) -> str:
    """``name`` if it can name a ``what``: 1 to 200 printable characters."""
    if not isinstance(name, str) or not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise UsageError(f"{what} must be 1 to {NAME_LENGTH_MAX} printable characters, found `{name!r:.80}`")
    return name


def checked_topic(name: str) -> str:
    """``name`` if messages can be about it. What begins with ``perdure.`` is the runtime's own: decisions and answers.

    Raises:
        UsageError: it is no name, or the runtime's own.
    """
    if checked_name("a topic", name).startswith(RESERVED):
        raise UsageError(
            f"a topic cannot begin with `{RESERVED}`, found `{name[:80]}`; decisions and answers have commands of their own"
        )
    return name


def _base32(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))
