"""What happens to an invoice between extraction and ledger: comparing, asking a person, settling. Pure functions."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.demo.amounts import CURRENCIES, parse_amount, show
from perdure.demo.extract import Invoice

Verdict = Literal["booked", "rejected", "held", "other"]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person decides about a doubtful mail; the corrections are taken only with ``accept``.

    Attributes:
        total: the right total, such as ``1234.56``; empty keeps what was extracted.
    """

    decision: Literal["accept", "reject", "hold"]
    total: str = ""
    currency: str = ""
    number: str = ""
    note: str = ""


class Settled(msgspec.Struct, frozen=True):
    """An invoice with its verdict, the reason, and who decided: ``rules`` or ``reviewer``."""

    invoice: Invoice
    verdict: Verdict
    reason: str = ""
    by: Literal["rules", "reviewer"] = "rules"


def identity_of(invoice: Invoice) -> tuple[str, str] | None:
    """What makes two mails the same invoice; ``None`` if too little is known."""
    if not invoice.number or not invoice.supplier or invoice.kind == "other":
        return None
    return " ".join(invoice.supplier.casefold().split()), invoice.number.casefold()


def compare(invoices: list[Invoice]) -> tuple[list[Invoice], list[Settled]]:
    """Find invoices that came twice.

    Returns:
        Those that stay, where one that came before with another total has got a doubt; and exact duplicates, rejected.
    """
    first: dict[tuple[str, str], Invoice] = {}
    stay: list[Invoice] = []
    duplicates: list[Settled] = []
    for invoice in invoices:
        identity = identity_of(invoice)
        earlier = first.setdefault(identity, invoice) if identity else invoice
        if earlier is invoice:
            stay.append(invoice)
        elif (earlier.total_minor, earlier.currency) == (invoice.total_minor, invoice.currency):
            duplicates.append(Settled(invoice, "rejected", f"duplicate of `{earlier.source}`"))
        else:
            amount = f"{show(earlier.total_minor, earlier.currency) or 'no total'} {earlier.currency}".strip()
            doubt = f"this number came before, in `{earlier.source}`, with {amount}"
            stay.append(msgspec.structs.replace(invoice, doubts=(*invoice.doubts, doubt)))
    return stay, duplicates


def question_for(invoice: Invoice) -> dict[str, Any]:
    """The question that a person gets about a doubtful invoice."""
    return {
        "file": invoice.source,
        "supplier": invoice.supplier,
        "number": invoice.number,
        "date": invoice.date,
        "currency": invoice.currency,
        "total": show(invoice.total_minor, invoice.currency),
        "doubts": list(invoice.doubts),
        "answer": "decision: accept, reject or hold; with accept also total, currency or number to correct",
    }


def settle(invoice: Invoice, body: Any) -> Settled:
    """The verdict on a doubtful invoice; ``body`` is the answer as it came, ``None`` if nobody answered.

    An answer that is not understood, or leaves something missing, holds the invoice: it is never booked by guessing.
    """
    if body is None:
        return Settled(invoice, "held", "nobody answered in time")
    try:
        answer = msgspec.convert(body, Answer)
    except msgspec.ValidationError as error:
        return Settled(invoice, "held", f"the answer was not understood: {error}")
    match answer.decision:
        case "reject":
            return Settled(invoice, "rejected", answer.note or "rejected", "reviewer")
        case "hold":
            return Settled(invoice, "held", answer.note or "held", "reviewer")
        case "accept":
            return _accepted(invoice, answer)


def _accepted(invoice: Invoice, answer: Answer) -> Settled:
    currency = (answer.currency or invoice.currency).upper()
    number = answer.number or invoice.number
    total = invoice.total_minor
    if currency and currency not in CURRENCIES:
        return Settled(invoice, "held", f"the answer names an unknown currency, `{currency}`")
    if answer.total:
        amount = parse_amount(answer.total, currency, "en")
        if amount is None or amount.is_ambiguous:
            return Settled(invoice, "held", f"the answer's total, `{answer.total}`, was not understood")
        total = amount.minor
    known = {"a number": number, "a currency": currency, "a total": total}
    missing = [name for name, value in known.items() if value in ("", None)]
    if missing:
        return Settled(invoice, "held", f"accepted, but it lacks {' and '.join(missing)}", "reviewer")
    changed = msgspec.structs.replace(
        invoice, kind="invoice" if invoice.kind == "other" else invoice.kind, number=number, currency=currency,
        total_minor=total,
    )  # fmt: skip
    return Settled(changed, "booked", answer.note or "accepted", "reviewer")


def settle_all(
    certain: list[Invoice], asked: list[Invoice], answers: list[Any], settled: list[Settled]
) -> list[Settled]:
    """Every mail with its verdict, in the order of the files; one supplier's number is booked once."""
    everything = list(settled)
    for invoice in certain:
        verdict: Verdict = "other" if invoice.kind == "other" else "booked"
        everything.append(Settled(invoice, verdict, "no invoice" if verdict == "other" else ""))
    everything.extend(settle(invoice, answer) for invoice, answer in zip(asked, answers, strict=True))
    everything.sort(key=lambda item: (item.by == "reviewer", item.invoice.source))
    booked: set[tuple[str, str]] = set()
    result = []
    for item in everything:
        identity = identity_of(item.invoice)
        if item.verdict == "booked" and identity in booked:
            item = Settled(item.invoice, "rejected", "this supplier's number is booked already", item.by)
        elif item.verdict == "booked" and identity is not None:
            booked.add(identity)
        result.append(item)
    return sorted(result, key=lambda item: item.invoice.source)
