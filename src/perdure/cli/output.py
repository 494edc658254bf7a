"""What commands print: JSON lines for programs, tables for people, errors with their code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core.errors import (
    BlockedError,
    PerdureError,
    RefusedError,
    UnavailableError,
    UsageError,
)

FAMILIES = ((UsageError, 2), (RefusedError, 3), (UnavailableError, 4), (BlockedError, 5))


def exit_code(error: PerdureError) -> int:
    """The exit code for an error: by family, 1 for a run that failed."""
    return next((code for family, code in FAMILIES if isinstance(error, family)), 1)


def dumps(value: Any) -> str:
    """``value`` as one line of JSON."""
    return msgspec.json.encode(value, enc_hook=str).decode()


class Out:
    """The standard streams of one command.

    Args:
        json: print for a program: one JSON object per line.
    """

    def __init__(self, json: bool) -> None:
        self.json = json

    def emit(self, value: Any) -> None:
        """One line of JSON on stdout."""
        sys.stdout.write(dumps(value) + "\n")
        sys.stdout.flush()

    def text(self, line: str = "") -> None:
        """One line for people on stdout."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def note(self, line: str) -> None:
        """One line for people on stderr: beside the output, never part of it."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def error(self, error: PerdureError) -> None:
        """``error[code]: message`` on stderr; with ``--json`` also an object on stdout."""
        self.note(f"error[{error.code}]: {error.message}")
        for name in ("expected", "found"):
            if error.facts.get(name):
                self.note(f"  {name}: {error.facts[name]}")
        if self.json:
            facts = {name: value for name, value in error.facts.items() if value is not None}
            self.emit({"error": {"code": error.code, "message": error.message, "facts": facts}})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
        """A table: by rich on a terminal, plain columns otherwise."""
        if not rows and empty:
            self.note(empty)
            return
        if sys.stdout.isatty():
            _rich_table(columns, rows)
            return
        cells = [[" ".join(cell.split()) for cell in row] for row in rows]
        widths = [max(len(row[index]) for row in [list(columns), *cells]) for index in range(len(columns))]
        for row in [[name.upper() for name in columns], *cells]:
            self.text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and values, one pair a line."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            self.text(f"{name.ljust(width)}  {value}")


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("run", "id", "seq", "status"))
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "blocked": "bold red",
    "running": "cyan",
    "waiting": "blue",
}
