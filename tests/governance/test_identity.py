"""Run tokens: what is refused, by its own code, and that delegation never gives more than there was."""

from __future__ import annotations

import base64
import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws

from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError, TokenRefusedError
from perdure.core.principals import CHAIN_MAX, Principal
from perdure.governance import identity_errors as errors
from perdure.governance.identity import (
    TOKEN_BYTES_MAX,
    Mandate,
    RunIdentity,
    allows,
    bundle,
    delegate,
    issue,
    key_pair,
    read_bundle,
    root,
    shrink,
    verify,
)
from perdure.governance.keys import private_key

NOW = 1_700_000_000_123
DOMAIN = "perdure.example"
KEY = key_pair(b"1" * 32)
OTHER = key_pair(b"2" * 32)
KEYS = bundle(DOMAIN, [KEY])
USER = Principal(kind="user", name="ana@example.org", groups=("finance", "eu"))
CHAIN = (
    Principal(kind="agent", name="desk ü_1", run="abc.1", groups=("worker",)),
    Principal(kind="agent", name="boss", run="abc"),
    USER,
)
MANDATE = root(CHAIN, ["github.*", "look"], now_ms=NOW)


def token(mandate: Mandate = MANDATE, **changed: Any) -> str:
    given = {
        "trust_domain": DOMAIN,
        "audience": "store",
        "fence": 3,
        "attempt": 2,
        "token_id": "j",
        "now_ms": NOW,
    }
    return issue(mandate, changed.pop("key", KEY), **{**given, **changed})


def read(text: str, **changed: Any) -> RunIdentity:
    return verify(
        text, **{"keys": KEYS, "audience": "store", "run": "abc.1", "fence": 3, "now_ms": NOW, **changed}
    )


def refused(text: str, **changed: Any) -> str:
    with pytest.raises(TokenRefusedError) as caught:
        read(text, **changed)
    return caught.value.code


def parts(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second, _ = text.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "==")) for part in (first, second))


def signed(claims: Any, header: dict[str, Any] | None = None, key: Any = KEY) -> str:
    """A token with these claims, well signed."""
    head = {"alg": "Ed25519", "kid": key.thumbprint(), "typ": "perdure-run+jwt", **(header or {})}
    data = claims if isinstance(claims, bytes) else canonical(claims)
    registry = jws.JWSRegistry(algorithms=["Ed25519"], strict_check_header=False)
    return jws.serialize_compact(head, data, key, registry=registry)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# -- what it says
