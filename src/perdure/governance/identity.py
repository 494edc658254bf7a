"""Run tokens for other processes: who a run is and what it may do, signed.

A token is a JWT (RFC 7519) in compact form, signed with ``alg: Ed25519`` (RFC 9864) and typed ``perdure-run+jwt`` (RFC 8725, 3.11).
It is bound to one run, one attempt, one fence and one audience, and holds the run's mandate
(:mod:`perdure.governance.mandates`). Pure: time and chance are arguments.

The chain is nested as RFC 8693, 4.1, nests actors: outermost the current one, which is the run itself (``sub``), innermost where the
authority came from. By that section a reader goes by ``sub`` and the outermost ``act`` alone; the others are information.

Where the verifier is the runtime that made the run, tokens are not needed: see :mod:`perdure.hosting.tokens`.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError
from perdure.core.principals import Chain, Principal
from perdure.governance import identity_errors as errors
from perdure.governance.identity_keys import Bundle
from perdure.governance.identity_keys import bundle as bundle
from perdure.governance.identity_keys import key_pair as key_pair
from perdure.governance.identity_keys import read_bundle as read_bundle
from perdure.governance.mandates import LIFE_MS_MAX, Mandate, RunIdentity, checked_links
from perdure.governance.mandates import delegate as delegate
from perdure.governance.mandates import root as root
from perdure.governance.scopes import Scope, checked_scope
from perdure.governance.scopes import allows as allows
from perdure.governance.scopes import shrink as shrink
from perdure.governance.spiffe import SCHEME, Workload, checked_trust_domain, decoded, encoded, read_workload

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey

TYPE = "perdure-run+jwt"
ALGORITHM = "Ed25519"
SKEW_S = 60  # how far the clock of the issuer may be ahead
TOKEN_BYTES_MAX = 8_192  # what proxies commonly take in one header


class _Actor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A link of the chain as RFC 8693, 4.1, nests them: the current actor outermost, the earliest innermost."""

    sub: str
    groups: tuple[str, ...] = ()
    act: _Actor | None = None


