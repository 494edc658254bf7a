"""Checks that hold under ``python -O`` too and need no test framework."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def check(holds: object, promise: str) -> None:
    """Raise ``AssertionError`` with the promise unless ``holds``."""
    if not holds:
        raise AssertionError(f"broken promise: {promise}")


def same(found: Any, expected: Any, promise: str) -> None:
    """Raise ``AssertionError`` unless ``found`` equals ``expected``."""
    if found != expected:
        raise AssertionError(f"broken promise: {promise}\nexpected {expected!r}\nfound    {found!r}")


@contextmanager
def refused(kind: type[Exception] | tuple[type[Exception], ...], promise: str) -> Iterator[None]:
    """The block must raise ``kind``."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"broken promise: {promise}\nnothing was raised")