def test_a_token_says_who_acts_for_whom() -> None:
    found = read(token(), attempt=2)
    assert found.workload.uri == "spiffe://perdure.example/agent/desk_20_c3_bc__1/run/abc.1"
    assert (found.run, found.agent, found.fence, found.attempt) == ("abc.1", "desk ü_1", 3, 2)
    assert found.chain == CHAIN and found.scope == ("github.*", "look")
    assert (found.issued_ms, found.expires_ms) == (NOW // 1000 * 1000, NOW // 1000 * 1000 + 300_000)


def test_the_wire_form_is_a_jwt_that_others_read() -> None:
    text = token()
    header, claims = parts(text)
    assert header == {"alg": "Ed25519", "kid": KEY.thumbprint(), "typ": "perdure-run+jwt"}
    assert claims["iss"] == "spiffe://perdure.example" and claims["aud"] == "store"
    assert claims["scope"] == "github.* look" and claims["exp"] - claims["iat"] == 300
    act = claims["act"]
    assert act["sub"] == claims["sub"]  # RFC 8693: the outermost actor is the current one
    assert act["act"]["sub"] == "spiffe://perdure.example/agent/boss/run/abc"
    assert act["act"]["act"] == {"sub": "user:ana_40example.org", "groups": ["finance", "eu"]}
    jwk = json.loads(KEYS.jwks())["keys"][0]
    from joserfc.jwk import OKPKey

    assert jws.deserialize_compact(text, OKPKey.import_key(jwk), ["Ed25519"]).payload == canonical(claims)
    assert KEY.thumbprint() == jwk["kid"] and "d" not in jwk


def test_it_never_outlives_its_mandate_and_lasts_an_hour_at_most() -> None:
    for life in (1_000, 1_999, 3_600_000):
        mandate = root(CHAIN, [], now_ms=NOW, life_ms=life)
        assert read(token(mandate)).expires_ms <= mandate.expires_ms
    for life in (0, 999, 3_600_001):
        with pytest.raises(InputInvalidError):
            root(CHAIN, [], now_ms=NOW, life_ms=life)
    late = Mandate(chain=CHAIN, scope=(), expires_ms=NOW + 3_602_000)
    for mandate in (late, Mandate(chain=CHAIN, scope=(), expires_ms=NOW)):
        with pytest.raises(InputInvalidError):
            token(mandate)


# -- what is refused
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"audience": "model"}, "token-audience"),
        ({"run": "abc"}, "token-run"),
        ({"fence": 4}, "token-stale"),
        ({"fence": 2}, "token-stale"),
        ({"attempt": 3}, "token-stale"),
        ({"now_ms": NOW + 300_000}, "token-expired"),
        ({"now_ms": NOW - 61_000}, "token-not-yet-valid"),
        ({"keys": bundle(DOMAIN, [OTHER])}, "token-signature"),
        ({"keys": bundle("other.example", [KEY])}, "token-malformed"),
    ],
)
def test_each_refusal_has_its_code(changed: dict[str, Any], code: str) -> None:
    assert refused(token(), **changed) == code


def test_time_is_exact_at_the_end_and_lenient_at_the_beginning() -> None:
    text = token()
    end = read(text).expires_ms
    assert read(text, now_ms=end - 1)
    assert refused(text, now_ms=end) == "token-expired"
    assert read(text, now_ms=NOW // 1000 * 1000 - 60_000)


def test_a_changed_token_is_refused() -> None:
    text = token()
    first, second, third = text.split(".")
    _, claims = parts(text)
    forged = b64(canonical({**claims, "scope": "*"}))
    assert refused(f"{first}.{forged}.{third}") == "token-signature"
    stolen = signed(claims, key=OTHER).split(".")[2]
    assert refused(f"{first}.{second}.{stolen}") == "token-signature"
    assert refused(signed(claims, key=OTHER)) == "token-signature"
    assert refused(signed(claims, {"kid": KEY.thumbprint()}, key=OTHER)) == "token-signature"


@pytest.mark.parametrize(
    "head",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "EdDSA"},
        {"typ": "JWT"},
        {"typ": "perdure-grant+jws"},
        {"crit": ["b64"], "b64": False},
        {"jwk": {"kty": "OKP"}},
        {"jku": "https://evil.example"},
    ],
)
def test_a_header_is_exactly_what_it_should_be(head: dict[str, Any]) -> None:
    _, second, third = token().split(".")
    header = {"alg": "Ed25519", "kid": KEY.thumbprint(), "typ": "perdure-run+jwt", **head}
    assert refused(f"{b64(canonical(header))}.{second}.{third}") == "token-malformed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "é.b.c",
        "x" * (TOKEN_BYTES_MAX + 1),
        "e30.e30.",
        "a.b.c.d",
        "prd-run-0123",
        "=.=.=",
    ],
)
def test_rubbish_is_refused(text: str) -> None:
    assert refused(text) == "token-malformed"


def test_base64_has_one_spelling() -> None:
    first, second, third = token().split(".")
    assert refused(f"{first}=.{second}.{third}") == "token-malformed"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = third[:-1] + alphabet[alphabet.index(third[-1]) ^ 1]  # the same bytes for a lenient reader
    assert refused(f"{first}.{second}.{twin}") == "token-malformed"
    assert refused(f"{first}.{second}.{third}\n") == "token-malformed"


