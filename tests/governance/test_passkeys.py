"""Passkeys: real assertions, made by an authenticator in software, over the statement that a JWS signs."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from perdure.core.errors import InputInvalidError
from perdure.core.verdicts import Demand
from perdure.governance import grant_errors as errors
from perdure.governance import passkey_registration as registration
from perdure.governance import passkeys
from perdure.governance.claims import ActionClaim
from perdure.governance.grants import sign
from perdure.governance.keys import private_key, public_record
from perdure.governance.statements import statement_of
from tests.governance import authenticator
from tests.governance.authenticator import PARTY, b64

pytest.importorskip("webauthn")
NOW = 1_800_000_000_000
CLAIM = ActionClaim(
    run="r1", seq=3, tool="pay", tool_digest="t" * 64, arguments={"to": "acme", "cents": 120_000},
    principals=("agent:clerk", "user:ute"), policy="p" * 64,
)  # fmt: skip


class Authenticator(authenticator.Authenticator):
    """With the row that registers it."""

    def record(self, **changes: Any) -> Any:
        made = passkeys.passkey_record(
            self.jwk, self.id, self.name, ["finance"], relying_party=PARTY, now_ms=1
        )
        return msgspec.structs.replace(made, **changes)


def statement(**changes: Any) -> Any:
    options: dict[str, Any] = {"audience": "here", "jti": "j1", "now_s": NOW // 1000, "decision": "approve"}
    return statement_of(CLAIM, (), **{**options, **changes})


def verified(*envelopes: str, records: Any, quorum: int = 1, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "claim": CLAIM, "reasons": (), "keys": {key.kid: key for key in records},
        "demands": [Demand(roles=("finance",), quorum=quorum)], "audience": "here", "now_ms": NOW,
    }  # fmt: skip
    return passkeys.verify_envelopes(envelopes, **{**options, **changes})


@pytest.fixture(params=["es256", "ed25519"])
def device(request: Any) -> Authenticator:
    return Authenticator(request.param, "anna")


def made(device: Authenticator, what: Any = None, **changes: Any) -> str:
    what = what or statement()
    return passkeys.envelope(what, device.id, device.get(passkeys.challenge(what), **changes))


def test_an_assertion_over_the_statement_counts(device: Authenticator) -> None:
    found = verified(made(device), records=[device.record()])
    assert found.granted.persons == ("anna",)
    assert found.sign_counts == {device.record().kid: 1}
    assert found.granted.statement.action == CLAIM.digest


def test_a_quorum_mixes_both_kinds(device: Authenticator) -> None:
    key = private_key(b"b" * 32)
    bob = public_record(key, "bob", ["finance"], 1)
    records = [device.record(), bob]
    found = verified(made(device), sign(statement(), key), records=records, quorum=2)
    assert found.granted.persons == ("anna", "bob")
    with pytest.raises(errors.GrantQuorumMissingError):
        verified(made(device), records=records, quorum=2)
    with pytest.raises(errors.GrantMalformedError, match="different decisions"):
        verified(made(device), sign(statement(jti="j2"), key), records=records, quorum=2)
    anna = public_record(key, "anna", ["finance"], 1)
    with pytest.raises(errors.GrantQuorumMissingError):
        verified(made(device), sign(statement(), key), records=[device.record(), anna], quorum=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "https://approve.example.evil.example"},
        {"origin": "http://approve.example"},
        {"rp": "evil.example"},
        {"flags": 0x01},
        {"flags": 0x04},
        {"flags": 0x00},
        {"type": "webauthn.create"},
        {"more": {"crossOrigin": True}},
        {"more": {"topOrigin": "https://evil.example"}},
    ],
    ids=str,
)
def test_an_assertion_made_elsewhere_or_without_its_person_does_not_count(
    device: Authenticator, changes: dict[str, Any]
) -> None:
    with pytest.raises(errors.GrantSignatureInvalidError):
        verified(made(device, **changes), records=[device.record()])


def test_the_counter_grows(device: Authenticator) -> None:
    first = made(device)
    kid = device.record().kid
    counted = device.record(sign_count=verified(first, records=[device.record()]).sign_counts[kid])
    with pytest.raises(errors.GrantCounterError, match="may have been copied"):
        verified(first, records=[counted])
    assert verified(first, records=[counted], counted=[first]).sign_counts[kid] == 1, (
        "it was looked at before"
    )
    assert verified(made(device), records=[counted]).sign_counts[kid] == 2
    with pytest.raises(errors.GrantCounterError):
        verified(made(device, count=0), records=[counted])
    assert verified(made(device, count=0), records=[device.record()]).sign_counts[kid] == 0, "it never counts"


def test_another_statement_key_or_action(device: Authenticator) -> None:
    records = [device.record()]
    other = passkeys.envelope(statement(), device.id, device.get(passkeys.challenge(statement(jti="j2"))))
    with pytest.raises(errors.GrantSignatureInvalidError, match="challenge"):
        verified(other, records=records)
    twin = Authenticator("es256", "anna")
    with pytest.raises(errors.GrantSignatureInvalidError):
        verified(made(device), records=[twin.record()])
    with pytest.raises(errors.GrantKeyUnknownError):
        verified(made(device), records=[])
    with pytest.raises(errors.GrantKeyRevokedError):
        verified(made(device), records=[device.record(revoked_ms=NOW)])
    with pytest.raises(errors.GrantActionMismatchError):
        verified(made(device), records=records, claim=msgspec.structs.replace(CLAIM, seq=4))
    with pytest.raises(errors.GrantExpiredError):
        verified(made(device), records=records, now_ms=NOW + 3_600_000)
    with pytest.raises(errors.GrantRequesterError):
        verified(made(device), records=[device.record(person="ute")])
    with pytest.raises(errors.GrantRoleMissingError):
        verified(made(device), records=[device.record(roles=("legal",))])


def test_the_envelope_has_one_form(device: Authenticator) -> None:
    text = made(device)
    found = json.loads(text)
    for changed in (
        json.dumps(found),
        text.replace('"typ"', '"typ":"perdure-grant+webauthn","typ"', 1),
        json.dumps({**found, "more": 1}, separators=(",", ":")),
        text.replace('"typ":"', '"typ":"x', 1) + f'"{passkeys.TYPE}"',
        text + " " * 70_000,
        text.replace('"payload":"', '"payload":"=', 1),
    ):
        with pytest.raises(errors.GrantMalformedError):
            verified(changed, records=[device.record()])
    with pytest.raises(errors.GrantMalformedError, match="envelopes"):
        verified(records=[device.record()])


def test_no_single_character_can_be_changed(device: Authenticator) -> None:
    text = made(device)
    for position, old in enumerate(text):
        new = "A" if old != "A" else "B"
        with pytest.raises(errors.GrantRefusedError):
            verified(text[:position] + new + text[position + 1 :], records=[device.record()])


def test_only_public_keys_of_two_kinds_are_registered(device: Authenticator) -> None:
    wrong: list[Any] = [
        device.private,
        {**device.jwk, "crv": "P-384"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {**device.jwk, "x": "AAAA"},
        {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(32))},
        {},
    ]
    for jwk in wrong:
        with pytest.raises(InputInvalidError):
            passkeys.passkey_record(jwk, device.id, "anna", ["finance"], relying_party=PARTY, now_ms=1)
    for credential, roles in (("", ["finance"]), ("=", ["finance"]), (device.id, []), (device.id, "finance")):
        with pytest.raises(InputInvalidError):
            passkeys.passkey_record(device.jwk, credential, "anna", roles, relying_party=PARTY, now_ms=1)


# -- registration
def invited(**changes: Any) -> Any:
    options: dict[str, Any] = {"relying_party": PARTY, "challenge": b"c" * 32, "now_ms": NOW}
    return registration.invite("anna", ["finance"], **{**options, **changes})


def test_a_passkey_is_registered_from_its_response_and_signs(device: Authenticator) -> None:
    invitation = invited()
    options = registration.creation_options(invitation, [])
    for form in ("none", "packed"):
        text = device.create(options, format=form)
        assert registration.answered(text, [invited(challenge=b"d" * 32), invitation], NOW) == invitation
        key = registration.registered(text, invitation, NOW)
        assert (key.person, key.roles, key.kind) == ("anna", ("finance",), "passkey")
        assert key.jwk == device.record().jwk
        assert passkeys.RelyingParty.of(key) == PARTY
        assert verified(made(device), records=[key]).granted.persons == ("anna",)
    again = registration.creation_options(invitation, [key])
    assert again["excludeCredentials"] == [{"type": "public-key", "id": device.id}]
    asked = registration.request_options(b"x" * 32, PARTY.id, [key, device.record(revoked_ms=1)])
    assert asked["allowCredentials"] == [{"type": "public-key", "id": device.id}]


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "https://evil.example"},
        {"rp": "evil.example"},
        {"challenge": b64(b"e" * 32)},
        {"flags": authenticator.PRESENT},
        {"flags": authenticator.VERIFIED},
        {"type": "webauthn.get"},
        {"more": {"crossOrigin": True}},
        {"more": {"topOrigin": "https://evil.example"}},
        {"cose": {1: 3, 3: -257, -1: b"n" * 256, -2: b"\x01\x00\x01"}},
        {"cose": {1: 1, 3: -8, -1: 6, -2: bytes(32)}},
        {"cose": {1: 2, 3: -7, -1: 2, -2: b"x" * 48, -3: b"y" * 48}},
        {"cose": {}},
        {"format": "packed", "sig": b"forged"},
        {"format": "made-up"},
    ],
    ids=str,
)
def test_a_registration_that_does_not_hold_is_refused(device: Authenticator, changes: dict[str, Any]) -> None:
    text = device.create(registration.creation_options(invited(), []), **changes)
    with pytest.raises(InputInvalidError):
        registration.registered(text, invited(), NOW)


def test_an_invitation_counts_for_its_time_and_its_page(device: Authenticator) -> None:
    invitation = invited()
    text = device.create(registration.creation_options(invitation, []))
    for waiting, now_ms in (([], NOW), ([invitation], NOW + registration.LIFE_MS)):
        with pytest.raises(InputInvalidError, match="no invitation"):
            registration.answered(text, waiting, now_ms)
    for wrong in ("", "{}", "[1]", '{"response": {"clientDataJSON": "AAAA"}}', "x" * 70_000):
        with pytest.raises(InputInvalidError):
            registration.answered(wrong, [invitation], NOW)
    for origin in (
        "https://evil.example",
        "http://approve.example",
        "https://approve.example.evil.example",
        "",
    ):
        with pytest.raises(InputInvalidError):
            invited(relying_party=passkeys.RelyingParty(id=PARTY.id, origins=(origin,)))
    local = passkeys.RelyingParty(id="localhost", origins=("http://localhost:8080",))
    assert invited(relying_party=local).origins == local.origins
