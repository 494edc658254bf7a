"""``contain ...``, ``kill`` and ``runs undo``: what stops agents, and what takes back what they did."""

from __future__ import annotations

import asyncio
import dataclasses
import getpass
import os
from pathlib import Path

import msgspec

from perdure.cli import views
from perdure.cli.apps import load
from perdure.cli.opening import beside, existing
from perdure.cli.output import Out
from perdure.core.approvals import Containment, Level
from perdure.core.errors import UsageError
from perdure.runtime import Runtime
from perdure.runtime.config import world_from
from perdure.runtime.containment import KillReport
from perdure.runtime.datadir import owner_of
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.undo import UndoPlan


def contained(data: Path, out: Out) -> None:
    """List what is contained."""

    async def work(runtime: Runtime) -> list[Containment]:
        return runtime.containment.in_force()

    rows = beside(data, work)
    if out.json:
        for row in rows:
            out.emit(msgspec.to_builtins(row))
        return
    table = [
        [
            row.scope,
            row.level,
            row.by,
            views.when(row.at_ms),
            views.when(row.until_ms) if row.until_ms else "",
            row.reason,
        ]
        for row in rows
    ]
    out.table(("scope", "level", "by", "since", "until", "why"), table, empty="nothing is contained")


def contain(data: Path, out: Out, scope: str, level: Level, *, reason: str, seconds: float | None) -> None:
    """Contain a scope."""

    async def work(runtime: Runtime) -> Containment:
        return await runtime.containment.set(
            scope, level, by=getpass.getuser(), reason=reason, seconds=seconds
        )

    made = beside(data, work)
    if out.json:
        out.emit(msgspec.to_builtins(made))
        return
    out.text(
        f"{made.scope} is contained ({made.level}) from now on; `perdure contain lift {made.scope}` ends it"
    )


def lift(data: Path, out: Out, scope: str, *, reason: str) -> None:
    """End a containment."""

    async def work(runtime: Runtime) -> bool:
        return await runtime.containment.lift(scope, by=getpass.getuser(), reason=reason)

    was = beside(data, work)
    if out.json:
        out.emit({"scope": scope, "lifted": was})
        return
    out.text(f"{scope} is free" if was else f"{scope} was not contained")


def kill(data: Path, out: Out, scope: str, *, reason: str) -> None:
    """The kill switch."""

    async def work(runtime: Runtime) -> KillReport:
        return await runtime.containment.kill(scope, by=getpass.getuser(), reason=reason)

    report = beside(data, work)
    if out.json:
        out.emit(dataclasses.asdict(report))
        return
    out.text(f"{scope}: new actions are refused since {report.refused_ms:.1f} ms after the command")
    out.text(
        f"{len(report.runs)} runs ended after {report.ended_ms:.1f} ms; their workers have lost their leases"
    )
    for action in report.doubtful:
        out.text(
            f"  {action} was under way: nobody knows whether it happened; `perdure actions show {action}`"
        )
    out.text(f"It stays stopped until `perdure contain lift {scope}`.")


def undo(
    data: Path,
    out: Out,
    run: str,
    *,
    app: str,
    after: int,
    cause: str | None,
    direct: bool,
    dry_run: bool,
    reason: str,
    config: Path | None,
) -> int:
    """Undo what a run did."""
    existing(data)
    agents = load(app)
    world = world_from(config, os.environ, LocalSecrets.default(data))

    async def go() -> int:
        is_driven = owner_of(data) is not None  # then that process does it, and this one only asks
        async with (
            Runtime.open(
                data,
                agents=agents,
                upstreams=world.upstreams,
                toolsets=world.toolsets,
                secrets=world.secrets,
                beside=is_driven,
                rules=world.rules,
                sandboxes=world.sandboxes,
            ) as runtime,
        ):
            made = await runtime.undoing.plan(run, after=after, cause=cause, direct=direct)
            _plan(out, made)
            if dry_run or not made.todo:
                return 0
            handle = await runtime.undoing.undo(made, by=getpass.getuser(), reason=reason)
            result = await handle.result()
            if out.json:
                out.emit({"run": handle.id, **result})
            else:
                for item in result["actions"]:
                    out.text(
                        f"{item['action']}: {item['state']}" + (f" ({item['why']})" if "why" in item else "")
                    )
                out.text(f"{result['result']}: run {handle.id} has the record")
            return 0 if result["result"] == "ok" else 1

    return asyncio.run(go())


def _plan(out: Out, made: UndoPlan) -> None:
    if out.json:
        out.emit({"plan": [msgspec.to_builtins(step) for step in made.steps]})
        return
    if not made.steps:
        raise UsageError(f"run `{made.run}` did nothing of that kind with tools")
    heads: tuple[str, ...] = ("action", "tool", "can", "until", "why")
    table = [
        [step.action, step.name, step.how, views.when(step.until_ms) if step.until_ms else "", step.why]
        for step in made.steps
    ]
    if any(step.derived for step in made.steps):
        heads = (*heads, "derives by")
        table = [[*row, step.derived] for row, step in zip(table, made.steps, strict=True)]
    out.table(heads, table, empty="")
    if not made.is_complete:
        out.note("the run is so long that not everything that derives from the source is known")
