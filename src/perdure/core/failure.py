"""The root of every failure that Perdure reports."""

from __future__ import annotations

from typing import Any, ClassVar


class PerdureError(Exception):
    """The root of all errors raised by Perdure; ``facts`` holds what the message says, for programs."""

    code: ClassVar[str] = "perdure-error"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.facts))


def _rebuild(kind: type[PerdureError], message: str, facts: dict[str, Any]) -> PerdureError:
    return kind(message, **facts)
