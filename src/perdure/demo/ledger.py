"""The ledger: a CSV file for programs and a Markdown file for people, both replaced atomically."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from perdure.demo.amounts import show
from perdure.demo.review import Settled

COLUMNS = ("date", "supplier", "number", "kind", "currency", "total", "vat", "source", "decided_by")
FORMULA_STARTS = ("=", "+", "@", "-", "\t")  # a spreadsheet would run such text, and it comes from strangers


def booked_of(settled: Iterable[Settled]) -> list[Settled]:
    """What the ledger holds, sorted by date, supplier, number and file."""
    booked = [item for item in settled if item.verdict == "booked"]
    return sorted(
        booked,
        key=lambda item: (item.invoice.date, item.invoice.supplier, item.invoice.number, item.invoice.source),
    )


def totals_of(settled: Iterable[Settled]) -> dict[str, str]:
    """The sum of what is booked, by currency."""
    sums: dict[str, int] = {}
    for item in booked_of(settled):
        sums[item.invoice.currency] = sums.get(item.invoice.currency, 0) + (item.invoice.total_minor or 0)
    return {currency: show(sums[currency], currency) for currency in sorted(sums)}


def rows_of(settled: Iterable[Settled]) -> list[list[str]]:
    """The rows of the ledger as text, without the header."""
    return [
        [
            item.invoice.date,
            _text(item.invoice.supplier),
            _text(item.invoice.number),
            item.invoice.kind,
            item.invoice.currency,
            show(item.invoice.total_minor, item.invoice.currency),
            show(item.invoice.vat_minor, item.invoice.currency),
            _text(item.invoice.source),
            item.by,
        ]
        for item in booked_of(settled)
    ]


def as_csv(settled: list[Settled]) -> str:
    """The ledger for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows_of(settled))
    return out.getvalue()


def as_markdown(settled: list[Settled]) -> str:
    """The ledger for people: what was booked, the totals, and what was not booked and why."""
    lines = ["# Ledger", "", "Extraction: rules, no model.", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(row) for row in rows_of(settled)]
    lines += ["", "## Totals", "", _row(("currency", "total")), _row(("---", "---"))]
    lines += [_row(item) for item in totals_of(settled).items()]
    for verdict, title in (("rejected", "Rejected"), ("held", "Held"), ("other", "No invoices")):
        lines += ["", f"## {title}", ""]
        lines += [
            f"- {_text(item.invoice.source)}: {_text(item.reason)} ({item.by})"
            for item in settled
            if item.verdict == verdict
        ]
    return "\n".join(lines) + "\n"


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is durable only now
    finally:
        os.close(folder)


def _text(value: str) -> str:
    clean = "".join(character if character.isprintable() else " " for character in value)
    return f"'{clean}" if clean.startswith(FORMULA_STARTS) else clean


def _row(values: Iterable[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
