"""Rows about approval and containment: registered public keys, grants as they arrived, containments in force."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["watch", "restrict", "hold", "stop"]
LEVELS: tuple[Level, ...] = ("watch", "restrict", "hold", "stop")  # each is stronger than those before it


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The public key of an approver.

    Attributes:
        kid: its RFC 7638 thumbprint.
        person: who holds it; two keys of one person are one vote.
        roles: what its holder may approve.
        kind: ``ed25519``, or ``passkey`` (WebAuthn).
        jwk: the public key as JSON (RFC 7517).
        created_ms: when it was registered.
        revoked_ms: from when on it counts for nothing.
        sign_count: of a passkey, the last counter that was seen.
    """

    kid: str
    person: str
    roles: tuple[str, ...]
    kind: Literal["ed25519", "passkey"]
    jwk: str
    created_ms: int
    revoked_ms: int | None = None
    sign_count: int = 0


class GrantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A signed decision about one held action, as it arrived; ``used_ms`` says that it released one."""

    jti: str
    run: str
    call: int
    token: str
    at_ms: int
    used_ms: int | None = None


class Containment(msgspec.Struct, frozen=True, kw_only=True):
    """One containment in force.

    Attributes:
        scope: ``*``, ``agent:NAME``, ``run:ID`` (with everything below it) or ``tool:NAME``.
        level: ``watch``, ``restrict`` (reads only), ``hold`` (whatever is no read needs a grant), ``stop``.
        by: who or what set it.
        reason: why.
        at_ms: since when.
        until_ms: until when, if it ends by itself.
    """

    scope: str
    level: Level
    by: str
    reason: str
    at_ms: int
    until_ms: int | None = None
