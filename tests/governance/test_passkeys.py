"""Passkeys: real assertions, made by an authenticator in software, over the statement that a JWS signs."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from joserfc.jwk import ECKey, OKPKey

from perdure.core.errors import InputInvalidError
from perdure.core.verdicts import Demand
from perdure.governance import grant_errors as errors
from perdure.governance import passkeys
from perdure.governance.claims import ActionClaim
from perdure.governance.grants import sign, statement_of
from perdure.governance.keys import private_key, public_record

pytest.importorskip("webauthn")
NOW = 1_800_000_000_000
PARTY = passkeys.RelyingParty(id="approve.example", origins=("https://approve.example",))
CLAIM = ActionClaim(
    run="r1", seq=3, tool="pay", tool_digest="t" * 64, arguments={"to": "acme", "cents": 120_000},
    principals=("agent:clerk", "user:ute"), policy="p" * 64,
)  # fmt: skip


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authenticator:
    """What a security key does: the counter, the flags, the signature."""

    def __init__(self, kind: str, name: str) -> None:
        self.name, self.count, self.id = name, 0, b64(hashlib.sha256(name.encode()).digest())
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "es256"
            else ed25519.Ed25519PrivateKey.generate()
        )
        imported: Any = (ECKey if kind == "es256" else OKPKey).import_key(self.key)
        self.jwk: dict[str, Any] = imported.as_dict(private=False)
        self.private: dict[str, Any] = imported.as_dict(private=True)

    def sign(self, data: bytes) -> bytes:
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        found: bytes = self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        return found

    def get(self, challenge: bytes, **changes: Any) -> dict[str, str]:
        options: dict[str, Any] = {"origin": PARTY.origins[0], "rp": PARTY.id, "flags": 0x05, "type": "webauthn.get", "more": {}}  # fmt: skip
        options |= changes
        self.count += 1
        count = options.get("count", self.count)
        client = json.dumps(
            {
                "type": options["type"],
                "challenge": b64(challenge),
                "origin": options["origin"],
                **options["more"],
            }
        ).encode()
        data = hashlib.sha256(options["rp"].encode()).digest() + struct.pack(">BI", options["flags"], count)
        signature = self.sign(data + hashlib.sha256(client).digest())
        return {"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature)}

    def record(self, **changes: Any) -> Any:
        made = passkeys.passkey_record(self.jwk, self.id, self.name, ["finance"], now_ms=1)
        return msgspec.structs.replace(made, **changes)


def statement(**changes: Any) -> Any:
    options: dict[str, Any] = {"audience": "here", "jti": "j1", "now_s": NOW // 1000, "decision": "approve"}
    return statement_of(CLAIM, (), **{**options, **changes})


def verified(*envelopes: str, records: Any, quorum: int = 1, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "relying_party": PARTY, "claim": CLAIM, "reasons": (), "keys": {key.kid: key for key in records},
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
    with pytest.raises(errors.GrantSignatureInvalidError, match="sign count"):
        verified(first, records=[counted])
    assert verified(made(device), records=[counted]).sign_counts[kid] == 2
    with pytest.raises(errors.GrantSignatureInvalidError, match="sign count"):
        verified(made(device, count=0), records=[counted])


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
        {},
    ]
    for jwk in wrong:
        with pytest.raises(InputInvalidError):
            passkeys.passkey_record(jwk, device.id, "anna", ["finance"], now_ms=1)
    for credential, roles in (("", ["finance"]), ("=", ["finance"]), (device.id, []), (device.id, "finance")):
        with pytest.raises(InputInvalidError):
            passkeys.passkey_record(device.jwk, credential, "anna", roles, now_ms=1)
