"""Reads the facts of an invoice from structured attachments: UBL, CII and FatturaPA e-invoices, JSON and CSV.

Attachments come from strangers: XML with a document type (the way to entity bombs and to files) is refused, and whatever
cannot be read is an :class:`AttachmentError` with the reason.
"""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from decimal import Decimal
from typing import Any
from xml.parsers import expat

import msgspec

from perdure.demo import words
from perdure.demo.amounts import amounts_in, currency_in, date_in, parse_amount
from perdure.demo.mail import Part, clean

ROWS_MAX = 5_000  # an invoice of more lines is not one
DEPTH_MAX = 64  # e-invoices nest about ten deep
JSON_NAMES = {
    "supplier": ("supplier", "supplier_name", "seller", "vendor", "issuer", "from"),
    "number": ("invoice_number", "invoicenumber", "invoice_no", "number", "id"),
    "date": ("invoice_date", "issue_date", "issued_on", "date"),
    "currency": ("currency", "currency_code"),
    "total": ("amount_due", "grand_total", "total_amount", "total", "amount"),
    "vat": ("vat", "tax", "tax_amount", "gst", "total_tax"),
}


class AttachmentError(Exception):
    """An attachment could not be read; the text says why."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one part of a mail says. Empty or ``None`` is unsaid."""

    origin: str
    supplier: str = ""
    number: str = ""
    date: str = ""
    currency: str = ""
    total_minor: int | None = None
    vat_minor: int | None = None
    is_credit: bool = False


def facts_of(part: Part, *, language: str, currency: str) -> Facts:
    """The facts of an attachment; ``language`` and ``currency`` are what the rest of the mail suggests.

    Raises:
        AttachmentError: it cannot be read, or is no invoice.
    """
    if part.form == "xml":
        return _from_xml(part)
    if part.form == "json":
        return _from_json(part)
    return _from_csv(part, language, currency)


# -- XML
def _from_xml(part: Part) -> Facts:
    root = _tree(part)
    kind = _local(root.tag)
    if kind in ("Invoice", "CreditNote"):
        return _from_ubl(part, root, is_credit=kind == "CreditNote")
    if kind == "CrossIndustryInvoice":
        return _from_cii(part, root)
    if kind == "FatturaElettronica":
        return _from_fattura(part, root)
    raise AttachmentError(f"`{part.name}` is XML of an unknown kind, `{kind}`")


def _tree(part: Part) -> ElementTree.Element:
    depth = 0

    def refuse(*_: Any) -> None:
        raise AttachmentError(f"`{part.name}` declares a document type, which is refused (entity bombs)")

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH_MAX:
            raise AttachmentError(f"`{part.name}` is nested deeper than {DEPTH_MAX}")

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", part.text.lstrip("\ufeff"))
    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    scout.StartElementHandler = enter
    scout.EndElementHandler = leave
    try:
        scout.Parse(text, True)
        return ElementTree.fromstring(text)  # noqa: S314 - the scout has refused every document type
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise AttachmentError(f"`{part.name}` is not well-formed XML ({error})") from error


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _at(root: ElementTree.Element, path: str) -> str:
    """The text at a path of local names; the first step may be at any depth."""
    first, *rest = path.split("/")
    for node in root.iter():
        if _local(node.tag) != first:
            continue
        found: ElementTree.Element | None = node
        for name in rest:
            found = (
                next((child for child in found if _local(child.tag) == name), None)
                if found is not None
                else None
            )
        if found is not None and (found.text or "").strip():
            return (found.text or "").strip()
    return ""


def _child(root: ElementTree.Element, name: str) -> str:
    return next(((node.text or "").strip() for node in root if _local(node.tag) == name), "")


def _plain(text: str, currency: str) -> int | None:
    """A number as XML and JSON write it: a point before the decimals, no grouping."""
    if not re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        return None
    if "." in text:
        text = text.rstrip("0").rstrip(".")
        whole, _, tail = text.partition(".")
        text = f"{whole}.{tail.ljust(2, '0')}" if tail else whole
    amount = parse_amount(text, currency)
    return None if amount is None or amount.is_ambiguous else amount.minor


def _from_ubl(part: Part, root: ElementTree.Element, *, is_credit: bool) -> Facts:
    currency = _child(root, "DocumentCurrencyCode")
    total = _plain(_at(root, "LegalMonetaryTotal/PayableAmount"), currency)
    vat = _plain(_at(root, "TaxTotal/TaxAmount"), currency)
    sign = -1 if is_credit else 1
    return Facts(
        origin=part.name,
        supplier=_at(root, "AccountingSupplierParty/Party/PartyName/Name")
        or _at(root, "AccountingSupplierParty/Party/PartyLegalEntity/RegistrationName"),
        number=_child(root, "ID"),
        date=date_in(_child(root, "IssueDate")),
        currency=currency,
        total_minor=None if total is None else sign * total,
        vat_minor=None if vat is None else sign * vat,
        is_credit=is_credit,
    )


