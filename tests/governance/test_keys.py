"""Keys that would let anybody sign are not registered, and others read what we sign."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc import jws
from joserfc.jwk import OKPKey

from perdure.core.errors import InputInvalidError
from perdure.governance.grants import add_signature, sign
from perdure.governance.keys import from_jwks, private_key
from perdure.governance.statements import Statement

FIELD = 2**255 - 19
EIGHTH = 2707385501144840649318225287225658788936804267575313519463743609750303021456
HEIGHTS = [0, 1, FIELD - 1, EIGHTH, FIELD - EIGHTH, FIELD, FIELD + 1]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("sign_bit", [0, 1])
@pytest.mark.parametrize("height", HEIGHTS)
def test_points_of_small_order_are_no_keys(height: int, sign_bit: int) -> None:
    x = (height | sign_bit << 255).to_bytes(32, "little")
    item = {"kty": "OKP", "crv": "Ed25519", "x": b64(x), "person": "eve", "roles": ["finance"]}
    with pytest.raises(InputInvalidError):
        from_jwks(json.dumps({"keys": [item]}), 1)


def test_why_anybody_could_sign_for_such_a_key() -> None:
    one = (1).to_bytes(32, "little")
    try:
        Ed25519PublicKey.from_public_bytes(one).verify(one + bytes(32), b"whatever")
    except InvalidSignature:
        pytest.skip("this build of the library refuses such keys itself")


def test_any_reader_of_rfc_7515_reads_a_grant() -> None:
    statement = Statement(
        typ="perdure-grant+jws",
        aud="a",
        jti="j",
        iat=1,
        nbf=1,
        exp=2,
        action="x",
        display="y",
        decision="reject",
    )
    keys = [private_key(bytes([number]) * 32) for number in (1, 2)]
    token = json.loads(add_signature(sign(statement, keys[0]), keys[1]))
    by_kid = {key.thumbprint(): OKPKey.import_key(key.as_dict(private=False)) for key in keys}
    found = jws.deserialize_json(token, lambda one: by_kid[one.headers()["kid"]], ["Ed25519"])
    assert json.loads(found.payload or b"")["decision"] == "reject"
