"""Quarantine of agents: who breaks limits too often in a while has its runs held until somebody releases it."""

from __future__ import annotations

import msgspec

from perdure.core.approvals import Containment
from perdure.core.errors import DefinitionError

QUARANTINE = "quarantine:"  # the scope of such a containment, before the agent's name: no action is in it
HELD = "agent-quarantined"  # why its runs are held
BREACHES_MAX = 1_000  # remembered of each agent
RULE_FACT = "quarantine-rule"
TALLY_FACT = "breaches:"  # before the agent's name


class QuarantineRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an agent is quarantined.

    Attributes:
        breaches: how many limits it breaks until then; 0 never does it.
        within_ms: in how long a time.
    """

    breaches: int = 10
    within_ms: int = 3_600_000

    def __post_init__(self) -> None:
        if not 0 <= self.breaches <= BREACHES_MAX or self.within_ms < 1:
            raise DefinitionError(
                f"a quarantine takes 0 to {BREACHES_MAX} `breaches` `within_ms` of 1 or more, "
                f"found {self.breaches} within {self.within_ms}"
            )


def tally(rule: QuarantineRule, before: tuple[int, ...], at_ms: int) -> tuple[tuple[int, ...], bool]:
    """The breaches that still count with one more at ``at_ms``, and whether they are too many."""
    kept = (*(each for each in before if each > at_ms - rule.within_ms), at_ms)[-max(1, rule.breaches) :]
    return kept, 0 < rule.breaches <= len(kept)


def is_in_force(item: Containment, now_ms: int) -> bool:
    """Whether a containment is a quarantine that holds runs now."""
    return item.scope.startswith(QUARANTINE) and (item.until_ms is None or now_ms < item.until_ms)
