"""Looks which walls can be had on this machine: each is tried with real jobs, never judged by what files there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from perdure.core.errors import PerdureError
from perdure.core.sandbox import SandboxJob, Tier
from perdure.core.verdicts import TIERS
from perdure.runtime.wall_makers import makers
from perdure.runtime.walls import ConfiguredWalls, SandboxRules

PROBE = SandboxJob(code="print(6 * 7)")
JOBS = 5  # after the first, for the usual time
TRIED: tuple[Tier, ...] = ("namespace", "gvisor", "microvm", "remote", "none")
UNWALLED = "a plain process of this user, without a wall; used only where `tiers` of `[sandbox]` names it"


@dataclass(frozen=True, slots=True)
class Examined:
    """One tier, as it was found.

    Attributes:
        tier: which.
        is_available: whether a job was executed behind it.
        first_ms: until the answer of the first job, with everything that must be made ready.
        warm_ms: of a later one; the middle of five.
        parts: what the wall is made of.
        why: why it cannot be had, and how to get it.
    """

    tier: Tier
    is_available: bool
    first_ms: float = 0.0
    warm_ms: float = 0.0
    parts: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


async def examine(rules: SandboxRules) -> list[Examined]:
    """Every tier, strongest wall last but for none at all."""
    known = makers()
    return [await _one(rules, tier) for tier in TRIED if tier in known and tier in TIERS]


async def why_missing(rules: SandboxRules, tier: Tier) -> str:
    """Why a tier cannot be had here; empty if it can."""
    return (await _one(rules, tier)).why if tier != "none" else ""


async def _one(rules: SandboxRules, tier: Tier) -> Examined:
    walls = ConfiguredWalls(SandboxRules(tiers=(tier,), limits=rules.limits, options=rules.options))
    began = time.monotonic()
    try:
        sandboxes = await walls.at_least()
        first = await sandboxes.run(PROBE)
        first_ms = (time.monotonic() - began) * 1000
        if first.stdout != b"42\n":
            return Examined(tier, is_available=False, why=f"its job did not work: {first.ending}")
        times = sorted([(await sandboxes.run(PROBE)).wall_ms for _ in range(JOBS)])
        parts = dict(sandboxes.parts) | ({"detail": first.detail} if first.detail else {})
        why = UNWALLED if tier == "none" else ""
        return Examined(
            tier, is_available=True, first_ms=first_ms, warm_ms=times[JOBS // 2], parts=parts, why=why
        )
    except PerdureError as error:
        return Examined(tier, is_available=False, why=error.message)
    finally:
        await walls.close()
