"""Drift as an operator sees it: baselines frozen from recorded runs, and newer runs held against them.

A baseline is kept in the store as a fact for its agent and goal. Looking never changes anything; what may follow by itself is in
``drift_watch``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from perdure.core.actions import ActionFilter
from perdure.core.audit import AuditRecord
from perdure.core.errors import CorruptError, UsageError
from perdure.core.ids import checked_name
from perdure.core.records import RunRecord, Status
from perdure.core.values import digest
from perdure.governance import behaviour
from perdure.governance.behaviour import ACTIONS_MAX, BASELINE_ACTIONS_MAX, Behaviour, GoalBaseline, verb_of
from perdure.governance.drift import Report
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

INDEX = "drift"  # the fact that lists what was frozen
BASELINES_MAX = 100  # all of them are read at every look
SCAN_MAX = 5_000  # runs that are looked at for those of one goal, the newest
NEWEST_MAX = 5_000  # actions that are looked at for new verbs, the newest: reading them takes 40 ms
PAGE = 50  # rows of runs that are read at once
Key = tuple[str, str]  # an agent and a goal

_keys = msgspec.json.Decoder(list[Key]).decode
_baseline = msgspec.json.Decoder(GoalBaseline).decode


class Drift:
    """``runtime.drift``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def freeze(
        self, agent: str, goal: str | None = None, *, by: str, runs: int = behaviour.RUNS_MAX
    ) -> GoalBaseline:
        """Make the newest ended runs of an agent with a goal its baseline, in place of an older one. Durable on return.

        Args:
            agent: its name.
            goal: what the runs were started for; by default the agent's name, as for runs that did not say.
            by: who decides; it is in the audit log.
            runs: how many at most, 50 to 1,000.

        Raises:
            DefinitionError: there are too few runs.
            UsageError: there are too many baselines, or ``runs`` is not in its range.
        """
        checked_name("who decides", by)
        if not behaviour.RUNS_MIN <= runs <= behaviour.RUNS_MAX:
            raise UsageError(
                f"a baseline has {behaviour.RUNS_MIN} to {behaviour.RUNS_MAX} runs, found `{runs}`"
            )
        aim, now_ms = _goal(agent, goal), self._runtime.now_ms()
        found = await self.ended(agent, aim, until_ms=now_ms, limit=runs)
        made = await asyncio.to_thread(partial(behaviour.freeze, agent, aim, found, by=by, at_ms=now_ms))
        text = msgspec.json.encode(made).decode()
        record = AuditRecord(
            kind="configuration", at_ms=now_ms, agent=agent, name="drift-baseline", by=by,
            refs={"goal": aim, "runs": str(made.runs), "actions": str(made.verbs.samples), "sha256": digest(text.encode())},
        )  # fmt: skip

        def work(tx: Transaction) -> None:
            known = keys_of(tx)
            if (agent, aim) not in known:
                if len(known) >= BASELINES_MAX:
                    raise UsageError(
                        f"there are {len(known)} baselines already, and {BASELINES_MAX} is the limit"
                    )
                tx.set_fact(INDEX, msgspec.json.encode(sorted([*known, (agent, aim)])).decode())
            tx.set_fact(fact_of((agent, aim)), text)
            tx.audit(record)

        await self._runtime.store.transact(work)
        return made

    async def check(self, agent: str, goal: str | None = None, *, window: int = 20) -> Report:
        """Hold what came after the freeze against a baseline; nothing is changed, whatever is found.

        Args:
            agent: its name.
            goal: what the runs were started for; by default the agent's name.
            window: the newest runs that have ended since; 10 to 200. New verbs are looked for in all runs, also those that go on.

        Raises:
            UsageError: ``window`` is not in its range.
        """
        if not behaviour.WINDOW_MIN <= window <= behaviour.WINDOW_MAX:
            raise UsageError(
                f"a window has {behaviour.WINDOW_MIN} to {behaviour.WINDOW_MAX} runs, found `{window}`"
            )
        key = (agent, _goal(agent, goal))
        known = self.baseline(key)
        if known is None:
            return behaviour.check(None, ())
        new, _ = self.strange({key: known}, {key: known.at_ms})
        runs = await self.ended(*key, after_ms=known.at_ms, limit=window)
        return await asyncio.to_thread(partial(behaviour.check, known, runs, used=new.get(key)))

    async def baselines(self) -> list[GoalBaseline]:
        """What was frozen, by agent and goal."""
        found: list[GoalBaseline] = []
        for key in self._runtime.store.read(keys_of):
            if (one := self.baseline(key)) is not None:
                found.append(one)
            await asyncio.sleep(0)
        return found

    def baseline(self, key: Key) -> GoalBaseline | None:
        """The baseline of an agent and a goal.

        Raises:
            CorruptError: it is damaged.
        """
        text = self._runtime.store.read(lambda tx: tx.fact(fact_of(key)))
        try:
            return None if text is None else _baseline(text)
        except msgspec.MsgspecError as error:
            message = f"the baseline of agent `{key[0]}` for the goal `{key[1]}` is damaged ({error}); freeze it anew"
            raise CorruptError(message, agent=key[0], goal=key[1]) from error

    # -- reading what was recorded
    async def ended(
        self,
        agent: str,
        goal: str,
        *,
        limit: int,
        after_ms: int = -1,
        until_ms: int | None = None,
        began_ms: int = -1,
    ) -> list[Behaviour]:
        """What the ended runs with a goal did, the last to end first. What was cancelled somebody else cut off: it is left out.

        Args:
            agent: its name.
            goal: what they were started for.
            limit: how many at most.
            after_ms: only those that ended after that.
            until_ms: only those that ended by then; by default now.
            began_ms: only those that began after that.
        """
        read, last_ms = self._runtime.store.read, self._runtime.now_ms() if until_ms is None else until_ms
        found: list[Behaviour] = []
        actions = 0
        for skip in range(0, SCAN_MAX, PAGE):
            page = read(partial(_page, agent, after_ms, last_ms, skip))
            for run in page:
                if run.status is Status.CANCELLED or run.created_ms <= began_ms:
                    continue
                one = read(partial(_did, run, goal))
                if one is None:
                    continue
                actions += sum(one.verbs.values())
                if len(found) >= limit or actions > BASELINE_ACTIONS_MAX:
                    return found
                found.append(one)
                await asyncio.sleep(0)  # other runs may go on
            if len(page) < PAGE:
                break
            await asyncio.sleep(0)
        return found

    def strange(
        self, baselines: Mapping[Key, GoalBaseline], since: Mapping[Key, int]
    ) -> tuple[dict[Key, dict[str, int]], bool]:
        """The verbs that were never used for a goal before and were used after a time, with how often; whatever became of the run.

        Returns:
            These by agent and goal, and whether there were more actions than are looked at.
        """
        known: dict[str, list[GoalBaseline]] = {}
        for (agent, _), one in baselines.items():
            known.setdefault(agent, []).append(one)

        def work(tx: Transaction) -> tuple[dict[Key, dict[str, int]], bool]:
            rows = tx.actions_since(min(since.values()) + 1, NEWEST_MAX)
            found: dict[Key, dict[str, int]] = {}
            for row in rows:
                verb = verb_of(row)
                if all(verb in one.known for one in known.get(row.agent, ())):
                    continue
                key = (row.agent, _goal_in(tx, row.run, row.agent))
                if key in baselines and verb not in baselines[key].known and row.intended_ms > since[key]:
                    uses = found.setdefault(key, {})
                    uses[verb] = uses.get(verb, 0) + 1
            return found, len(rows) >= NEWEST_MAX

        return self._runtime.store.read(work) if since else ({}, False)


def fact_of(key: Key) -> str:
    """The name of the fact with a baseline."""
    return f"{INDEX}.{digest(msgspec.json.encode(key))}"


def keys_of(tx: Transaction) -> list[Key]:
    """For which agents and goals there are baselines."""
    text = tx.fact(INDEX)
    return [] if text is None else _keys(text)


def _page(agent: str, after_ms: int, until_ms: int, skip: int, tx: Transaction) -> list[RunRecord]:
    return tx.ended_runs(agent, after_ms, until_ms, PAGE, skip)


def _did(run: RunRecord, goal: str, tx: Transaction) -> Behaviour | None:
    if _goal_in(tx, run.id, run.agent) != goal:
        return None
    return behaviour.behaviour_of(run.id, tx.actions(ActionFilter(run=run.id, limit=ACTIONS_MAX)))


def _goal_in(tx: Transaction, run: str, agent: str) -> str:
    """What a run was started for, as its journal says."""
    started = tx.journal(run, 0, 1)
    return (getattr(started[0], "goal", "") if started else "") or agent


def _goal(agent: str, goal: str | None) -> str:
    return checked_name("an agent", agent) if goal is None else checked_name("a goal", goal)