class _Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in seconds of the epoch."""

    iss: str
    sub: str
    aud: str
    run: str
    fence: int
    attempt: int
    jti: str
    iat: int
    nbf: int
    exp: int
    act: _Actor
    scope: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


def issue(
    mandate: Mandate,
    key: OKPKey,
    *,
    trust_domain: str,
    audience: str,
    fence: int,
    attempt: int,
    token_id: str,
    now_ms: int,
) -> str:
    """A token for one attempt of a run. It is dated in whole seconds, rounded down, so that it never outlives its mandate.

    Args:
        mandate: what the run may do.
        key: the private key of the runtime, of the trust domain's :class:`Bundle`.
        trust_domain: the issuer (``iss`` is ``spiffe://<trust domain>``).
        audience: who it is for; nobody else takes it.
        fence: of the lease in force.
        attempt: of the program, from 1; 0 where there are none.
        token_id: unique; from ``Entropy``.
        now_ms: the time.

    Raises:
        InputInvalidError: the mandate is over or lasts for more than an hour, a part cannot be, or the token would have
            more than 8,192 bytes.
    """
    from joserfc import jws  # a tenth of a second: for the first token, not for every start

    chain, now_s, end_s = checked_links(mandate.chain), now_ms // 1000, mandate.expires_ms // 1000
    if not now_s < end_s <= now_s + LIFE_MS_MAX // 1000:
        raise InputInvalidError(f"a token lasts 1 to {LIFE_MS_MAX // 1000} s, found {end_s - now_s}")
    if not audience or not token_id or fence < 0 or attempt < 0:
        raise InputInvalidError("a token needs an audience, an id, and a fence and an attempt from 0 on")
    claims = _Claims(
        iss=_issuer(trust_domain), sub=_subject(chain[0], trust_domain), aud=audience, run=chain[0].run, fence=fence,
        attempt=attempt, jti=token_id, iat=now_s, nbf=now_s, exp=end_s, act=_nested(chain, trust_domain),
        scope=" ".join(checked_scope(mandate.scope)),
    )  # fmt: skip
    header = {"alg": ALGORITHM, "kid": key.thumbprint(), "typ": TYPE}
    token = jws.serialize_compact(header, canonical(msgspec.to_builtins(claims)), key, [ALGORITHM])
    if len(token) > TOKEN_BYTES_MAX:
        message = f"the token would have {len(token):,} bytes, which is over {TOKEN_BYTES_MAX:,}; use globs and fewer groups"
        raise InputInvalidError(message)
    return token


def verify(
    token: str,
    *,
    keys: Bundle,
    audience: str,
    run: str,
    fence: int,
    now_ms: int,
    attempt: int | None = None,
) -> RunIdentity:
    """Who shows a token. In this order: shape, signature, claims, audience, time, run, fence, attempt.

    Args:
        token: compact JWS.
        keys: those of the trust domain; no key of an approver must be among them.
        audience: who verifies.
        run: the run that the request is about.
        fence: the fence in force for that run.
        now_ms: the time.
        attempt: the attempt in force, where there is one.

    Raises:
        TokenRefusedError: it does not count; the subclass (:mod:`perdure.governance.identity_errors`) says why.
    """
    claims = _signed(token, keys)
    workload, chain, scope = _meaning(claims, keys.trust_domain)
    if claims.aud != audience:
        raise errors.RunTokenAudienceError("the run token is meant for somebody else", audience=claims.aud)
    if max(claims.iat, claims.nbf) * 1000 > now_ms + SKEW_S * 1000:
        raise errors.RunTokenNotYetValidError(f"the run token is dated more than {SKEW_S} s in the future")
    if now_ms >= claims.exp * 1000:
        raise errors.RunTokenExpiredError("the time of the run token is over; get a new one")
    if claims.run != run:
        raise errors.RunTokenRunError("the run token is of another run than the request names")
    if claims.fence != fence:
        message = f"the run token was made under fence {claims.fence}, in force is {fence}; the run went on elsewhere"
        raise errors.RunTokenStaleError(message, fence=claims.fence)
    if attempt is not None and claims.attempt != attempt:
        message = f"the run token was made for attempt {claims.attempt}, under way is {attempt}"
        raise errors.RunTokenStaleError(message, attempt=claims.attempt)
    return RunIdentity(
        workload=workload, audience=claims.aud, fence=claims.fence, attempt=claims.attempt, token_id=claims.jti,
        issued_ms=claims.iat * 1000, not_before_ms=claims.nbf * 1000, expires_ms=claims.exp * 1000, chain=chain,
        scope=scope,
    )  # fmt: skip


def _signed(token: str, keys: Bundle) -> _Claims:
    """The claims, once the signature is known to be right: what anybody could have written is not looked at."""
    from joserfc import jws
    from joserfc.errors import JoseError

    if not token.isascii() or len(token) > TOKEN_BYTES_MAX or token.count(".") != 2:
        raise errors.RunTokenMalformedError("a run token is a compact JWS of at most 8,192 characters")
    first, second, third = (_bytes(part) for part in token.split("."))
    header: _Header = _exactly(first, _Header)
    if (header.alg, header.typ) != (ALGORITHM, TYPE) or len(third) != 64:
        message = f"expected `{ALGORITHM}` and `{TYPE}`, found `{header.alg!r:.40}` and `{header.typ!r:.40}`"
        raise errors.RunTokenMalformedError(message)
    key = keys.find(header.kid)
    if key is None:
        raise errors.RunTokenSignatureError(
            f"no key `{header.kid!r:.60}` is of trust domain `{keys.trust_domain}`"
        )
    try:
        jws.deserialize_compact(token, key, [ALGORITHM])
    except (JoseError, ValueError) as error:
        raise errors.RunTokenSignatureError("the signature of the run token is wrong") from error
    claims: _Claims = _exactly(second, _Claims)
    return claims


def _meaning(claims: _Claims, trust_domain: str) -> tuple[Workload, Chain, Scope]:
    """The parts of claims that are structured; every agent must be of the trust domain whose key has signed."""
    try:
        workload = read_workload(claims.sub)
        links: list[Principal] = []
        actor: _Actor | None = claims.act
        while actor is not None:
            links.append(_principal(actor, trust_domain))
            actor = actor.act
        chain = checked_links(tuple(links))
        scope = checked_scope(claims.scope.split(" ") if claims.scope else ())
    except InputInvalidError as error:
        raise errors.RunTokenMalformedError(f"a claim of the run token cannot be: {error.message}") from error
    is_whole = (
        claims.iss == _issuer(trust_domain)
        and claims.act.sub == claims.sub  # the run itself is the current actor
        and workload.run == claims.run
        and " ".join(scope) == claims.scope
        and 0 < claims.exp - claims.iat <= LIFE_MS_MAX // 1000
        and claims.iat <= claims.nbf < claims.exp
        and min(claims.fence, claims.attempt, claims.iat) >= 0
        and bool(claims.jti)
    )
    if not is_whole:
        raise errors.RunTokenMalformedError("the claims of the run token contradict each other")
    return workload, chain, scope


def _issuer(trust_domain: str) -> str:
    return f"{SCHEME}{checked_trust_domain(trust_domain)}"


def _nested(chain: Chain, trust_domain: str) -> _Actor:
    found: _Actor | None = None
    for link in reversed(chain[1:]):
        found = _Actor(_subject(link, trust_domain), link.groups, found)
    return _Actor(_subject(chain[0], trust_domain), chain[0].groups, found)


def _subject(link: Principal, trust_domain: str) -> str:
    if link.kind == "agent":
        return Workload(trust_domain, link.name, link.run).uri
    return f"{link.kind}:{encoded(link.name)}"


def _principal(actor: _Actor, trust_domain: str) -> Principal:
    kind, _, name = actor.sub.partition(":")
    if kind == "user":
        return Principal(kind="user", name=decoded(name), groups=actor.groups)
    if kind == "service":
        return Principal(kind="service", name=decoded(name), groups=actor.groups)
    found = read_workload(actor.sub)
    if found.trust_domain != trust_domain:
        raise InputInvalidError(f"agent `{actor.sub:.120}` is not of trust domain `{trust_domain}`")
    return Principal(kind="agent", name=found.agent, run=found.run, groups=actor.groups)


def _bytes(part: str) -> bytes:
    try:
        data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise errors.RunTokenMalformedError("a part of the run token is not base64url") from error
    if urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise errors.RunTokenMalformedError("a part of the run token is not base64url in its only form")
    return data


def _exactly(data: bytes, kind: type[Any]) -> Any:
    """A part of a token, decoded. Only its canonical form (RFC 8785) is taken, so that every reader reads the same."""
    try:
        found = msgspec.json.decode(data, type=kind)
        is_canonical = canonical(msgspec.to_builtins(found)) == data
    except (msgspec.DecodeError, ValueError, RecursionError, InputInvalidError) as error:
        raise errors.RunTokenMalformedError("a part of the run token cannot be read") from error
    if not is_canonical:
        raise errors.RunTokenMalformedError("a part of the run token is not in canonical form (RFC 8785)")
    return found
