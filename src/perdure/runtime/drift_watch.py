"""What follows from drift by itself: beside the runs, never in the way of one, an agent that drifts is contained.

It only ever contains, and never lifts: that takes a person. What was found once is not found again: what counts is what came after
it, and after the containment was lifted.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from perdure.core.approvals import Containment
from perdure.core.audit import AuditRecord
from perdure.core.errors import PerdureError
from perdure.governance import behaviour
from perdure.governance.behaviour import GoalBaseline
from perdure.ports import Transaction
from perdure.runtime.drifting import NEWEST_MAX, Key
from perdure.runtime.rulebook import DriftRule

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

log = logging.getLogger("perdure.drift")
DRIFT = "perdure.drift"  # who contains when no person does
SEEN = "drift.seen"  # the fact that says, by agent, until when everything was dealt with
ALPHA = 0.001  # nobody asked for these comparisons, so one in a thousand may be wrong, not one in a hundred
LATE_MS = 5_000  # an action may be visible so much later than its time says

_seen = msgspec.json.Decoder(dict[str, int]).decode


class DriftWatch:
    """Looks for drift again and again.

    Args:
        runtime: whose runs.
        rule: how often, and what follows.
    """

    def __init__(self, runtime: Runtime, rule: DriftRule) -> None:
        self._runtime = runtime
        self._rule = rule
        self._compared: dict[Key, int] = {}  # until when the runs of a goal were compared
        self._swept_ms = -1  # until when actions were looked at for new verbs

    async def work(self) -> None:
        """Look, until cancelled; at once, too, for a process that ends soon would never look otherwise."""
        while True:
            try:
                await self.look()
            except PerdureError as error:  # the next look covers what this one would have
                log.warning("drift was not looked for: %s", error)
            except Exception:  # told with its trace; a watch that ends unnoticed would be worse
                log.exception("drift was not looked for")
            await asyncio.sleep(self._rule.every_s)

    async def look(self) -> list[Containment]:
        """One look at everything that came since the last; the containments that were set."""
        now_ms = self._runtime.now_ms()
        known = {(one.agent, one.goal): one for one in await self._runtime.drift.baselines()}
        if not known:
            return []
        seen = await self._dealt_with({agent for agent, _ in known}, now_ms)
        free = {key: one for key, one in known.items() if seen.get(key[0], -1) < now_ms}
        floors = {key: max(one.at_ms, seen.get(key[0], -1)) for key, one in free.items()}
        since = {key: max(floor, self._swept_ms - LATE_MS) for key, floor in floors.items()}
        new, is_cut = self._runtime.drift.strange(free, since)
        if is_cut and self._swept_ms >= 0:  # the first look goes back to the freeze, as far as it can
            log.warning(
                "over %d actions since the last look for drift: only the newest were looked at", NEWEST_MAX
            )
        self._swept_ms = now_ms
        found: list[Containment] = []
        for key, one in free.items():
            why = await self._compare(one, new.get(key, {}), seen.get(key[0], -1), now_ms)
            made = await self._contain(one, why, now_ms) if why else None
            if made is not None:
                found.append(made)
        return found

    async def _compare(self, one: GoalBaseline, new: dict[str, int], seen_ms: int, now_ms: int) -> str:
        """What drift was found, for a person; empty if none was. Runs that began while the agent was contained do not count."""
        key = (one.agent, one.goal)
        after_ms = max(one.at_ms, self._compared.get(key, -1))
        runs = await self._runtime.drift.ended(
            *key, after_ms=after_ms, until_ms=now_ms, began_ms=seen_ms, limit=behaviour.WINDOW_MAX
        )
        if len(runs) < self._rule.window:
            runs = []  # only new verbs: each run is compared once, or chance would have many tries
        else:
            self._compared[key] = now_ms
        report = await asyncio.to_thread(partial(behaviour.check, one, runs, used=new, alpha=ALPHA))
        return f"goal `{one.goal}`: {behaviour.reasons(report)}" if report.found == "drift" else ""

    async def _dealt_with(self, agents: set[str], now_ms: int) -> dict[str, int]:
        """Until when each agent's behaviour was dealt with; for contained ones until now, for they cannot act as they would."""
        stopped = {item.scope for item in self._runtime.containment.in_force() if item.level != "watch"}
        contained = {agent for agent in agents if stopped & {"*", f"agent:{agent}"}}
        if not contained:
            return self._runtime.store.read(_read_seen)

        def work(tx: Transaction) -> dict[str, int]:
            seen = _read_seen(tx) | dict.fromkeys(contained, now_ms)
            tx.set_fact(SEEN, msgspec.json.encode(seen).decode())
            return seen

        return await self._runtime.store.transact(work)

    async def _contain(self, one: GoalBaseline, why: str, now_ms: int) -> Containment | None:
        """Contain the agent, unless it is contained so or more strictly; what was found is dealt with in the same transaction."""
        level = self._rule.contain
        made = Containment(scope=f"agent:{one.agent}", level=level, by=DRIFT, reason=why, at_ms=now_ms)
        record = AuditRecord(
            kind="containment", at_ms=now_ms, agent=one.agent, name=made.scope, state=level, by=DRIFT,
            refs={"note": why, "goal": one.goal},
        )  # fmt: skip

        def work(tx: Transaction) -> bool:
            tx.set_fact(SEEN, msgspec.json.encode(_read_seen(tx) | {one.agent: now_ms}).decode())
            for item in tx.containments():
                is_over = item.until_ms is not None and now_ms >= item.until_ms
                if (
                    item.scope == made.scope
                    and not is_over
                    and item.level in (level, "restrict", "hold", "stop")
                ):
                    return False
            tx.contain(made)
            tx.audit(record)
            return True

        is_new = await self._runtime.store.transact(work)
        log.warning("agent `%s` drifts (%s): %s", one.agent, level if is_new else "contained already", why)
        return made if is_new else None


def _read_seen(tx: Transaction) -> dict[str, int]:
    text = tx.fact(SEEN)
    return {} if text is None else _seen(text)
