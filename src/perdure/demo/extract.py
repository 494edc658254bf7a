"""Turns a mail into a typed invoice record by rules: no model, no network, the same answer every time.

The rules look for labels in ten languages, prefer structured attachments to prose, and compare what the parts of a mail
say. Whatever is missing, ambiguous, damaged or contradictory becomes a doubt, and a record with doubts is for a person
to decide. The rules never choose between two readings on their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from perdure.demo import words
from perdure.demo.amounts import Amount, amounts_in, currency_in, date_in, decimals_of, show
from perdure.demo.attachments import AttachmentError, Facts, facts_of
from perdure.demo.mail import Mail, Part

STRUCTURED_FORMS = ("xml", "json", "csv")
CONFIDENCE = {"xml": 95, "json": 90, "csv": 85, "strong": 80, "weak": 65, "none": 30}
CONFIDENCE_PER_DOUBT = 25
CONFIDENCE_PER_NOTE = 5


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """What the desk knows of one mail.

    Attributes:
        kind: ``other`` is a mail that is no invoice.
        date: ISO, empty if unknown.
        total_minor: in the currency's minor unit: cents, or whole yen. Negative for a credit note.
        confidence: a score of the rules from 0 to 100, no probability.
        doubts: why a person must decide; empty if nobody needs to.
        notes: what the rules made good or assumed.
    """

    source: str
    kind: Literal["invoice", "credit-note", "other"] = "invoice"
    supplier: str = ""
    number: str = ""
    date: str = ""
    currency: str = ""
    total_minor: int | None = None
    vat_minor: int | None = None
    language: str = ""
    confidence: int = 0
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Reading(msgspec.Struct):
    """What was gathered so far about one mail."""

    facts: list[Facts]
    doubts: list[str]
    notes: list[str]
    strength: str = "none"


def extract(mail: Mail) -> Invoice:
    """The invoice in a mail; ``kind`` is ``other`` if nothing in it looks like one."""
    prose = [part for part in mail.parts if part.form in ("text", "html")]
    everything = "\n".join([mail.subject, *(part.text for part in prose)])
    language = words.language_of(everything)
    currency = _main_currency(prose, language)
    reading = _Reading([], list(mail.damage), list(mail.repairs))
    for part in mail.parts:
        if part.form in STRUCTURED_FORMS:
            _take_attachment(part, reading, language, currency)
    for part in prose:
        _take_prose(part, reading, language, currency)
    if _is_other(mail, everything, reading):
        return Invoice(
            source=mail.source, kind="other", supplier=_sender(mail), language=language, confidence=90
        )
    return _merged(mail, everything, language, reading)


def _take_attachment(part: Part, reading: _Reading, language: str, currency: str) -> None:
    try:
        reading.facts.append(facts_of(part, language=language, currency=currency))
    except AttachmentError as error:
        reading.doubts.append(str(error))
        return
    if CONFIDENCE[part.form] > CONFIDENCE[reading.strength]:
        reading.strength = part.form


def _take_prose(part: Part, reading: _Reading, language: str, currency: str) -> None:
    lines = [line for line in part.text.splitlines() if line.strip()]
    strength, totals = _totals(lines, currency, language)
    if any(total.is_ambiguous for total in totals):
        reading.doubts.append(f"the total `{totals[0].text}` may have decimals or thousands")
    if len({total.minor for total in totals}) > 1:
        shown = " and ".join(show(total.minor, currency) for total in totals[:2])
        reading.doubts.append(f"the text names two totals, {shown}")
    vat = _vat(lines, currency, language)
    net = _net(lines, currency, language)
    if totals and vat is not None and net is not None and net + vat != totals[0].minor:
        sums = f"{show(net, currency)} + {show(vat, currency)} is not {show(totals[0].minor, currency)}"
        reading.doubts.append(f"the sum is wrong: {sums}")
    number = words.LABELLED_NUMBER.search(part.text)
    reading.facts.append(
        Facts(
            origin=f"attachment `{part.name}`" if part.is_attached else "the text",
            number=number["number"].rstrip(".") if number else "",
            date=_labelled_date(lines, is_month_first=language == "en" and currency == "USD"),
            currency=currency if totals else "",
            total_minor=totals[0].minor if totals else None,
            vat_minor=vat,
            is_credit=bool(words.CREDIT_WORD.search(part.text)),
        )
    )
    if CONFIDENCE[strength] > CONFIDENCE[reading.strength]:
        reading.strength = strength


# -- prose
def _main_currency(parts: list[Part], language: str) -> str:
    """The currency beside a total, or else the first that is named."""
    lines = [line for part in parts for line in part.text.splitlines()]
    beside = [line for line in lines if _label(line, words.TOTAL) or _label(line, words.TOTAL_WEAK)]
    return next((found for line in [*beside, *lines] if (found := currency_in(line, language))), "")


def _label(line: str, labels: tuple[str, ...]) -> str:
    lowered = re.sub(r"\s+", " ", line.casefold())
    for label in labels:
        if label in lowered and (
            not label[0].isascii() or re.search(rf"(?<!\w){re.escape(label)}(?!\w)", lowered)
        ):
            return label
    return ""


def _totals(lines: list[str], currency: str, language: str) -> tuple[str, list[Amount]]:
    """How strong the label is, and the amounts that lines with such a label name."""
    for strength, labels in (("strong", words.TOTAL), ("weak", words.TOTAL_WEAK)):
        found = []
        for index, line in enumerate(lines):
            label = _label(line, labels)
            if not label or _is_partial(line, label):
                continue
            amount = _amount_after(line, label, currency, language)
            if amount is None and index + 1 < len(lines) and len(lines[index + 1].strip()) < 24:
                amount = next(iter(amounts_in(lines[index + 1], currency, language)), None)
            if amount is not None:
                found.append(amount)
        if found:
            return strength, found
    return "none", []


def _is_partial(line: str, label: str) -> bool:
    """A line of the net, the tax or a due date is no total."""
    partial = _label(line, words.NET) or (label in words.TOTAL_WEAK and _label(line, words.VAT))
    return bool(partial) or (bool(_label(line, words.DUE)) and label in words.TOTAL_WEAK)


def _amount_after(line: str, label: str, currency: str, language: str) -> Amount | None:
    start = line.casefold().find(label)
    tail = line[start + len(label) :] if start >= 0 else line
    found = amounts_in(tail, currency, language)
    return found[0] if found else None


def _with_decimals(line: str, currency: str, language: str) -> list[int]:
    found = amounts_in(line, currency, language)
    is_money = decimals_of(currency) == 0
    return [item.minor for item in found if is_money or re.search(r"[.,]\d\d$", item.text)]


def _vat(lines: list[str], currency: str, language: str) -> int | None:
    taxes = []
    for line in lines:
        if not _label(line, words.VAT) or _label(line, words.TOTAL) or _label(line, words.NET):
            continue
        found = _with_decimals(line, currency, language)
        if found and not (_label(line, words.VAT_IDENTITY) and not re.search(r"[%％]", line)):
            taxes.append(found[-1])
    return sum(taxes) if taxes else None


def _net(lines: list[str], currency: str, language: str) -> int | None:
    for line in lines:
        if _label(line, words.NET) and (found := _with_decimals(line, currency, language)):
            return found[-1]
    return None


def _labelled_date(lines: list[str], *, is_month_first: bool) -> str:
    for label in words.DATE:
        for line in lines:
            if _label(line, (label,)) and not _label(line, words.DUE):
                found = date_in(line, is_month_first=is_month_first)
                if found:
                    return found
    return ""


# -- putting together
def _is_other(mail: Mail, everything: str, reading: _Reading) -> bool:
    """No number, no structured invoice, and no word of an invoice together with a total."""
    if mail.damage or reading.doubts:
        return False
    if any(item.number for item in reading.facts):
        return False
    has_total = any(item.total_minor is not None for item in reading.facts)
    return not words.INVOICE_WORD.search(everything) or (
        not has_total and not words.NAMED_NUMBER.search(everything)
    )


def _merged(mail: Mail, everything: str, language: str, reading: _Reading) -> Invoice:
    facts, doubts, notes = reading.facts, reading.doubts, reading.notes
    number = next((item.number for item in facts if item.number), "")
    if not number and (match := words.NAMED_NUMBER.search(everything)):
        number = match["number"].rstrip(".")
    day = next((item.date for item in facts if item.date), "")
    if not day and mail.date:
        day = mail.date
        notes.append("the date is that of the mail")
    currency = next((item.currency for item in facts if item.currency), "")
    total = next((item.total_minor for item in facts if item.total_minor is not None), None)
    vat = next((item.vat_minor for item in facts if item.vat_minor is not None), None)
    doubts.extend(_contradictions(facts, currency))
    doubts.extend(_missing(mail, number, total, currency))
    is_credit = any(item.is_credit for item in facts)
    confidence = (
        CONFIDENCE[reading.strength] - CONFIDENCE_PER_DOUBT * len(doubts) - CONFIDENCE_PER_NOTE * len(notes)
    )
    return Invoice(
        source=mail.source,
        kind="credit-note" if is_credit else "invoice",
        supplier=next((item.supplier for item in facts if item.supplier), "") or _sender(mail),
        number=number,
        date=day,
        currency=currency,
        total_minor=_signed(total, is_credit=is_credit),
        vat_minor=_signed(vat, is_credit=is_credit),
        language=language,
        confidence=max(5, confidence),
        doubts=tuple(dict.fromkeys(doubts)),
        notes=tuple(notes),
    )


def _contradictions(facts: list[Facts], currency: str) -> Iterator[str]:
    totals = [(item.origin, item.total_minor) for item in facts if item.total_minor is not None]
    if len({abs(total) for _, total in totals}) > 1:
        said = ", ".join(f"{origin} says {show(total, currency)}" for origin, total in dict.fromkeys(totals))
        yield f"the total is contradictory: {said}"
    for field in ("number", "currency"):
        said_values = [(item.origin, getattr(item, field)) for item in facts if getattr(item, field)]
        if len({value for _, value in said_values}) > 1:
            said = ", ".join(f"{origin} says {value}" for origin, value in dict.fromkeys(said_values))
            yield f"the {field} is contradictory: {said}"


def _missing(mail: Mail, number: str, total: int | None, currency: str) -> Iterator[str]:
    if not number:
        yield "no invoice number was found"
    if total is None:
        unread = f"; {', '.join(f'`{name}`' for name in mail.unread)} was not read" if mail.unread else ""
        yield f"no total was found{unread}"
    elif not currency:
        yield "the total has no currency"


def _signed(minor: int | None, *, is_credit: bool) -> int | None:
    return minor if minor is None or not is_credit else -abs(minor)


def _sender(mail: Mail) -> str:
    return mail.sender or mail.address.rpartition("@")[2]
