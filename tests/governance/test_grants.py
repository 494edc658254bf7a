"""Grants: whatever is not exactly what was signed, by whom it must be, for whom, when and once, does not count."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError, UsageError
from perdure.core.principals import Principal
from perdure.core.verdicts import Demand, Reason
from perdure.governance import grant_errors as errors
from perdure.governance.claims import ActionClaim, claim_of, display
from perdure.governance.grants import Granted, add_signature, read_statement, sign, verify
from perdure.governance.keys import from_jwks, private_key, public_record, read_private, write_private
from perdure.governance.statements import statement_of

NOW = 1_800_000_000_000
REASONS = (Reason(code="policy-hold", message="payments over 1000 are asked for", rule="payments"),)
KEYS = {
    name: private_key(hashlib.sha256(name.encode()).digest())
    for name in ("anna", "bob", "carl", "anna2", "eve")
}
RECORDS = {
    record.kid: record
    for record in (
        public_record(KEYS["anna"], "anna", ["finance"], 1),
        public_record(KEYS["anna2"], "anna", ["finance"], 1),
        public_record(KEYS["bob"], "bob", ["finance", "head"], 1),
        public_record(KEYS["carl"], "carl", ["legal"], 1),
    )
}


def claim(**changes: Any) -> ActionClaim:
    made = claim_of(
        "run1", 7, "pay", tool_digest="t" * 64, arguments=b'{"to":"acme","cents":120000}',
        chain=(Principal(kind="agent", name="clerk", run="run1"), Principal(kind="user", name="ute")), policy="p" * 64,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def granted(token: str, **changes: Any) -> Granted:
    options: dict[str, Any] = {
        "claim": claim(), "reasons": REASONS, "keys": RECORDS, "demands": [Demand(roles=("finance",))], "audience": "here",
        "now_ms": NOW,
    }  # fmt: skip
    return verify(token, **{**options, **changes})


def statement(**changes: Any) -> Any:
    options: dict[str, Any] = {"audience": "here", "jti": "j1", "now_s": NOW // 1000, "decision": "approve"}
    return statement_of(claim(), REASONS, **{**options, **changes})


def signed(*names: str, **changes: Any) -> str:
    token = sign(statement(**changes), KEYS[names[0]])
    for name in names[1:]:
        token = add_signature(token, KEYS[name])
    return token


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_grant_that_fits_counts() -> None:
    found = granted(signed("anna", reason="fine"))
    assert (found.persons, found.statement.decision, found.statement.reason) == (("anna",), "approve", "fine")
    assert found.digest == hashlib.sha256(signed("anna", reason="fine").encode()).hexdigest()
    both = granted(
        signed("anna", "bob"), demands=[Demand(roles=("finance",), quorum=2), Demand(roles=("head",))]
    )
    assert both.persons == ("anna", "bob")


OTHER_ACTIONS = {
    "arguments": {"arguments": {"to": "acme", "cents": 120001}},
    "another argument": {"arguments": {"to": "acme", "cents": 120000, "note": ""}},
    "a look-alike": {"arguments": {"to": "\u0430cme", "cents": 120000}},
    "tool": {"tool": "pay_all"},
    "tool schema": {"tool_digest": "u" * 64},
    "policies": {"policy": "q" * 64},
    "another run": {"run": "run2"},
    "an identical second action": {"seq": 8},
    "principals": {"principals": ("agent:clerk", "user:otto")},
    "a sub-agent": {"principals": ("agent:helper", "agent:clerk", "user:ute")},
}


@pytest.mark.parametrize("changes", OTHER_ACTIONS.values(), ids=OTHER_ACTIONS)
def test_a_grant_is_for_one_action_only(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.GrantActionMismatchError):
        granted(signed("anna"), claim=claim(**changes))


def test_what_was_displayed_is_signed() -> None:
    with pytest.raises(errors.GrantDisplayMismatchError):
        granted(signed("anna"), reasons=(Reason(code="policy-hold", message="routine"),))


def test_persons_and_roles() -> None:
    with pytest.raises(errors.GrantRoleMissingError, match="`finance`"):
        granted(signed("carl"))
    with pytest.raises(errors.GrantQuorumMissingError, match="2 persons"):
        granted(signed("anna", "anna2"), demands=[Demand(roles=("finance",), quorum=2)])
    with pytest.raises(errors.GrantQuorumMissingError):
        granted(signed("anna", "carl"), demands=[Demand(roles=("finance",), quorum=2)])
    with pytest.raises(errors.GrantRoleMissingError, match="`legal`"):
        granted(signed("anna", "bob"), demands=[Demand(roles=("finance",)), Demand(roles=("legal",))])
    for chain in (
        ("agent:clerk", "user:anna"),
        ("agent:clerk", "service:anna"),
        ("agent:a", "agent:b", "user:anna"),
    ):
        made = claim(principals=chain)
        token = sign(
            statement_of(made, REASONS, audience="here", jti="j", now_s=NOW // 1000, decision="approve"),
            KEYS["anna"],
        )
        with pytest.raises(errors.GrantRequesterError, match="`anna` asked for"):
            granted(add_signature(token, KEYS["bob"]), claim=made)


def test_keys_that_do_not_count() -> None:
    with pytest.raises(errors.GrantKeyUnknownError):
        granted(signed("eve"))
    with pytest.raises(errors.GrantKeyUnknownError):
        granted(signed("anna", "eve"))
    kid = KEYS["anna"].thumbprint()
    for revoked_ms in (1, NOW):
        revoked = {**RECORDS, kid: msgspec.structs.replace(RECORDS[kid], revoked_ms=revoked_ms)}
        with pytest.raises(errors.GrantKeyRevokedError):
            granted(signed("anna"), keys=revoked)
    assert granted(
        signed("anna"), keys={**RECORDS, kid: msgspec.structs.replace(RECORDS[kid], revoked_ms=NOW + 1)}
    )


def test_time_and_audience() -> None:
    with pytest.raises(errors.GrantAudienceError):
        granted(signed("anna"), audience="there")
    with pytest.raises(errors.GrantExpiredError):
        granted(signed("anna"), now_ms=NOW + 3_600_000)
    with pytest.raises(errors.GrantNotYetValidError):
        granted(signed("anna"), now_ms=NOW - 62_000)
    granted(signed("anna"), now_ms=NOW - 59_000)
    with pytest.raises(errors.GrantMalformedError, match="at most"):
        granted(signed("anna", life_s=10**9))


# -- forgeries
def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = json.loads(token)
    return found, json.loads(base64.urlsafe_b64decode(found["payload"] + "=="))


def resigned(payload: bytes, header: dict[str, Any], name: str = "anna") -> str:
    """Signed with the right key, whatever the payload and header are."""
    protected = b64(json.dumps(header).encode())
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = hashlib.sha256(name.encode()).digest()
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(f"{protected}.{b64(payload)}".encode())
    return json.dumps(
        {"payload": b64(payload), "signatures": [{"protected": protected, "signature": b64(signature)}]}
    )


HEADER = {"alg": "Ed25519", "kid": KEYS["anna"].thumbprint(), "typ": "perdure-grant+jws"}


def test_the_helper_of_these_tests_makes_grants_that_count() -> None:
    _, payload = parts(signed("anna"))
    assert granted(resigned(canonical(payload), HEADER)).persons == ("anna",)


@pytest.mark.parametrize(
    "header",
    [
        {**HEADER, "alg": "none"},
        {**HEADER, "alg": "EdDSA"},
        {**HEADER, "alg": "HS256"},
        {**HEADER, "typ": "JWT"},
        {**HEADER, "crit": ["exp"], "exp": 1},
        {**HEADER, "b64": False},
        {**HEADER, "jwk": {"kty": "OKP"}},
        {key: value for key, value in HEADER.items() if key != "typ"},
    ],
    ids=lambda header: str(sorted(header.items()))[:60],
)
def test_a_header_says_three_things_and_no_others(header: dict[str, Any]) -> None:
    _, payload = parts(signed("anna"))
    with pytest.raises(errors.GrantMalformedError):
        granted(resigned(canonical(payload), header))


def test_forged_signatures() -> None:
    found, payload = parts(signed("anna"))
    [mine] = found["signatures"]
    none = b64(json.dumps({**HEADER, "alg": "none"}).encode())
    secret = json.loads(RECORDS[HEADER["kid"]].jwk)["x"].encode()
    hs256 = b64(json.dumps({**HEADER, "alg": "HS256"}).encode())
    forged = hmac.new(secret, f"{hs256}.{found['payload']}".encode(), "sha256").digest()
    bobs = b64(json.dumps({**HEADER, "kid": KEYS["bob"].thumbprint()}).encode())
    changed = b64(canonical({**payload, "decision": "approve", "jti": "j2"}))
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (errors.GrantMalformedError, {**found, "signatures": []}),
        (errors.GrantMalformedError, {**found, "signatures": [{"protected": none, "signature": ""}]}),
        (
            errors.GrantMalformedError,
            {**found, "signatures": [{"protected": hs256, "signature": b64(forged)}]},
        ),
        (errors.GrantMalformedError, {**found, "signatures": [{**mine, "header": {"kid": "x"}}]}),
        (errors.GrantMalformedError, {"payload": found["payload"], **mine}),
        (errors.GrantMalformedError, {**found, "more": 1}),
        (errors.GrantMalformedError, {**found, "signatures": [mine] * 17}),
        (errors.GrantSignatureInvalidError, {**found, "signatures": [{**mine, "signature": ""}]}),
        (errors.GrantSignatureInvalidError, {**found, "signatures": [{**mine, "protected": bobs}]}),
        (errors.GrantSignatureInvalidError, {**found, "payload": changed}),
    ]
    for error, forgery in cases:
        with pytest.raises(error):
            granted(json.dumps(forgery))


def test_other_forms_of_the_same_data_are_refused() -> None:
    token = signed("anna")
    found, payload = parts(token)
    for text in (
        token.replace('"payload":', '"payload":"x","payload":', 1),
        token.replace('"signature":', '"signature":"x","signature":', 1),
        "[" * 50_000, "", "{}", "null", '"x"', "\ud800", " " * 70_000 + token,
    ):  # fmt: skip
        with pytest.raises(errors.GrantMalformedError):
            granted(text)
    for data in (
        json.dumps(payload).encode(),
        canonical(payload) + b" ",
        canonical({**payload, "extra": 1}),
        canonical({**payload, "iat": str(payload["iat"])}),
        canonical(payload).replace(b'"jti":"j1"', b'"jti":"j0","jti":"j1"'),
        canonical({**payload, "typ": "other"}),
        b"[]",
    ):
        with pytest.raises(errors.GrantMalformedError):
            granted(resigned(data, HEADER))


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    token = signed("anna", "bob")
    position = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[position]))
    changed = token[:position] + character + token[position + 1 :]
    if json_equal(changed, token):
        return
    with pytest.raises(errors.GrantRefusedError):
        granted(changed, demands=[Demand(roles=("finance",), quorum=2)])


def json_equal(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


# -- changed arguments
def test_changed_arguments_are_signed_with_their_digest() -> None:
    found = granted(signed("anna", decision="approve_edited", arguments={"to": "acme", "cents": 1}))
    assert found.statement.arguments == {"to": "acme", "cents": 1}
    _, payload = parts(signed("anna", decision="approve_edited", arguments={"to": "acme", "cents": 1}))
    for wrong in (
        {**payload, "arguments": {"to": "acme", "cents": 2}},
        {**payload, "decision": "approve"},
        {key: value for key, value in payload.items() if key != "arguments"},
        {**payload, "arguments_digest": ""},
    ):
        with pytest.raises(errors.GrantRefusedError):
            granted(resigned(canonical(wrong), HEADER))


def test_numbers_that_readers_read_differently_are_not_signed() -> None:
    for value in (2**53, 1e400):
        with pytest.raises(InputInvalidError):
            statement_of(
                claim(arguments={"n": value}), (), audience="a", jti="j", now_s=1, decision="approve"
            )
    statement_of(claim(arguments={"n": str(2**53)}), (), audience="a", jti="j", now_s=1, decision="approve")
    with pytest.raises(errors.GrantActionMismatchError):
        granted(signed("anna"), claim=claim(arguments={"n": 2**60}))


def test_reading_says_what_it_says_and_verifies_nothing() -> None:
    assert read_statement(signed("eve", reason="x")).reason == "x"


# -- display
def test_what_is_shown_hides_nothing() -> None:
    shown = display(
        claim(
            arguments={
                "to": "p\u0430ypal", "name": "Zo\u00eb M\u00fcller", "greek": "\u0391\u03b8\u03ae\u03bd\u03b1",
                "back": "a\u202etxt.exe", "zero": "ac\u200bme", "bell": "\x1b[2J\x07", "nfd": "e\u0301", "long": "x" * 5_000,
                "deep": {"a": [1, None, "\u0430b"]}, "end": "line\nFALSE = true",
            }
        ),
        REASONS,
    )  # fmt: skip
    assert "p<U+0430>ypal" in shown
    assert "Zo\u00eb M\u00fcller" in shown
    assert "\u0391\u03b8\u03ae\u03bd\u03b1" in shown, "a word of one script is left as it is"
    assert "a<U+202E>txt.exe" in shown
    assert "ac<U+200B>me" in shown
    assert "<U+001B>[2J<U+0007>" in shown
    assert "e<U+0301>" in shown
    assert "3802 of 5002 characters are not shown; SHA-256 of the whole" in shown
    assert "line<U+000A>FALSE = true" in shown
    assert "payments over 1000 are asked for (policy-hold)" in shown
    assert "agent:clerk for user:ute" in shown


@given(st.text(max_size=60))
def test_one_line_for_each_argument(text: str) -> None:
    shown = display(claim(arguments={"a": text, text: 1}), ())
    assert len(shown.splitlines()) <= 8
    assert all(line.isprintable() for line in shown.splitlines())


# -- keys
def test_keys_are_read_and_written() -> None:
    key = KEYS["anna"]
    assert read_private(write_private(key)).thumbprint() == key.thumbprint()
    for text in ("", "{}", json.dumps(key.as_dict(private=False)), '{"kty":"oct","k":"AAAA"}'):
        with pytest.raises(InputInvalidError):
            read_private(text)


def test_key_sets_of_teams() -> None:
    public = KEYS["anna"].as_dict(private=False)
    whole = {**public, "person": "anna", "roles": ["finance"]}
    [found] = from_jwks(json.dumps({"keys": [whole]}), NOW)
    assert (found.person, found.roles, found.kid) == ("anna", ("finance",), KEYS["anna"].thumbprint())
    assert "d" not in json.loads(found.jwk)
    wrong = [
        {**KEYS["anna"].as_dict(private=True), "person": "a", "roles": ["r"]},
        {**public, "person": "anna"},
        {**whole, "roles": []},
        {**whole, "roles": "finance"},
        {**whole, "crv": "X25519"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "person": "a", "roles": ["r"]},
        {**whole, "x": "AAAA"},
        {**whole, "person": ""},
    ]
    for item in wrong:
        with pytest.raises(UsageError):
            from_jwks(json.dumps({"keys": [item]}), NOW)
    for text in ("", "[]", '{"keys": 1}', json.dumps({"keys": [whole, whole]})):
        with pytest.raises(InputInvalidError):
            from_jwks(text, NOW)


# -- what only the holder of a key can try
def test_an_agent_cannot_approve_under_its_own_name() -> None:
    for principals in (("agent:anna", "user:ute"), ("agent:clerk", "agent:anna", "user:ute")):
        made = claim(principals=principals)
        token = sign(
            statement_of(made, REASONS, audience="here", jti="j", now_s=NOW // 1000, decision="approve"),
            KEYS["anna"],
        )
        with pytest.raises(errors.GrantRequesterError, match="is an agent"):
            granted(token, claim=made)


def test_a_header_has_each_member_once() -> None:
    found, _ = parts(signed("anna"))
    protected = b64(json.dumps(HEADER).replace('"kid"', '"kid":"x","kid"', 1).encode())
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"anna").digest())
    signature = b64(key.sign(f"{protected}.{found['payload']}".encode()))
    with pytest.raises(errors.GrantMalformedError, match="once"):
        granted(json.dumps({**found, "signatures": [{"protected": protected, "signature": signature}]}))


def test_a_signature_has_one_spelling() -> None:
    found, _ = parts(signed("anna"))
    [mine] = found["signatures"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
    for last in alphabet.replace(mine["signature"][-1], ""):
        forged = {**found, "signatures": [{**mine, "signature": mine["signature"][:-1] + last}]}
        with pytest.raises(errors.GrantRefusedError):
            granted(json.dumps(forged))


def test_deep_payloads_are_refused() -> None:
    _, payload = parts(signed("anna", decision="approve_edited", arguments={"a": 1}))
    deep = canonical(payload).replace(b'{"a":1}', b'{"a":' + b"[" * 9_000 + b"]" * 9_000 + b"}")
    with pytest.raises(errors.GrantMalformedError):
        granted(resigned(deep, HEADER))
