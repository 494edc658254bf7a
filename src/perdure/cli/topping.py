"""``perdure top``: what the process that drives a data directory uses now."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from perdure.cli.opening import existing
from perdure.cli.output import Out
from perdure.core.errors import UnavailableError
from perdure.runtime.usage import PERIOD_S, STALE_MS, Usage, published

PATIENCE_S = 3.0  # for a runtime that has just begun
LOOK_S = 0.1
CLEAR = "\x1b[H\x1b[J"  # the screen of a terminal
RUNS_SHOWN = 30
PROCESS_COLUMNS = ("pid", "what", "name", "run", "agent", "wall", "cpu %", "mib", "processes")
RUN_COLUMNS = ("run", "agent", "state", "doing")


def top(data: Path, out: Out, *, once: bool) -> None:
    """Show it once, or again and again until interrupted.

    Raises:
        UnavailableError: no process drives this directory.
    """
    existing(data)
    while True:
        found = _fresh(data)
        if out.json:
            out.emit(msgspec.to_builtins(found))
        else:
            if not once:
                out.text(CLEAR.rstrip("\n"))
            _show(out, found)
        if once:
            return
        time.sleep(PERIOD_S)


def _fresh(data: Path) -> Usage:
    until = time.monotonic() + PATIENCE_S
    while True:
        found = published(data)
        if found is not None and time.time() * 1000 - found.at_ms < STALE_MS:
            return found
        if time.monotonic() > until:
            raise UnavailableError(
                f"no process drives `{data}` and publishes what it uses; start one with `perdure work`"
            )
        time.sleep(LOOK_S)


def _show(out: Out, found: Usage) -> None:
    asked = found.resources
    out.text(
        f"worker {found.worker} (process {found.pid}): {found.running} of {found.concurrency} runs execute, "
        f"{found.waiting} wait in memory"
    )
    out.text(
        f"asked for: {asked['cpu_requested']:g} of {asked['cpu']:g} processors, "
        f"{asked['memory_bytes_requested'] >> 20} of {asked['memory_bytes'] >> 20} MiB"
    )
    if asked["short"]:
        out.text(f"wait for resources: {', '.join(asked['short'])}")
    if found.quarantined:
        out.text(f"quarantined: {', '.join(found.quarantined)}")
    out.text()
    rows = [
        [
            str(each.pid), each.kind, each.name, each.run, each.agent, each.tier, f"{each.cpu_percent:.1f}",
            f"{each.memory_bytes / (1 << 20):.1f}", str(each.processes),
        ]
        for each in found.processes
    ]  # fmt: skip
    out.table(PROCESS_COLUMNS, rows)
    if found.runs:
        out.text()
        out.table(
            RUN_COLUMNS, [[each.run, each.agent, each.state, each.doing] for each in found.runs[:RUNS_SHOWN]]
        )
