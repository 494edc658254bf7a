"""What annotations of policies ask for: signatures before an action may go on, and what must be done when it does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from perdure.core.verdicts import HOLD_MS, TIERS, Demand, all_obligations
from perdure.governance.policy_errors import PolicyInvalidError

OBLIGATIONS = ("sandbox", "redact", "limit")
HOLD_DETAILS = ("quorum", "deadline", "escalate")  # say something about a `@hold`, and nothing without one
ANNOTATIONS = frozenset(("id", "hold", "reason", *HOLD_DETAILS, *OBLIGATIONS))
QUORUM_MAX = 16  # as many as a grant can have signatures
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def check_annotations(annotations: Mapping[str, str]) -> None:
    """Nothing if every annotation of a policy is known and can be followed.

    Raises:
        PolicyInvalidError: one is unknown, cannot be read, or does nothing where it is.
    """
    if unknown := sorted(set(annotations) - ANNOTATIONS):
        raise PolicyInvalidError(f"has `@{unknown[0]}`; known are {', '.join(sorted(ANNOTATIONS))}")
    if "hold" in annotations:
        demand_of(annotations)
    elif lost := [name for name in HOLD_DETAILS if name in annotations]:
        raise PolicyInvalidError(f"has `@{lost[0]}` without `@hold`, so nobody would be asked; add `@hold`")
    if "sandbox" in annotations and annotations["sandbox"] not in TIERS:
        raise PolicyInvalidError(
            f"has `@sandbox({annotations['sandbox']!r})`; expected one of {', '.join(TIERS)}"
        )
    if empty := [
        name for name in ("redact", "limit") if name in annotations and not _listed(annotations[name])
    ]:
        raise PolicyInvalidError(f"has `@{empty[0]}` without a value; say what")


def demand_of(annotations: Mapping[str, str]) -> Demand:
    """What the annotations of a policy with ``@hold`` ask for.

    Raises:
        PolicyInvalidError: a number or a time cannot be read.
    """
    roles = _listed(annotations["hold"]) or ("approver",)
    quorum = annotations.get("quorum", "1")
    if not re.fullmatch(r"[0-9]{1,4}", quorum) or not 1 <= int(quorum) <= QUORUM_MAX:
        raise PolicyInvalidError(f"has `@quorum({quorum!r})`; expected a number from 1 to {QUORUM_MAX}")
    return Demand(
        roles=roles,
        quorum=int(quorum),
        deadline_ms=_span_ms(annotations["deadline"]) if "deadline" in annotations else HOLD_MS,
        escalation=_listed(annotations.get("escalate", "")),
    )


def obligations_of(deciding: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What all policies that decide ask for together; the order of the policies does not matter.

    The strongest ``sandbox`` wins. Every ``redact`` and every ``limit`` counts: they are joined by ``", "``, sorted.
    """
    return all_obligations({name: asked[name] for name in OBLIGATIONS if name in asked} for asked in deciding)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _span_ms(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text.strip())
    if found is None:
        raise PolicyInvalidError(f"has `@deadline({text!r})`; expected a time such as `30m`, `4h` or `2d`")
    return int(found[1]) * _UNITS[found[2]]
