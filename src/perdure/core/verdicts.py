"""What gates answer: verdicts with their reasons, and what must happen before a held action may go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

Kind = Literal["allow", "modify", "hold", "deny"]
STRICTER: tuple[Kind, ...] = ("allow", "modify", "hold", "deny")  # each wins over those before it
HOLD_MS = 24 * 3_600_000  # how long a held action waits for its grant


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why: a stable code, a sentence, and the policy or rule that says so."""

    code: str
    message: str
    rule: str = ""


class Demand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What releases a held action: signatures of so many different persons in a role.

    Attributes:
        roles: an approver must have one of them; the roles that it is escalated to come after them in ``escalation``.
        quorum: how many different persons must sign.
        deadline_ms: how long it waits, at each step of the escalation; then it is denied.
        escalation: roles that are asked in turn when a deadline passes.
    """

    roles: tuple[str, ...] = ("approver",)
    quorum: int = 1
    deadline_ms: int = HOLD_MS
    escalation: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One gate's answer, or that of all of them together.

    Attributes:
        kind: ``allow``, ``modify`` (go on with ``arguments``), ``hold`` (a grant is needed), ``deny``.
        reasons: every reason that counted.
        demands: for ``hold``, what releases it; every one of them must be met.
        arguments: for ``modify``, the arguments to go on with, as JSON.
        policy: the digest of the policies that were asked.
        obligations: what must be done if it goes on, such as ``{"sandbox": "gvisor"}``.
    """

    kind: Kind = "allow"
    reasons: tuple[Reason, ...] = ()
    demands: tuple[Demand, ...] = ()
    arguments: bytes | None = None
    obligations: Mapping[str, str] = msgspec.field(default_factory=dict)
    policy: str = ""

    @property
    def is_deny(self) -> bool:
        """Whether it must not happen."""
        return self.kind == "deny"

    @property
    def is_hold(self) -> bool:
        """Whether a grant is needed."""
        return self.kind == "hold"


ALLOW = Verdict()
TIERS = (
    "none",
    "process",
    "namespace",
    "gvisor",
    "microvm",
    "remote",
)  # of sandboxes, each a stronger wall than before it
CONTAINED = ("watch", "restrict")
STRONGER: Mapping[str, tuple[str, ...]] = {"sandbox": TIERS, "contain": CONTAINED}


def deny(code: str, message: str, rule: str = "") -> Verdict:
    """A refusal for one reason."""
    return Verdict(kind="deny", reasons=(Reason(code=code, message=message, rule=rule),))


def hold(code: str, message: str, demand: Demand | None = None, rule: str = "") -> Verdict:
    """A hold for one reason."""
    reason = Reason(code=code, message=message, rule=rule)
    return Verdict(kind="hold", reasons=(reason,), demands=(demand or Demand(),))


def both(first: Verdict, second: Verdict) -> Verdict:
    """The stricter of two, with the reasons and obligations of both; two holds ask for what each of them asks."""
    if first is ALLOW or second is ALLOW:
        return second if first is ALLOW else first
    kind = max(first.kind, second.kind, key=STRICTER.index)
    demands = first.demands + tuple(demand for demand in second.demands if demand not in first.demands)
    return Verdict(
        kind=kind,
        reasons=first.reasons + second.reasons,
        demands=demands if kind == "hold" else (),
        arguments=second.arguments or first.arguments,
        obligations=all_obligations((first.obligations, second.obligations)),
        policy=first.policy or second.policy,
    )


def all_obligations(asked: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What several ask for together, in whatever order: the strongest ``sandbox`` and ``contain``; of the others every part.

    Parts are joined by ``", "``, sorted. What is not known to be weaker counts as the strongest: nothing is lost to a misspelling.
    """
    found: dict[str, set[str]] = {}
    for one in asked:
        for name, value in one.items():
            parts = {value} if name in STRONGER else {item.strip() for item in value.split(",")} - {""}
            found.setdefault(name, set()).update(parts)
    return {
        name: max(values, key=lambda value: _strength(name, value))
        if name in STRONGER
        else ", ".join(sorted(values))
        for name, values in found.items()
    }


def _strength(name: str, value: str) -> tuple[int, str]:
    order = STRONGER[name]
    return (order.index(value) if value in order else len(order), value)
