"""Torture of approvals with real processes: kill -9 around every commit of a life that releases held actions.

Every charge is held. The first life holds them, a judge signs each, and the second life dies at commit 1, 2, 3 ... while it uses the
grants up. Afterwards: no grant has released two actions, none was used without an intent, every charge was made once or is listed as
doubtful, and the audit log is whole.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure import Runtime
from perdure.core import entries as e
from perdure.core.actions import ActionState
from perdure.core.verdicts import ALLOW, Verdict, hold
from perdure.gateway.gates.case import Case
from perdure.gateway.governance import Governance
from perdure.governance.grants import sign
from perdure.governance.keys import SEED_BYTES, private_key, public_record
from perdure.runtime.approvals import RUNTIME_ID
from perdure.runtime.outside import World, reach
from perdure.runtime.rulebook import Rules
from perdure.testing.torture import LIVES_MAX, SETTINGS, SuicidalStore
from perdure.testing.torture_actions import (
    AGENTS,
    PATIENCE_S,
    ActionVerdict,
    effects_of,
    rest,
    taken_up,
)

JUDGE = private_key(bytes(SEED_BYTES))  # its secret is no secret: it signs in tests only


class HoldAll:
    """Holds every charge."""

    async def judge(self, case: Case) -> Verdict:
        """Its answer."""
        return hold("torture", "every charge is held") if case.name == "charge" else ALLOW


async def live(data: Path, at: int, *, before: bool) -> None:
    """A life that ends in its own death at commit ``at``, or at rest."""
    store = SuicidalStore(data / "perdure.db", at=at, before=before)
    agents = {item.name: item for item in AGENTS}
    try:
        audience = store.read(lambda tx: tx.fact(RUNTIME_ID)) or ""
        governance = Governance([HoldAll()], audience=audience)
        reached = reach(
            World(), agents, folder=data, settings=SETTINGS, telemetry=None, governance=governance
        )
        async with Runtime.over(
            store, agents, SETTINGS, telemetry=None, drive=True, reached=reached
        ) as runtime:
            await rest(runtime)
    finally:
        await store.close()


async def boundaries(
    folder: Path, *, before: bool, report: Callable[[int], None], last: int = LIVES_MAX
) -> ActionVerdict:
    """The same run, approved and then killed at commit 1, in a new folder at commit 2, 3 ... until it ends before its death."""
    total = ActionVerdict()
    for at in range(1, last):
        home = folder / str(at)
        home.mkdir()
        data, log = home / "data", home / "effects.log"
        async with _opened(data) as runtime:
            await runtime.keys.register([public_record(JUDGE, "judge", ["approver"], 1)], by="torture")
            run = (await runtime.start("shopper", str(log), idempotency_key="one")).id
            await rest(runtime)
        await _sign(data)
        worker = _worker(data, at, before=before)
        killed = await asyncio.to_thread(worker.wait, PATIENCE_S) != 0
        report(at)
        total = total.plus(await _afterwards(data, log, run, kills=int(killed)))
        if not killed:
            break
    return total


def _opened(data: Path, *, beside: bool = False) -> Any:
    return Runtime.open(data, agents=AGENTS, settings=SETTINGS, rules=Rules(gates=[HoldAll()]), beside=beside)


async def _sign(data: Path) -> None:
    """Sign what waits, beside whatever drives the runs."""
    async with _opened(data, beside=True) as runtime:
        for pending in runtime.approvals.pending():
            action = pending.record.key
            await runtime.approvals.submit(
                action, sign(runtime.approvals.statement(action, "approve"), JUDGE)
            )


def _worker(data: Path, at: int, *, before: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "perdure.testing.torture_governed", str(data), "--at", str(at)]
    command += ["--before"] if before else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _afterwards(data: Path, log: Path, run: str, *, kills: int) -> ActionVerdict:
    """Lives without a death: what is held is signed, what is doubtful is decided; then compare."""
    verdict = ActionVerdict(kills=kills)
    async with _opened(data) as runtime:
        while waiting := await rest(runtime):
            for row in waiting:
                if row.state is ActionState.HELD:
                    statement = runtime.approvals.statement(row.key, "approve")
                    await runtime.approvals.submit(row.key, sign(statement, JUDGE))
                else:
                    verdict.doubtful += 1
                    result = {"value": -1} if effects_of(log)[row.key] else None
                    decision: Any = "happened" if result else "did-not-happen"
                    await runtime.actions.settle(row.key, decision, by="judge", result=result)
            await taken_up(runtime, waiting)
        verdict.lost_runs += runtime.run(run).status != "completed"
        rows = runtime.actions.rows(run=run)
        effects = effects_of(log)
        await runtime.audit.checkpoint()
        verdict.unlisted += len(runtime.audit.verify().problems)
        intents = [item for item in runtime.run(run).journal() if isinstance(item, e.ActionIntended)]
        grants = {row.call: runtime.store.read(lambda tx, c=row.call: tx.grants(run, c)) for row in rows}
    used = Counter(item.jti for listed in grants.values() for item in listed if item.used_ms is not None)
    named = Counter(item.grant for item in intents)
    verdict.repeated += sum(count - 1 for count in named.values())  # one grant, two intents
    verdict.unproven += sum((used - named).values()) + sum((named - used).values())
    verdict.effects = effects.total()
    for row in rows:
        verdict.repeated += max(0, effects[row.key] - 1)
        verdict.unproven += row.state is ActionState.SUCCEEDED and effects[row.key] != 1
    return verdict


def main() -> int:
    """One life of a worker."""
    parser = argparse.ArgumentParser(prog="perdure.testing.torture_governed")
    parser.add_argument("data", type=Path)
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--before", action="store_true")
    options = parser.parse_args()
    asyncio.run(live(options.data, options.at, before=options.before))
    return 0


if __name__ == "__main__":
    sys.exit(main())