@pytest.mark.parametrize(
    "changed",
    [
        {"sub": "spiffe://perdure.example/agent/boss/run/abc"},
        {"sub": "spiffe://evil.example/agent/desk/run/abc.1"},
        {"sub": "desk"},
        {"run": "abc"},
        {"iss": "spiffe://evil.example"},
        {"iss": "https://perdure.example"},
        {"exp": 1_700_003_601},
        {"exp": 1_700_000_000},
        {"nbf": 1_600_000_000},
        {"nbf": 1_700_000_300},
        {"iat": -1, "nbf": -1, "exp": 3},
        {"fence": -1},
        {"fence": 2**60},
        {"fence": "3"},
        {"attempt": True},
        {"aud": ["store", "model"]},
        {"jti": ""},
        {"scope": "look github.*"},
        {"scope": "look look"},
        {"scope": "look  github.*"},
        {"scope": "[a-z]"},
        {"scope": None},
        {"more": 1},
        {"act": None},
        {"act": {"sub": "user:ana"}},
        {"act": {"sub": "user:ana", "act": {"sub": "spiffe://perdure.example/agent/boss/run/abc"}}},
    ],
    ids=str,
)  # fmt: skip
def test_claims_that_cannot_be_are_refused_even_if_signed(changed: dict[str, Any]) -> None:
    _, claims = parts(token())
    if changed.get("fence") == 2**60:
        data = json.dumps({**claims, **changed}, sort_keys=True, separators=(",", ":")).encode()
        assert refused(signed(data)) == "token-malformed"
        return
    assert refused(signed({**claims, **changed})) == "token-malformed"


def test_links_that_cannot_be_are_refused_even_if_signed() -> None:
    _, claims = parts(token())
    own = {"sub": claims["sub"]}
    for link in (
        {"sub": "spiffe://evil.example/agent/boss"},
        {"sub": "group:finance"},
        {"sub": "user:"},
        {"sub": "user:_41na"},
        {"sub": "user:ana", "groups": ["g"] * 33},
        {"sub": "user:ana", "role": "root"},
    ):
        assert refused(signed({**claims, "act": {**own, "act": link}})) == "token-malformed"
    deep: dict[str, Any] = {"sub": "user:ana"}
    for _ in range(CHAIN_MAX - 1):
        deep = {**own, "act": deep}
    assert len(read(signed({**claims, "act": deep})).chain) == CHAIN_MAX
    assert refused(signed({**claims, "act": {**own, "act": deep}})) == "token-malformed"
    bottomless = b'{"act":' + b'{"act":' * 900 + b"1" + b"}" * 901
    assert refused(signed(bottomless)) == "token-malformed"


def test_a_member_that_is_there_twice_is_refused() -> None:
    _, claims = parts(token())
    twice = canonical(claims)[:-1] + b',"sub":"' + claims["sub"].encode() + b'"}'
    assert refused(signed(twice)) == "token-malformed"
    spaced = json.dumps(claims, sort_keys=True).encode()
    assert refused(signed(spaced)) == "token-malformed"


def test_what_cannot_be_issued() -> None:
    for changed in (
        {"audience": ""},
        {"token_id": ""},
        {"fence": -1},
        {"attempt": -1},
        {"trust_domain": "A.B"},
    ):
        with pytest.raises(InputInvalidError):
            token(**changed)
    for chain in (
        (),
        (USER,),
        (Principal(kind="agent", name="desk"),),
        (*CHAIN, *[USER] * 6),
        (CHAIN[0], Principal(kind="user", name="ana", run="abc")),
        (CHAIN[0], Principal(kind="user", name="")),
        (CHAIN[0], Principal(kind="user", name="ana", groups=("g",) * 33)),
    ):
        with pytest.raises(InputInvalidError):
            root(chain, [], now_ms=NOW)
    wide = tuple(Principal(kind="user", name="n" * 200, groups=("g" * 200,) * 32) for _ in range(2))
    with pytest.raises(InputInvalidError, match="bytes"):
        token(root((CHAIN[0], *wide), [], now_ms=NOW))