def _from_cii(part: Part, root: ElementTree.Element) -> Facts:
    currency = _at(root, "InvoiceCurrencyCode")
    day = _at(root, "IssueDateTime/DateTimeString")
    return Facts(
        origin=part.name,
        supplier=_at(root, "SellerTradeParty/Name"),
        number=_at(root, "ExchangedDocument/ID"),
        date=date_in(f"{day[:4]}-{day[4:6]}-{day[6:8]}"),
        currency=currency,
        total_minor=_plain(_at(root, "GrandTotalAmount"), currency),
        vat_minor=_plain(_at(root, "TaxTotalAmount"), currency),
    )


def _from_fattura(part: Part, root: ElementTree.Element) -> Facts:
    currency = _at(root, "DatiGeneraliDocumento/Divisa")
    taxes = [_plain(node.text or "", currency) for node in root.iter() if _local(node.tag) == "Imposta"]
    known = [tax for tax in taxes if tax is not None]
    return Facts(
        origin=part.name,
        supplier=_at(root, "CedentePrestatore/DatiAnagrafici/Anagrafica/Denominazione"),
        number=_at(root, "DatiGeneraliDocumento/Numero"),
        date=date_in(_at(root, "DatiGeneraliDocumento/Data")),
        currency=currency,
        total_minor=_plain(_at(root, "DatiGeneraliDocumento/ImportoTotaleDocumento"), currency),
        vat_minor=sum(known) if known else None,
    )


# -- JSON
def _from_json(part: Part) -> Facts:
    try:
        data = json.loads(part.text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise AttachmentError(f"`{part.name}` is not JSON ({error})") from error
    if isinstance(data, dict) and isinstance(data.get("invoice"), dict):
        data = data["invoice"]
    if not isinstance(data, dict):
        raise AttachmentError(f"`{part.name}` holds no object")
    values = {field: _named(data, names) for field, names in JSON_NAMES.items()}
    currency = values["currency"].upper()
    return Facts(
        origin=part.name,
        supplier=values["supplier"],
        number=values["number"],
        date=date_in(values["date"]),
        currency=currency,
        total_minor=_plain(values["total"], currency),
        vat_minor=_plain(values["vat"], currency),
    )


def _named(data: dict[str, Any], names: tuple[str, ...]) -> str:
    lowered = {str(key).casefold(): value for key, value in data.items()}
    for name in names:
        value = lowered.get(name)
        if isinstance(value, dict):
            value = value.get("name")
        if isinstance(value, str | int | Decimal) and not isinstance(value, bool):
            return clean(str(value)).strip()
    return ""


# -- CSV
def _from_csv(part: Part, language: str, currency: str) -> Facts:
    rows = _rows(part)
    found: dict[str, str] = {}
    total: int | None = None
    vat: int | None = None
    for row in rows:
        label, line = row[0].casefold(), "\t".join(row)
        currency = currency_in(line, language) or currency
        amounts = amounts_in(row[-1], currency, language)
        if label.startswith((*words.TOTAL, *words.TOTAL_WEAK)) and not label.startswith(words.NET):
            total = amounts[-1].minor if amounts else total
        elif label.startswith(words.VAT):
            vat = amounts[-1].minor if amounts else vat
        if match := words.LABELLED_NUMBER.search(line):
            found.setdefault("number", match["number"])
        if label.startswith(words.DATE):
            found.setdefault("date", date_in(line))
    if total is None:
        total = _sum_of_lines(rows, currency, language)
    if total is None:
        raise AttachmentError(f"`{part.name}` has no total and no column of amounts")
    return Facts(
        origin=part.name,
        number=found.get("number", ""),
        date=found.get("date", ""),
        currency=currency,
        total_minor=total,
        vat_minor=vat,
    )


def _rows(part: Part) -> list[list[str]]:
    first = part.text.split("\n", 1)[0]
    delimiter = max(";,\t|", key=first.count)
    try:
        read = csv.reader(io.StringIO(part.text), delimiter=delimiter)
        rows = [[cell.strip() for cell in row] for row, _ in zip(read, range(ROWS_MAX), strict=False)]
    except csv.Error as error:
        raise AttachmentError(f"`{part.name}` is not CSV ({error})") from error
    rows = [[cell for cell in row if cell] for row in rows]
    rows = [row for row in rows if row]
    if not rows:
        raise AttachmentError(f"`{part.name}` is empty")
    return rows


def _sum_of_lines(rows: list[list[str]], currency: str, language: str) -> int | None:
    """The sum of the last column, if the header calls it an amount and every line has one."""
    header = rows[0][-1].casefold()
    if not any(
        word in header for word in (*words.TOTAL, *words.TOTAL_WEAK, "amount", "montant", "betrag", "importe")
    ):
        return None
    total = 0
    for row in rows[1:]:
        amounts = amounts_in(row[-1], currency, language)
        if len(row) != len(rows[0]) or not amounts:
            return None
        total += amounts[-1].minor
    return total if len(rows) > 1 else None
