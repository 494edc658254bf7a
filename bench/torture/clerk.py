"""Everybody around the tortured worker, in a process that is not killed: who starts runs, who signs, who settles.

Chance decides what they say: grants are signed, edited or refused, and handed in a second time; what is doubtful is looked up
in the world's log and settled as it was, or sent again when it did not arrive.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

from bench.torture.log import Log
from perdure import Principal, Runtime
from perdure.core.actions import ActionRecord, ActionState
from perdure.core.errors import ActionUnknownError, RefusedError, UnavailableError
from perdure.governance.grants import sign
from perdure.governance.keys import SEED_BYTES, private_key, public_record
from perdure.governance.statements import Decision
from perdure.runtime.approvals import Pending

FLIGHT = 24  # runs that are unfinished at once: each kill meets several of them
GRACE_S = 0.25  # before a doubtful action is settled: what was sent has arrived by then
TEND_S = 0.012
JUDGE = private_key(bytes(SEED_BYTES))  # its secret is no secret: it signs in this test only
USER = Principal(kind="user", name="ute", groups=("service",))


class Clerk:
    """Tends one data directory beside its workers.

    Args:
        runtime: opened beside them.
        log: the world's.
        chance: what is decided by chance.
    """

    def __init__(self, runtime: Runtime, log: Log, chance: random.Random) -> None:
        self.runtime, self._log, self._chance = runtime, log, chance
        self.is_hiring = True
        self.accepted: list[str] = []  # runs whose start was acknowledged
        self.listed: set[str] = set()  # actions that the inbox showed as doubtful
        self.retries: Counter[str] = Counter()  # by key: decisions to send it again
        self.told: Counter[str] = Counter()  # what was decided, and what was refused
        self.accepted_wrongly = 0  # grants that were taken for another action
        self._last = ("", "")  # the action and the grant that were taken before
        self._since: dict[tuple[str, int], float] = {}  # by action and how often it was sent again
        self._decided: set[tuple[str, int]] = set()

    async def register(self) -> None:
        """Make the key of whoever signs known."""
        await self.runtime.keys.register([public_record(JUDGE, "judge", ["finance"], 1)], by="torture")

    async def tend(self) -> None:
        """Look after everything, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(TEND_S)

    async def look(self) -> None:
        """Look after everything once."""
        try:
            await self._hire()
            for pending in self.runtime.approvals.pending():
                await self._sign(pending)
            for row in self.runtime.actions.rows(state=ActionState.UNKNOWN, limit=1_000):
                await self._settle(row)
        except UnavailableError:  # the store was busy: the next look finds it mended
            self.told["store was busy"] += 1

    async def _hire(self) -> None:
        if not self.is_hiring:
            return
        unfinished = self.runtime.runs(status="unfinished", limit=FLIGHT)
        for _ in range(FLIGHT - len(unfinished)):
            agent = "office" if self._chance.random() < 0.15 else "buyer"
            name = f"run-{len(self.accepted)}"
            handle = await self.runtime.start(agent, idempotency_key=name, principals=[USER])
            self.accepted.append(handle.id)

    async def _sign(self, pending: Pending) -> None:
        action, said = pending.record.key, self._chance.random()
        decision: Decision = "approve"
        arguments: dict[str, Any] | None = None
        if said < 0.1:
            decision = "reject"
        elif said < 0.3:
            decision, arguments = "approve_edited", {"to": "acme", "cents": 1_000}
        try:
            token = sign(self.runtime.approvals.statement(action, decision, arguments=arguments), JUDGE)
            before, used = self._last
            if before not in ("", action):
                self.accepted_wrongly += await self._again(action, used, "the grant of another action")
            await self.runtime.approvals.submit(action, token)
        except ActionUnknownError:  # decided already, or it went on between the look and the hand
            return
        self._last = action, token
        self.told[decision] += 1
        await self._again(action, token, "the same grant twice")

    async def _again(self, action: str, token: str, what: str) -> bool:
        """Hand in a grant that must not count here, or not a second time; whether it was taken.

        The same one is taken again as long as it has released nothing: a kill may fall between its arrival and its use.
        """
        try:
            await self.runtime.approvals.submit(action, token)
        except (ActionUnknownError, RefusedError):
            self.told[f"{what}, refused"] += 1
            return False
        self.told[f"{what}, taken"] += 1
        return True

    async def _settle(self, row: ActionRecord) -> None:
        self.listed.add(row.key)
        doubt = (row.key, self.retries[row.key])
        now = time.monotonic()
        if doubt in self._decided or now - self._since.setdefault(doubt, now) < GRACE_S:
            return
        self._log.read()
        done = self._log.lines.get(row.key, ())
        try:
            if done:
                result = {"receipt": done[-1]["receipt"]}
                await self.runtime.actions.settle(row.key, "happened", by="judge", result=result)
                self.told["happened"] += 1
            elif self._chance.random() < 0.5:
                await self.runtime.actions.settle(row.key, "retry", by="judge")
                self.retries[row.key] += 1
                self.told["retry"] += 1
            else:
                await self.runtime.actions.settle(row.key, "did-not-happen", by="judge")
                self.told["did-not-happen"] += 1
            self._decided.add(doubt)
        except ActionUnknownError:  # decided already, and not taken up yet
            self._since[doubt] = now