# -- keys
def test_keys() -> None:
    assert key_pair(b"1" * 32).thumbprint() == KEY.thumbprint() != OTHER.thumbprint()
    for seed in (b"", b"1" * 31, b"1" * 33):
        with pytest.raises(InputInvalidError):
            key_pair(seed)
    again = read_bundle(DOMAIN, bundle(DOMAIN, [KEY, OTHER, KEY]).jwks())
    assert [name for name, _ in again.keys] == [KEY.thumbprint(), OTHER.thumbprint()]
    assert read(token(), keys=again)


def test_a_bundle_takes_only_public_keys_that_nobody_else_can_sign_for() -> None:
    public = KEY.as_dict(private=False)
    renamed = read_bundle(DOMAIN, json.dumps({"keys": [{**public, "kid": OTHER.thumbprint()}]}))
    assert renamed.find(OTHER.thumbprint()) is None  # names are not believed
    weak = {"kty": "OKP", "crv": "Ed25519", "x": b64((1).to_bytes(32, "little"))}
    for listed in (
        [KEY.as_dict(private=True)],
        [weak],
        [{**public, "crv": "X25519"}],
        [{"kty": "RSA"}],
        [{**public, "x": "short"}],
        [{"kty": "OKP", "crv": "Ed25519"}],
        ["text"],
    ):
        with pytest.raises(InputInvalidError):
            read_bundle(DOMAIN, json.dumps({"keys": listed}))
    many = [private_key(number.to_bytes(32, "big")) for number in range(101)]
    with pytest.raises(InputInvalidError):
        bundle(DOMAIN, many)
    for text in ("", "{}", "[]", '{"keys": 3}'):
        with pytest.raises(InputInvalidError):
            read_bundle(DOMAIN, text)


# -- delegation
CHILD = Principal(kind="agent", name="clerk", run="abc.1.7")


def child(parent: Any = None, **changed: Any) -> Mandate:
    given = {"child": CHILD, "scope": ["github.issues"], "expires_ms": NOW + 60_000, "now_ms": NOW}
    return delegate(parent or read(token()), **{**given, **changed})


def test_a_child_gets_what_it_asks_for_within_what_its_parent_has() -> None:
    made = child()
    assert made.chain == (CHILD, *CHAIN) and made.scope == ("github.issues",)
    found = read(token(made), run="abc.1.7")
    assert found.chain[1:] == CHAIN and found.mandate.scope == made.scope
    assert found.workload.uri == "spiffe://perdure.example/agent/clerk/run/abc.1.7"


@pytest.mark.parametrize(
    "changed",
    [
        {"scope": ["gitlab.issues"]},
        {"scope": ["github.issues", "pay"]},
        {"scope": ["*"]},
        {"scope": ["git*"]},
        {"scope": ["*.issues"]},
        {"expires_ms": NOW + 300_001},
    ],
)
def test_a_child_that_asks_for_more_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(errors.DelegationExceedsError) as caught:
        child(**changed)
    assert caught.value.code == "delegation-exceeds"


def test_depth_is_bounded() -> None:
    mandate = root((Principal(kind="agent", name="a", run="r"),), ["*"], now_ms=NOW)
    for depth in range(1, CHAIN_MAX):
        mandate = child(mandate, child=Principal(kind="agent", name="a", run=f"r.{depth}"), scope=["*"])
    assert len(read(token(mandate), run=mandate.chain[0].run).chain) == CHAIN_MAX
    with pytest.raises(errors.DelegationExceedsError):
        child(mandate)


