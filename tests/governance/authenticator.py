"""An authenticator in software: what a security key and a browser do together, with real CBOR, COSE and signatures."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from joserfc.jwk import ECKey, OKPKey

from perdure.governance import passkeys

PARTY = passkeys.RelyingParty(id="approve.example", origins=("https://approve.example",))
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authenticator:
    """One passkey: its key, its counter, its flags."""

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

    def cose(self) -> dict[int, Any]:
        """The public key (RFC 9053)."""

        def part(name: str) -> bytes:
            return base64.urlsafe_b64decode(self.jwk[name] + "=")

        if self.jwk["kty"] == "OKP":
            return {1: 1, 3: -8, -1: 6, -2: part("x")}
        return {1: 2, 3: -7, -1: 1, -2: part("x"), -3: part("y")}

    def _client(self, kind: str, challenge: str, options: dict[str, Any]) -> bytes:
        data = {"type": kind, "challenge": challenge, "origin": options["origin"], **options["more"]}
        return json.dumps(data).encode()

    def create(self, options: dict[str, Any], **changes: Any) -> str:
        """What `navigator.credentials.create` gives for these options, as `toJSON` writes it."""
        import cbor2  # comes with the extra `passkeys`

        chosen: dict[str, Any] = {
            "origin": f"https://{options['rp']['id']}", "rp": options["rp"]["id"], "flags": PRESENT | VERIFIED, "more": {},
            "type": "webauthn.create", "challenge": options["challenge"], "cose": self.cose(), "format": "none",
        }  # fmt: skip
        chosen |= changes
        client = self._client(chosen["type"], chosen["challenge"], chosen)
        credential = base64.urlsafe_b64decode(self.id + "=")
        data = hashlib.sha256(chosen["rp"].encode()).digest()
        data += struct.pack(">BI", chosen["flags"] | ATTESTED, self.count)
        data += bytes(15) + b"\x01" + struct.pack(">H", len(credential)) + credential
        data += cbor2.dumps(chosen["cose"])
        statement: dict[str, Any] = {}
        if chosen["format"] == "packed":
            signed = self.sign(data + hashlib.sha256(client).digest())
            statement = {"alg": self.cose()[3], "sig": chosen.get("sig", signed)}
        attestation = cbor2.dumps({"fmt": chosen["format"], "attStmt": statement, "authData": data})
        response = {
            "clientDataJSON": b64(client),
            "attestationObject": b64(attestation),
            "transports": ["usb"],
        }
        return json.dumps(
            {"id": self.id, "rawId": self.id, "type": "public-key", "response": response, "clientExtensionResults": {}}
        )  # fmt: skip

    def get(self, challenge: bytes, **changes: Any) -> dict[str, str]:
        """The response to a challenge."""
        options: dict[str, Any] = {
            "origin": PARTY.origins[0], "rp": PARTY.id, "flags": PRESENT | VERIFIED, "type": "webauthn.get", "more": {},
        }  # fmt: skip
        options |= changes
        self.count += 1
        count = options.get("count", self.count)
        client = self._client(options["type"], b64(challenge), options)
        data = hashlib.sha256(options["rp"].encode()).digest() + struct.pack(">BI", options["flags"], count)
        signature = self.sign(data + hashlib.sha256(client).digest())
        return {"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature)}

    def answer(self, options: dict[str, Any], **changes: Any) -> str:
        """What `navigator.credentials.get` gives for these options, as `toJSON` writes it."""
        credential = changes.pop("id", self.id)
        response = self.get(base64.urlsafe_b64decode(options["challenge"] + "="), **changes)
        return json.dumps(
            {"id": credential, "rawId": credential, "type": "public-key", "authenticatorAttachment": "cross-platform",
             "clientExtensionResults": {}, "response": {**response, "userHandle": b64(self.name.encode())}}
        )  # fmt: skip
