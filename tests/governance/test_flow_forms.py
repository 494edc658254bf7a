"""Whether a value stands in a text: a yes must be right, since it is what trust comes from."""

from __future__ import annotations

import pytest

from perdure.governance.flow_forms import Text, equals, forms, occurs, shares, written

IBAN = "DE89370400440532013000"


def stands(value: object, text: object, *, is_amount: bool = False) -> bool:
    return occurs(forms(value, is_amount=is_amount), Text(written(text) or ""))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("acme.com", "write to acme.com."),
        ("acme.com", {"to": "acme.com"}),
        ("bob@acme.com", "Bob <bob@acme.com>, please"),
        ("BOB@acme.com", "bob@ACME.com"),
        (IBAN, f"IBAN: {IBAN}"),
        (IBAN, f"IBAN:{IBAN}"),
        (IBAN, "DE89 3704 0044 0532 0130 00"),
        ("DE89 3704 0044 0532 0130 00", IBAN),
        (IBAN.lower(), IBAN),
        ("12345678901", "account 12 345 678 901."),
        (IBAN, "pay 100 to DE89 3704 0044 0532 0130 00 by Friday"),
        ("1j1l-2k3j", "the password is '1j1l-2k3j'."),
        ("Dalton Street 123", "moved to\nDalton Street 123\nNew York"),
        ("line one\nline two", "line one line two"),
        ('say "hi"', 'they say "hi" to us'),
        (2200, "rent is 2200."),
        (2200.0, "rent is 2,200.00"),
        (98.7, "98.70"),
        (12, "12,00"),
        ("me", {"from": "me"}),
        ("Zürich", "nach Zürich, bitte"),
    ],
)
def test_it_stands_there(value: object, text: object) -> None:
    assert stands(value, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("acme.com", "acme.com.evil.example"),
        ("acme.com", "x@acme.com"),
        ("acme.com", "notacme.com"),
        ("acme.com", "acme.com/login"),
        ("bob@acme.com", "bob@acme.com.evil"),
        ("b@acme.com", "bob@acme.com"),
        ("bob@acme.co", "mail:bob@acme.com"),
        ("alice@example.org", "to:alice@example.organic"),
        (IBAN[:20], f"IBAN:{IBAN}"),
        (IBAN, IBAN + "1"),
        (IBAN, "1" + IBAN),
        ("12345678", "12345 6789"),
        ("me", "give it to me now"),
        ("345678901", "account 12 345 678 901"),
        ("12345678", "account 12 345 678 901"),
        ("12345678", "account 1234-5678-9012"),
        ("", "anything"),
        ("   ", "a   b"),
        (True, "true"),
        (None, "null"),
        (220, "2200"),
        (200, "2,200.00"),
        (5, "-5"),
        (5, "5%"),
        (1.2, "1.234"),
        ("раypal", "paypal"),  # a letter that only looks alike
        ("acme", "acme\u200bcorp"),  # an invisible character joins
        ("C:\\temp", "C:\\\\temp\\x"),
        ({"a": 1}, '{"a":1}'),
    ],
)
def test_it_does_not_stand_there(value: object, text: object) -> None:
    assert not stands(value, text)


def test_digits_are_a_number_only_as_an_amount() -> None:
    assert stands("50", "pay 50.00", is_amount=True)
    assert not stands("050", "account 50")


def test_declassified_is_the_whole_only() -> None:
    text = Text(written("the code is 4711") or "")
    assert equals(forms("the code is 4711"), text)
    assert not equals(forms("4711"), text)


def test_parts_without_bounds_for_what_came_back() -> None:
    assert shares(forms("US133000000121212121212"), Text('"note: us13 3000 0001 2121 2121 212"'))
    assert not shares(forms("US133000000121212121212"), Text('"note: us13 3000 0001"'))
    assert shares(forms("US133000000121212121212"), Text('"xxUS13 30000001 21212121212yy"'))