def test_a_delegation_that_cannot_be() -> None:
    with pytest.raises(errors.RunTokenExpiredError):
        child(now_ms=NOW + 300_000, expires_ms=NOW + 299_000)
    for changed in (
        {"expires_ms": NOW},
        {"child": USER},
        {"child": Principal(kind="agent", name="clerk")},
        {"child": Principal(kind="agent", name="other", run="abc")},
        {"scope": "github.issues"},
    ):
        with pytest.raises(InputInvalidError):
            child(**changed)


PATTERN = st.text("ab.*", min_size=1, max_size=5)
SCOPE = st.lists(PATTERN, max_size=5)
TOOLS = ["".join(letters) for size in range(1, 5) for letters in product("ab.", repeat=size)]


@settings(max_examples=300, deadline=None)
@given(SCOPE, SCOPE)
def test_what_shrink_leaves_is_in_both(parent: list[str], asked: list[str]) -> None:
    found = shrink(parent, asked)
    for tool in TOOLS:
        if allows(found, tool):
            assert allows(tuple(parent), tool) and allows(tuple(asked), tool)
    assert shrink(parent, found) == found


@settings(max_examples=300, deadline=None)
@given(SCOPE, st.lists(st.text("ab.", min_size=1, max_size=4), max_size=5))
def test_of_exact_names_shrink_leaves_all_that_the_parent_has(parent: list[str], asked: list[str]) -> None:
    assert set(shrink(parent, asked)) >= {tool for tool in asked if tool in parent}
    assert all(allows(shrink(parent, asked), tool) == allows(tuple(parent), tool) for tool in asked)


@settings(max_examples=150, deadline=None)
@given(SCOPE, st.lists(st.tuples(SCOPE, st.booleans(), st.integers(-2_000, 400_000)), max_size=10))
def test_no_sequence_of_delegations_widens_anything(
    first: list[str], steps: list[tuple[list[str], bool, int]]
) -> None:
    held = read(token(root(CHAIN[:1], first, now_ms=NOW)))
    for number, (asked, is_shrunk, life_ms) in enumerate(steps):
        wanted = shrink(held.scope, asked) if is_shrunk else tuple(asked)
        try:
            made = delegate(
                held, child=Principal(kind="agent", name="x", run=f"c{number}"), scope=wanted,
                expires_ms=NOW + life_ms, now_ms=NOW,
            )  # fmt: skip
            text = token(made)
        except (errors.DelegationExceedsError, InputInvalidError):
            continue
        found = read(text, run=f"c{number}")
        assert found.expires_ms <= made.expires_ms <= held.expires_ms
        assert found.chain[1:] == held.chain and len(found.chain) <= CHAIN_MAX
        assert all(allows(held.scope, tool) for tool in TOOLS if allows(found.scope, tool))
        held = found
    assert all(allows(tuple(first), tool) for tool in TOOLS if allows(held.scope, tool))


@pytest.mark.parametrize(
    ("parent", "asked", "left"),
    [
        (["github.*"], ["github.issues"], ("github.issues",)),
        (["github.issues"], ["github.*"], ("github.issues",)),
        (["github.*"], ["*"], ("github.*",)),
        (["*"], ["github.*", "look"], ("github.*", "look")),
        (["github.*"], ["gitlab.*"], ()),
        (["a*"], ["*b"], ()),  # they overlap, and neither holds the other
        (["a*"], ["a**"], ("a*",)),
        (["github.*"], ["githubX"], ()),
        (["github.*"], ["GitHub.issues"], ()),
        ([], ["*"], ()),
        (["*"], [], ()),
    ],
)
def test_shrink(parent: list[str], asked: list[str], left: tuple[str, ...]) -> None:
    assert shrink(parent, asked) == left


def test_what_is_no_scope() -> None:
    for patterns in (
        ["[ab]"],
        ["a?"],
        ["a b"],
        [""],
        ["ü"],
        ["a" * 129],
        [f"t{n}" for n in range(65)],
        "look",
    ):
        with pytest.raises(InputInvalidError):
            shrink(patterns, ["*"])
    assert not allows(("*",), "") and not allows(("*",), "a b") and not allows((), "look")
