"""Chance: identifiers, seeds and jitter."""

from typing import Protocol


class Entropy(Protocol):
    """A source of uniformly distributed bits."""

    def bits(self, count: int) -> int:
        """An integer of ``count`` random bits."""
        ...
