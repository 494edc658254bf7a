"""Secrets never survive in what is stored; ordinary text does."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.gateway.redact import Redactor

SECRET = 's3cr3t/Value+with=odd"chars\\and-ünicode'


def plain() -> Redactor:
    return Redactor(lambda: ())


def knowing(value: str = SECRET) -> Redactor:
    return Redactor(lambda: (value,))


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps({"a": SECRET}),
        json.dumps({"a": json.dumps({"b": SECRET})}),
        json.dumps({"a": SECRET}, ensure_ascii=False),
        quote(SECRET, safe=""),
        quote(SECRET),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"x" + SECRET.encode() + b"yz").decode(),
        base64.b64encode(b"xy" + SECRET.encode()).decode(),
        base64.urlsafe_b64encode(b"user:" + SECRET.encode()).decode(),
    ],
)
def test_known_values_are_found_in_every_encoding(form: str) -> None:
    cleaned, found = knowing().clean(f"before {form} after".encode())
    assert found == ["secret"]
    assert b"[secret]" in cleaned
    for leak in (SECRET.encode(), SECRET.encode().hex().encode(), quote(SECRET).encode()):
        assert leak not in cleaned


@given(st.text(min_size=6, max_size=40), st.binary(max_size=9), st.binary(max_size=9))
def test_no_secret_survives(value: str, before: bytes, after: bytes) -> None:
    data = value.encode(errors="replace")
    value = data.decode()
    if len(data) < 12:
        return
    redactor = knowing(value)
    for form in (data, data.hex().encode(), base64.b64encode(before + data + after)):
        cleaned, _ = redactor.clean(b"<" + form + b">")
        assert data not in cleaned or data in b"[secret]<>"
        if form != data:
            assert form not in cleaned
    document = json.dumps({"k": [value, {"x": value}]}).encode()
    cleaned, _ = redactor.clean(document)
    json.loads(cleaned)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("openai", "sk-proj-" + "Ab1" * 16),
        ("anthropic", "sk-ant-api03-" + "Ab1_" * 12),
        ("github", "ghp_" + "a1B2" * 9),
        ("github", "github_pat_" + "a1B2_" * 10),
        (
            "aws",
            "AKIAIOSFODNN7EXAMPLE"[:20]
            .replace("8", "7")
            .replace("9", "7")
            .replace("0", "A")
            .replace("1", "B"),
        ),
        ("google", "AIza" + "aB3-_" * 7),
        ("slack", "xoxb-" + "123456789-" * 3),
        ("stripe", "sk_live_" + "aB3" * 8),
        (
            "jwt",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        ),
        ("private-key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_shapes_of_credentials_are_found(kind: str, text: str) -> None:
    cleaned, found = plain().clean(json.dumps({"output": f"key: {text} ."}).encode())
    assert found == [kind]
    assert f"[credential:{kind}]".encode() in cleaned
    json.loads(cleaned)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42. See https://example.org/a?b=c#d and mail bob@example.org.",
        "uuid 0b9dd0a2-7f0b-4b7a-9c79-5d8f7c2b8a0e, sha256 " + "ab12" * 16,
        "chatcmpl-AbCdEf123456789012345678901234567890 call_abc123 toolu_01AbCdEf task-sk-1",
        "risk-based, desk-lamp-with-a-very-long-name-that-goes-on-and-on-and-on-for-ever",
        base64.b64encode(bytes(range(256)) * 40).decode(),
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert plain().clean(text.encode()) == (text.encode(), [])


def test_new_secrets_are_looked_for_as_soon_as_they_are_resolved() -> None:
    values: list[str] = []
    redactor = Redactor(lambda: tuple(values))
    assert redactor.clean(b"top-secret-value")[0] == b"top-secret-value"
    values.append("top-secret-value")
    assert redactor.clean(b"top-secret-value")[0] == b"[secret]"


def test_a_large_clean_body_is_quick() -> None:
    body = ("The quick brown fox jumps over the lazy dog. " * 2_300).encode()
    redactor = knowing()
    redactor.clean(body)
    began = time.perf_counter()
    redactor.clean(body)
    assert time.perf_counter() - began < 0.1  # 100 KB; a few milliseconds where nothing else runs
