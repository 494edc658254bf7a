"""Secrets: values that only a dispatch may see."""

from __future__ import annotations

from typing import Protocol


class Secrets(Protocol):
    """Resolves references such as ``secret://openai`` at the moment of use."""

    def resolve(self, reference: str) -> str:
        """The value.

        Raises:
            SecretUnknownError: nothing has that name.
        """
        ...

    def known_values(self) -> tuple[str, ...]:
        """Every value resolved so far in this process, so that outputs can be searched for them."""
        ...
