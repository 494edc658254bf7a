"""Containment, asked in the transaction of the intent: a stop holds from the moment that it is durable."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.approvals import LEVELS, Containment
from perdure.core.verdicts import ALLOW, Demand, Verdict, deny, hold


def contained(found: Sequence[Containment], scopes: Sequence[str], effect: str, now_ms: int) -> Verdict:
    """What the containments in force say of an action.

    Args:
        found: every containment of the store.
        scopes: the scopes that the action is in.
        effect: what it does to the world.
        now_ms: the time.
    """
    mine = [
        item for item in found if item.scope in scopes and (item.until_ms is None or now_ms < item.until_ms)
    ]
    if not mine:
        return ALLOW
    worst = max(mine, key=lambda item: LEVELS.index(item.level))
    why = f"`{worst.scope}` is contained ({worst.level}) by `{worst.by}`: {worst.reason}"
    match worst.level:
        case "stop":
            return deny("contained-stop", why, rule=worst.scope)
        case "restrict" if effect != "read":
            return deny("contained-restrict", why, rule=worst.scope)
        case "hold" if effect != "read":
            return hold("contained-hold", why, Demand(), rule=worst.scope)
        case _:
            return ALLOW
