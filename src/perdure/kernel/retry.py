"""How long to wait before the next attempt: exponential backoff with jitter, as a pure function."""

from __future__ import annotations

JITTER_BITS = 16


def delay_ms(attempt: int, *, first_ms: int, max_ms: int, chance: int) -> int:
    """Milliseconds between attempt ``attempt`` (from 1) and the next.

    Doubles from ``first_ms`` to ``max_ms``; ``chance`` (16 random bits) takes up to half of it away, so that runs that
    failed together do not come back together.
    """
    full = min(max_ms, first_ms * (1 << min(attempt - 1, 30)))
    return full - (full // 2 * chance >> JITTER_BITS)
