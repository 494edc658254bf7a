"""The agency-risk index of MI9 (arXiv 2508.03858): how much an agent could do on its own.

Twelve criteria in three dimensions, each 0 to 3; the index is their sum divided by 36; tiers begin at a quarter, a half and
three quarters. The paper gives the criteria and the formula. How a charter's facts become points is ours, in one table
(``CRITERIA``), so that everybody can read and dispute it. What a charter does not say counts as the most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.principals import RISKS, Risk

Dimension = Literal["autonomy", "adaptability", "continuity"]
DIMENSIONS: tuple[Dimension, ...] = ("autonomy", "adaptability", "continuity")
POINTS_MAX = 36
_APPROVED = 2  # points of decision authority: whatever is not reversible is held for a person


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion.

    Attributes:
        dimension: which it is part of.
        name: as the paper calls it.
        fact: what the charter calls it.
        scale: what a charter may say, by points from 0 to 3.
    """

    dimension: Dimension
    name: str
    fact: str
    scale: tuple[str, str, str, str]


CRITERIA: tuple[Criterion, ...] = (
    Criterion("autonomy", "multi-step planning", "planning", ("none", "fixed", "within-a-run", "open-ended")),
    Criterion("autonomy", "goal-management scope", "goals", ("single", "given-list", "makes-subgoals", "sets-own")),
    Criterion("autonomy", "resource-orchestration breadth", "tools", ("none", "few", "many", "agents")),
    Criterion("autonomy", "decision authority", "effects", ("read", "reversible", "approved", "irreversible")),
    Criterion("adaptability", "strategy evolution", "strategy", ("fixed", "chooses", "revises", "learns")),
    Criterion("adaptability", "cross-domain learning", "domains", ("one", "related", "several", "any")),
    Criterion("adaptability", "environmental responsiveness", "reacts-to", ("nothing", "answers", "events", "open-web")),
    Criterion("adaptability", "interaction adaptation", "speaks-with", ("nobody", "operators", "users", "strangers")),
    Criterion("continuity", "memory architecture", "memory", ("none", "run", "session", "shared")),
    Criterion("continuity", "operational persistence", "runs-for", ("seconds", "hours", "days", "always")),
    Criterion("continuity", "state complexity", "state", ("none", "journal", "records", "files-and-code")),
    Criterion("continuity", "knowledge integration", "knowledge", ("none", "given", "retrieved", "writes-back")),
)  # fmt: skip


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one criterion and why: what the charter says, or that it says nothing."""

    dimension: Dimension
    criterion: str
    points: int
    why: str


class RiskIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The index of one agent.

    Attributes:
        points: the sum, 0 to 36.
        tier: below a quarter ``low``, below a half ``medium``, below three quarters ``high``, else ``critical``.
        marks: one for each criterion, in the order of the table.
    """

    points: int
    tier: Risk
    marks: tuple[Mark, ...]

    @property
    def index(self) -> float:
        """The points as a share of 36."""
        return self.points / POINTS_MAX

    def of(self, dimension: Dimension) -> int:
        """The points of one dimension, 0 to 12."""
        return sum(mark.points for mark in self.marks if mark.dimension == dimension)

    def explanation(self) -> tuple[str, ...]:
        """One sentence for each dimension, then one for the whole."""
        lines = []
        for dimension in DIMENSIONS:
            marks = [mark for mark in self.marks if mark.dimension == dimension]
            parts = "; ".join(f"{mark.criterion} {mark.points} ({mark.why})" for mark in marks)
            lines.append(f"{dimension} {self.of(dimension)} of 12: {parts}")
        lines.append(f"agency risk {self.points} of {POINTS_MAX} ({self.index:.2f}): {self.tier}")
        return tuple(lines)


def risk_of(charter: Mapping[str, Any]) -> RiskIndex:
    """The index of a charter.

    Args:
        charter: by the ``fact`` of each criterion, one of the words of its scale or its points (0 to 3). A fact that is
            missing or ``None`` counts 3.

    Raises:
        DefinitionError: it has a fact that is none, or a value that is not on its scale.
    """
    facts = {criterion.fact for criterion in CRITERIA}
    if unknown := sorted(str(name) for name in charter if name not in facts):
        raise DefinitionError(
            f"a charter has no `{unknown[0]}`; expected some of {', '.join(sorted(facts))}", fact=unknown[0]
        )
    marks = tuple(_mark(criterion, charter.get(criterion.fact)) for criterion in CRITERIA)
    points = sum(mark.points for mark in marks)
    return RiskIndex(points=points, tier=tier_of(points), marks=marks)


def tier_of(points: int) -> Risk:
    """The tier of 0 to 36 points; a boundary belongs to the higher tier."""
    return RISKS[min(points * 4 // POINTS_MAX, len(RISKS) - 1)]


def facts_of_tools(effects: Mapping[str, str], *, approved: bool = False, agents: int = 0) -> dict[str, str]:
    """What the tools of an agent say about two of the facts.

    Args:
        effects: the effect of each tool, by name.
        approved: whether everything that is not a read or reversible is held for a person.
        agents: how many other agents it can start.
    """
    others = set(effects.values()) - {"read"}
    if not others:
        authority = "read"
    elif others == {"reversible"}:
        authority = "reversible"
    else:
        authority = "approved" if approved else "irreversible"
    breadth = "agents" if agents else "none" if not effects else "few" if len(effects) <= 5 else "many"
    return {"tools": breadth, "effects": authority}


def declared(
    agency: Mapping[str, Any], effects: Mapping[str, str], *, is_whole: bool = True, agents: int = 0
) -> dict[str, Any]:
    """A charter, held against the tools that are known: what it does not say of them they say, and it cannot say less.

    Args:
        agency: what was declared, as ``risk_of`` takes it.
        effects: the effect of each tool that is known, by name.
        is_whole: whether these are all; otherwise nothing is filled in.
        agents: how many other agents it can start.

    Raises:
        DefinitionError: it says less than its tools show.
    """
    said = {mark.criterion: mark.points for mark in risk_of(agency).marks}
    shown = facts_of_tools(effects, approved=said["decision authority"] == _APPROVED, agents=agents)
    found = dict(agency)
    for criterion in CRITERIA:
        seen = shown.get(criterion.fact)
        if seen is None:
            continue
        if found.get(criterion.fact) is None:
            if is_whole:
                found[criterion.fact] = seen
        elif said[criterion.name] < criterion.scale.index(seen):
            raise DefinitionError(
                f"`{criterion.fact}` is declared as `{found[criterion.fact]}`, its tools show `{seen}`; declare that, "
                "or take tools away",
                fact=criterion.fact,
            )
    return found


def stricter(first: Risk, second: Risk) -> Risk:
    """The higher of two tiers."""
    return max(first, second, key=RISKS.index)


def _mark(criterion: Criterion, value: Any) -> Mark:
    if value is None:
        points, why = 3, f"`{criterion.fact}` is not said"
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3:
        points, why = value, f"`{criterion.fact}` was set by hand, as for `{criterion.scale[value]}`"
    elif isinstance(value, str) and value in criterion.scale:
        points, why = criterion.scale.index(value), f"`{criterion.fact}` is `{value}`"
    else:
        raise DefinitionError(
            f"`{criterion.fact}` is `{value!r:.40}`; expected 0 to 3 or one of {', '.join(criterion.scale)}",
            fact=criterion.fact,
        )
    return Mark(dimension=criterion.dimension, criterion=criterion.name, points=points, why=why)
