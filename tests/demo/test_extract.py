"""Every shipped mail against a table that was checked by hand, and amounts, dates and attachments one by one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from perdure.demo.amounts import amounts_in, currency_in, date_in, parse_amount, show
from perdure.demo.attachments import AttachmentError, facts_of
from perdure.demo.extract import extract
from perdure.demo.mail import MAIL_BYTES_MAX, PARTS_MAX, Part, html_to_text, parse, read_file
from perdure.demo.reviewer import SHIPPED_MAILS

EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text(encoding="utf-8"))
NAMES = sorted(item.name for item in SHIPPED_MAILS.glob("*.eml"))


def test_the_table_and_the_folder_name_the_same_mails():
    assert len(NAMES) >= 26
    assert sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_mail_is_extracted_as_the_table_says(name):
    found = json.loads(msgspec.json.encode(extract(read_file(SHIPPED_MAILS / name))))
    found.pop("source")
    confidence = found.pop("confidence")
    assert found == EXPECTED[name]
    assert 5 <= confidence <= 95


def test_the_mails_are_varied():
    languages = {item["language"] for item in EXPECTED.values()}
    currencies = {item["currency"] for item in EXPECTED.values()}
    assert {"en", "de", "fr", "es", "it", "nl", "pl", "ja", "sv", "pt"} <= languages
    assert len(currencies - {""}) >= 9
    assert sum(bool(item["doubts"]) for item in EXPECTED.values()) >= 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_a_mail_cut_off_anywhere_is_read_without_a_crash(name, share):
    data = (SHIPPED_MAILS / name).read_bytes()
    invoice = extract(parse(name, data[: int(len(data) * share)]))
    assert invoice.source == name


@pytest.mark.parametrize("name", NAMES)
def test_a_mail_with_damaged_bytes_is_read_without_a_crash(name):
    data = bytearray((SHIPPED_MAILS / name).read_bytes())
    for position in range(7, len(data), 41):
        data[position] ^= 0x95
    mail = parse(name, bytes(data))
    assert msgspec.json.encode(mail)
    assert msgspec.json.encode(extract(mail))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["9", "1 234 ", "1.", "A-", "a", "total ", "1 de ", "invoice no "])
def test_very_long_lines_do_not_stall_the_rules(unit):
    text = (unit * 200_000)[:199_000]
    for body in (f"Total: {text}", f"Invoice no {text}", text.replace(" ", "\n")):
        assert extract(parse("x.eml", f"From: a@b.example\n\n{body}".encode())).source == "x.eml"


def test_text_that_json_cannot_hold_is_cleaned():
    head = b"From: \xff\xfe <a@b.example>\r\nSubject: \xff\r\nContent-Type: text/plain; charset=raw_unicode_escape\r\n"
    mail = parse("x.eml", head + b"\r\nInvoice no 7 \\ud800 Total 5.00 EUR")
    assert msgspec.json.encode(mail)
    part = Part(name="x.json", form="json", text='{"number": "\\ud800", "total": "1.00"}', is_attached=True)
    assert msgspec.json.encode(facts_of(part, language="en", currency="EUR"))


@pytest.mark.parametrize(
    ("text", "currency", "language", "minor"),
    [
        ("1.234,56", "EUR", "de", 123456),
        ("1,234.56", "USD", "en", 123456),
        ("1 234,56", "EUR", "fr", 123456),
        ("1\u202f234,56", "EUR", "fr", 123456),
        ("1'234.50", "CHF", "de", 123450),
        ("1,23,456.00", "INR", "en", 12345600),
        ("55,000", "JPY", "ja", 55000),
        ("54,5", "EUR", "nl", 5450),
        ("1.234.567", "EUR", "de", 123456700),
        ("-12.00", "GBP", "en", -1200),
        ("7", "GBP", "en", 700),
    ],
)
def test_amounts_of_many_countries(text, currency, language, minor):
    amount = parse_amount(text, currency, language)
    assert amount is not None
    assert (amount.minor, amount.is_ambiguous) == (minor, False)


@pytest.mark.parametrize(
    ("text", "language"), [("1.234", "en"), ("1,234", "de"), ("1.234", ""), ("1.234", "fr")]
)
def test_one_separator_that_the_language_does_not_explain_is_ambiguous(text, language):
    amount = parse_amount(text, "EUR", language)
    assert amount is not None
    assert amount.is_ambiguous


@pytest.mark.parametrize("text", ["", "abc", "1..2", "12.3456", "1,2,", "9" * 5000])
def test_what_is_no_amount_is_none(text):
    assert parse_amount(text, "EUR", "en") is None


def test_percentages_and_dates_are_no_amounts():
    assert [item.minor for item in amounts_in("VAT 20% of 12.03.2025: £205.76", "GBP", "en")] == [20576]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4 March 2025", "2025-03-04"),
        ("March 4th, 2025", "2025-03-04"),
        ("31.03.2025", "2025-03-31"),
        ("18 de marzo de 2025", "2025-03-18"),
        ("2025年3月31日", "2025-03-31"),
        ("6 août 2025", "2025-08-06"),
        ("31.02.2025", ""),
        ("soon", ""),
    ],
)
def test_dates(text, found):
    assert date_in(text) == found


def test_a_date_with_the_month_first():
    assert date_in("03/02/2025", is_month_first=True) == "2025-03-02"


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ("A$ 5", "en", "AUD"),
        ("5 kr", "sv", "SEK"),
        ("5 kr", "", ""),
        ("R$ 5", "pt", "BRL"),
        ("VAT 5", "en", ""),
    ],
)
def test_currencies(text, language, code):
    assert currency_in(text, language) == code


def test_amounts_are_shown_with_the_decimals_of_the_currency():
    assert show(-39472, "GBP") == "-394.72"
    assert show(55000, "JPY") == "55000"
    assert show(None, "EUR") == ""


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><Invoice/>", "document type"),
        ("xml", "<?xml version='1.0'?>\n<!DOCTYPE a SYSTEM 'file:///etc/passwd'><Invoice/>", "document type"),
        ("xml", "<Invoice>", "not well-formed"),
        ("xml", "<a>" * 80 + "</a>" * 80, "nested deeper"),
        ("xml", "<Order/>", "unknown kind"),
        ("json", "{", "not JSON"),
        ("json", "[1]", "no object"),
        ("json", "[" * 100_000, "not JSON"),
        ("csv", "", "empty"),
        ("csv", "a;b\n1;2\n", "no total"),
    ],
)
def test_an_attachment_that_cannot_be_read_says_why(form, text, says):
    with pytest.raises(AttachmentError, match=says):
        facts_of(
            Part(name=f"x.{form}", form=form, text=text, is_attached=True), language="en", currency="EUR"
        )


def test_csv_lines_are_summed_if_there_is_no_total():
    part = Part(name="x.csv", form="csv", text="item;amount\na;1,50\nb;2,50\n", is_attached=True)
    assert facts_of(part, language="de", currency="EUR").total_minor == 400


def test_hidden_text_of_a_page_is_not_read():
    page = "<style>Total: 9</style><script>Total: 8</script><table><tr><td>Total</td><td>7</td></tr></table>"
    assert html_to_text(page) == "Total\t7"


def test_a_file_that_is_missing_empty_special_or_too_large_is_damage(tmp_path):
    assert "cannot be read" in read_file(tmp_path / "gone.eml").damage[0]
    (tmp_path / "empty.eml").write_bytes(b" \n")
    assert read_file(tmp_path / "empty.eml").damage == ("the file is empty",)
    (tmp_path / "folder.eml").mkdir()
    assert read_file(tmp_path / "folder.eml").damage == ("this is not a regular file",)
    with (tmp_path / "large.eml").open("wb") as file:
        file.truncate(MAIL_BYTES_MAX + 1)
    assert "the limit is" in read_file(tmp_path / "large.eml").damage[0]


def test_a_mail_of_very_many_parts_is_read_in_part():
    parts = "".join(
        f"--b\r\nContent-Type: text/plain\r\n\r\nline {index}\r\n" for index in range(PARTS_MAX + 20)
    )
    data = f"From: a@b.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{parts}--b--\r\n".encode()
    mail = parse("many.eml", data)
    assert len(mail.parts) == PARTS_MAX - 1
    assert any("only the first" in item for item in mail.damage)
