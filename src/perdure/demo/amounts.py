"""Amounts, currencies and dates as people write them in many countries.

Money is an integer in the currency's minor unit (cents; whole yen). Nothing here guesses: what can be read in two ways
is reported as ambiguous.
"""

from __future__ import annotations

import re
from datetime import date

import msgspec

ZERO_DECIMALS = frozenset({"JPY", "KRW", "ISK", "CLP", "VND"})
CURRENCIES = frozenset(
    [
        "EUR",
        "USD",
        "GBP",
        "CHF",
        "PLN",
        "SEK",
        "NOK",
        "DKK",
        "CZK",
        "HUF",
        "JPY",
        "AUD",
        "CAD",
        "NZD",
        "INR",
        "BRL",
        "KRW",
        "ISK",
        "CLP",
        "VND",
        "CNY",
        "SGD",
        "MXN",
    ]
)
# Longer symbols first: `R$` holds `$`.
SYMBOLS = (
    ("R$", "BRL"),
    ("AU$", "AUD"),
    ("A$", "AUD"),
    ("CA$", "CAD"),
    ("C$", "CAD"),
    ("US$", "USD"),
    ("€", "EUR"),
    ("£", "GBP"),
    ("₹", "INR"),
    ("¥", "JPY"),
    ("\uffe5", "JPY"),
    ("円", "JPY"),
    ("zł", "PLN"),
    ("$", "USD"),
)
KRONA = {"sv": "SEK", "da": "DKK", "no": "NOK"}
WHOLE_DIGITS_MAX = 15  # a longer number is an account, not an amount; with decimals it still fits 64 bits
GROUP_MARK = {"en": ",", "ja": ",", "de": ".", "es": ".", "it": ".", "nl": ".", "pt": "."}
SPACES = " \u00a0\u202f\u2009"
# Atomic groups: a long run of digits is tried once, not once for each of its ends.
NUMBER = re.compile(
    rf"(?<![\w.,/-])(?P<sign>[-−–](?:[{SPACES}]?[€£$¥])?[{SPACES}]?)?"
    rf"(?P<digits>(?>\d{{1,3}}(?:[{SPACES}]\d{{3}})+(?:[.,]\d{{1,2}})?)|(?>\d[\d.,'’]*\d)|\d)(?![\w%/]*\d)"
)
MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january januar janvier enero gennaio januari stycznia januari janeiro jan",
            "february februar février fevrier febrero febbraio februari lutego fevereiro feb",
            "march märz maerz mars marzo maart marca março mar",
            "april avril abril aprile kwietnia apr",
            "may mai mayo maggio mei maja maj maio",
            "june juni juin junio giugno czerwca junho jun",
            "july juli juillet julio luglio lipca julho jul",
            "august août aout agosto augustus sierpnia augusti aug",
            "september septembre septiembre settembre września setembro sep sept",
            "october oktober octobre octubre ottobre października outubro oct okt",
            "november novembre noviembre listopada novembro nov",
            "december dezember décembre decembre diciembre dicembre grudnia dezembro dec dez",
        ),
        start=1,
    )
    for name in names.split()
}


class Amount(msgspec.Struct, frozen=True):
    """An amount in minor units; ``is_ambiguous`` if its only separator may mean thousands or decimals."""

    minor: int
    text: str
    is_ambiguous: bool = False


def decimals_of(currency: str) -> int:
    """How many decimals a currency has."""
    return 0 if currency in ZERO_DECIMALS else 2


def show(minor: int | None, currency: str) -> str:
    """An amount as the ledger writes it: ``1234.56``; empty for none."""
    if minor is None:
        return ""
    places = decimals_of(currency)
    sign, value = ("-" if minor < 0 else ""), abs(minor)
    return f"{sign}{value // 100}.{value % 100:02d}" if places else f"{sign}{value}"


