"""Where spans and counts go. Nothing that must not be lost goes through here: that is the journal's."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]


class Telemetry(Protocol):
    """Receives what the runtime tells about itself; must not raise and must not block."""

    @property
    def is_on(self) -> bool:
        """Whether anyone listens; callers may skip the work of describing a span if not."""
        ...

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """A piece of work, from entering to leaving; an exception that passes is recorded on it."""
        ...

    def count(self, name: str, value: int, attributes: Attributes) -> None:
        """Add ``value`` to a counter."""
        ...


class NullTelemetry:
    """Listens to nothing."""

    is_on = False

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:  # noqa: ARG002
        """Nothing."""
        return nullcontext()

    def count(self, name: str, value: int, attributes: Attributes) -> None:
        """Nothing."""
