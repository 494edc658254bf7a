"""The people who look after the actions of a simulated world: they decide, raise budgets, repeat themselves, are late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.actions import ActionFilter, ActionRecord, ActionState, Budget
from perdure.engines.embedded import works
from perdure.gateway import ledger

if TYPE_CHECKING:
    from perdure.testing.world import World

Act = Callable[[Callable[[Any], Any], str], Coroutine[Any, Any, Any]]
_RAISED = {"calls": 3, "tokens": 200, "usd_micros": 200}


class Operators:
    """Everybody who decides in one world.

    Args:
        world: whose ledger they look at.
        act: insists on a work until it is confirmed or refused.
        now_ms: the time of day.
    """

    def __init__(self, world: World, act: Act, now_ms: Callable[[], int]) -> None:
        self._world = world
        self._act = act
        self._now_ms = now_ms

    async def watch(self, until_s: float) -> None:
        """Look in from time to time while there are faults, and leave some of it for later."""
        chance = self._world.chance
        while self._world.loop.time() < until_s:
            await asyncio.sleep(chance.between("look ms", 500, 4_000) / 1000)
            waiting = self._waiting()
            if waiting and chance.draw("decides") < 0.6:
                await self._decide(chance.pick("which action", waiting))

    async def help(self) -> None:
        """Decide about everything that waits."""
        for row in self._waiting():
            await self._decide(row)

    def _waiting(self) -> list[ActionRecord]:
        want = ActionFilter(state=(ActionState.HELD, ActionState.UNKNOWN), limit=1_000)
        return self._world.disk.read(lambda tx: tx.actions(want))

    async def _decide(self, row: ActionRecord) -> None:
        chance, sometimes = self._world.chance, self._world.sometimes
        if row.state is ActionState.UNKNOWN:
            sometimes["doubtful action"] += 1
            allowed = ("happened", "did-not-happen", "retry")
            await self._settle(row, chance.pick("doubt", allowed))
        elif chance.draw("raises") < 0.7:
            sometimes["budget raised"] += 1
            await self._raise(row)
        else:
            await self._settle(row, chance.pick("held", ("live", "retry", "fail")))
        if chance.draw("decides twice") < 0.3:
            sometimes["decided twice"] += 1
            await self._settle(row, chance.pick("again", ("happened", "did-not-happen", "retry", "fail")))

    async def _settle(self, row: ActionRecord, decision: Any) -> None:
        ruling = ledger.Ruling(decision=decision, by="human", result={"value": "as I saw it"})
        now_ms = self._now_ms()
        found = await self._act(
            lambda tx: works.settle_action(tx, row.run, row.call, ruling, now_ms=now_ms, limit=1 << 20),
            row.run,
        )
        refused = isinstance(found, Exception)
        self._world.log("settle", row.key, row.state, decision, "refused" if refused else "taken")
        self._world.sometimes["decision refused" if refused else f"told: {row.state} {decision}"] += 1

    async def _raise(self, row: ActionRecord) -> None:
        """Give every account that has a budget some room."""
        now_ms = self._now_ms()

        def work(tx: Any) -> list[str]:
            touched: list[str] = []
            for account in tx.accounts(row.run):
                if account.budget is not None:
                    used = account.reserved.plus(account.spent)
                    budget = _more(account.budget, used)
                    touched += works.set_budget(tx, account.run, budget, now_ms=now_ms, by="human")
            return touched

        await self._act(work, row.run)


def _more(budget: Budget, used: Any) -> Budget:
    room = {
        part: max(getattr(budget, part), getattr(used, part) + more)
        for part, more in _RAISED.items()
        if getattr(budget, part) is not None
    }
    return msgspec.structs.replace(budget, **room)
