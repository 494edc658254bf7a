"""Containment, asked in the transaction of the intent: a stop holds from the moment that it is durable."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from perdure.core.approvals import Containment
from perdure.core.verdicts import ALLOW, Demand, Verdict, both, deny, hold


def contained(found: Sequence[Containment], scopes: Collection[str], effect: str, now_ms: int) -> Verdict:
    """What the containments in force say of an action, all of them together: the strictest counts.

    Args:
        found: every containment of the store.
        scopes: the scopes that the action is in.
        effect: what it does to the world.
        now_ms: the time.
    """
    verdict = ALLOW
    for item in found:
        if item.scope in scopes and (item.until_ms is None or now_ms < item.until_ms):
            verdict = both(verdict, _said(item, effect))
    return verdict


def _said(item: Containment, effect: str) -> Verdict:
    why = f"`{item.scope}` is contained ({item.level}) by `{item.by}`: {item.reason}"
    match item.level:
        case "stop":
            return deny("contained-stop", why, rule=item.scope)
        case "restrict" if effect != "read":
            return deny("contained-restrict", why, rule=item.scope)
        case "hold" if effect != "read":
            return hold("contained-hold", why, Demand(), rule=item.scope)
        case _:
            return ALLOW
