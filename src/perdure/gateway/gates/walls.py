"""The gate of walls: what the policies want behind one of a certain strength goes there, or nowhere."""

from __future__ import annotations

from perdure.core.verdicts import TIERS, Verdict, both, deny
from perdure.gateway.seat import Act

SANDBOX = "sandbox"  # the obligation that names the weakest wall allowed


def walled(act: Act, verdict: Verdict) -> Verdict:
    """The verdict, a denial where the tool has no wall as strong as the policies ask for; notes on the act which one they ask for.

    Model requests execute nothing, so no wall is asked for them.
    """
    act.tier = verdict.obligations.get(SANDBOX, "")
    if verdict.is_deny or not act.tier or act.spec is None:
        return verdict
    offered = act.spec.tiers or ("none",)
    if any(is_as_strong(tier, act.tier) for tier in offered):
        return verdict
    text = (
        f"the policies want `{act.name}` behind a wall of tier `{act.tier}` or stronger, and it has "
        f"{', '.join(f'`{tier}`' for tier in offered)}; `perdure sandbox doctor` says what can be had here"
    )
    return both(verdict, deny("sandbox-unavailable", text))


def is_as_strong(tier: str, wanted: str) -> bool:
    """Whether a wall is as strong as another one, or stronger. One that is not known is weaker than any."""
    if tier not in TIERS or wanted not in TIERS:
        return False
    return TIERS.index(tier) >= TIERS.index(wanted)
