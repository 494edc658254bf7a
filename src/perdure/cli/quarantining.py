"""``agents quarantine``, ``agents release`` and ``agents quarantined``."""

from __future__ import annotations

import getpass
from pathlib import Path

import msgspec

from perdure.cli import views
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.approvals import Containment
from perdure.kernel.quarantine import QUARANTINE
from perdure.runtime import Runtime


def quarantine(data: Path, out: Out, name: str, *, reason: str, seconds: float | None) -> None:
    """Hold the runs of an agent."""

    async def work(runtime: Runtime) -> Containment:
        return await runtime.containment.quarantine(
            name, by=getpass.getuser(), reason=reason, seconds=seconds
        )

    made = beside(data, work)
    if out.json:
        out.emit(msgspec.to_builtins(made))
        return
    out.text(f"runs of {name} are held from now on; `perdure agents release {name}` lets them go on")


def release(data: Path, out: Out, name: str, *, reason: str) -> None:
    """End a quarantine."""

    async def work(runtime: Runtime) -> bool:
        return await runtime.containment.release(name, by=getpass.getuser(), reason=reason)

    was = beside(data, work)
    if out.json:
        out.emit({"agent": name, "released": was})
        return
    out.text(f"runs of {name} go on" if was else f"{name} was not quarantined")


def quarantined(data: Path, out: Out) -> None:
    """List what is held."""

    async def work(runtime: Runtime) -> list[Containment]:
        return runtime.containment.quarantined()

    found = beside(data, work)
    if out.json:
        for item in found:
            out.emit({"agent": item.scope.removeprefix(QUARANTINE), **msgspec.to_builtins(item)})
        return
    rows = [
        [
            item.scope.removeprefix(QUARANTINE), item.by, views.when(item.at_ms),
            views.when(item.until_ms) if item.until_ms else "", item.reason,
        ]
        for item in found
    ]  # fmt: skip
    out.table(("agent", "by", "since", "until", "why"), rows, empty="no agent is quarantined")