def currency_in(text: str, language: str = "") -> str:
    """The ISO code of the first currency that a text names; empty if none."""
    for word in re.findall(r"(?<![A-Za-z])[A-Z]{3}(?![A-Za-z])", text):
        if word in CURRENCIES:
            return str(word)
    for symbol, code in SYMBOLS:
        if symbol in text:
            return code
    if re.search(r"(?<!\w)kr\b", text):
        return KRONA.get(language, "")
    return ""


def amounts_in(text: str, currency: str, language: str = "") -> list[Amount]:
    """The amounts in a line, in order; percentages and dates are not amounts."""
    cleaned = re.sub(r"\d+(?:[.,]\d+)?\s?[%％]", " ", text)
    cleaned = re.sub(r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{4}\b|\d+[ ]?(?:年|月|日)", " ", cleaned)
    found = []
    for match in NUMBER.finditer(cleaned):
        amount = parse_amount(match["digits"], currency, language)
        if amount is not None:
            found.append(msgspec.structs.replace(amount, minor=-amount.minor) if match["sign"] else amount)
    return found


def parse_amount(text: str, currency: str, language: str = "") -> Amount | None:
    """A written number, by its separators; ``None`` if it is none.

    ``1.234,56``, ``1,234.56``, ``1 234,56``, ``1'234.56`` and ``1,23,456.00`` are read alike. One separator before
    three digits marks thousands where the language says so, and is ambiguous where it does not.
    """
    raw = text.strip().strip("'’")
    sign = -1 if raw[:1] in ("-", "−") else 1
    digits = re.sub(rf"[{SPACES}'’]", "", raw.lstrip("-−"))
    if not re.fullmatch(r"\d+(?:[.,]\d+)*", digits):
        return None
    places = decimals_of(currency)
    whole, fraction, is_ambiguous = _split(digits, places, language)
    if len(whole) > WHOLE_DIGITS_MAX:
        return None
    if len(fraction) > max(places, 0):
        if fraction[places:].strip("0"):
            return None
        fraction = fraction[:places]
    minor = int(whole) * 10**places + int(fraction.ljust(places, "0") or "0")
    return Amount(sign * minor, raw, is_ambiguous)


def _split(digits: str, places: int, language: str) -> tuple[str, str, bool]:
    """Whole part, fraction, and whether it could be read otherwise."""
    marks = [character for character in digits if character in ".,"]
    if not marks:
        return digits, "", False
    last = marks[-1]
    whole, _, tail = digits.rpartition(last)
    bare = re.sub(r"[.,]", "", digits)
    if len(set(marks)) == 2:
        return re.sub(r"[.,]", "", whole), tail, False
    if len(marks) > 1:
        return bare, "", False
    if len(tail) != 3:
        return whole, tail, False
    is_ambiguous = places != 0 and GROUP_MARK.get(language) != last
    return bare, "", is_ambiguous


def date_in(text: str, *, is_month_first: bool = False) -> str:
    """The first date in a text, as ISO; empty if there is none."""
    for pattern in (
        r"(\d{4})-(\d\d)-(\d\d)",
        r"(\d{4})\s?年\s?(\d{1,2})\s?月\s?(\d{1,2})\s?日",
        r"(\d{4})/(\d\d)/(\d\d)",
    ):
        if match := re.search(pattern, text):
            return _iso(match[1], match[2], match[3])
    if match := re.search(r"\b(\d{1,2})[./-](\d{1,2})[./-](\d{4})\b", text):
        first, second = (match[2], match[1]) if is_month_first else (match[1], match[2])
        return _iso(match[3], second, first)
    lowered = text.casefold()
    for match in re.finditer(r"(\d{1,2})\.?\s+(?:de\s+)?([^\W\d]+)\.?,?\s+(?:de\s+)?(\d{4})", lowered):
        if match[2] in MONTHS:
            return _iso(match[3], str(MONTHS[match[2]]), match[1])
    for match in re.finditer(r"([^\W\d]+)\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4})", lowered):
        if match[1] in MONTHS:
            return _iso(match[3], str(MONTHS[match[1]]), match[2])
    return ""


def _iso(year: str, month: str, day: str) -> str:
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return ""
