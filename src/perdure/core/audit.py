"""Audit records: what the tamper-evident log says of actions and of whoever governs them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

AuditKind = Literal[
    "intended",  # it passed every gate; from here on it may have been dispatched
    "held",
    "refused",
    "ended",
    "doubted",
    "settled",  # a person or a probe has said what became of it
    "granted",  # somebody has signed a decision
    "key",
    "policy",
    "containment",
    "configuration",
    "erased",  # the key of a subject is gone
]

_encoder = msgspec.json.Encoder(order="sorted")


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log. Names are ASCII and numbers are integers below 2^53, so that its JSON is RFC 8785.

    Attributes:
        kind: what happened.
        at_ms: when.
        run: whose action; empty for what is about no run.
        call: the number of the action's call.
        agent: the run's agent.
        what: ``tool`` or ``model``.
        name: the tool, model, key, scope or setting.
        state: the state of the action after it.
        codes: of the reasons, each with its rule.
        policy: the digest of the policies in force.
        tier: where it is executed: ``process`` without a wall.
        by: who decided, with commas between several.
        grant: the id of a grant.
        note: what there is to say, without personal data.
        sealed: SHA-256 of the encrypted details beside the log.
    """

    kind: AuditKind
    at_ms: int
    run: str = ""
    call: int = 0
    agent: str = ""
    what: str = ""
    name: str = ""
    state: str = ""
    codes: tuple[str, ...] = ()
    policy: str = ""
    tier: str = ""
    by: str = ""
    grant: str = ""
    note: str = ""
    sealed: str = ""

    def encode(self) -> bytes:
        """Its bytes in the log."""
        return _encoder.encode(self)


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """A record in its place: ``index`` counts from 0."""

    index: int
    leaf: bytes

    @property
    def data(self) -> dict[str, Any]:
        """What it says."""
        found: dict[str, Any] = msgspec.json.decode(self.leaf)
        return found


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A signed head of the log, as text (C2SP signed note)."""

    size: int
    note: str
    at_ms: int
