"""Measure of the sandboxes with a kernel of their own: from the call to the result, cold and warm, beside what others publish.

python -m bench.sandbox_vms [--jobs 40] [--tools .setup/sandboxes]

Cold: the sandbox is made when the job comes. Warm: it was kept ready, and is used once like any other. Each job is ``print(1)``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.sandboxes.gvisor import GvisorSandboxes
from perdure.sandboxes.microvm import MicrovmSandboxes

LIMITS = SandboxLimits(memory_bytes=256 * MIB)
JOB = SandboxJob(code="print(1)")
# What they say of themselves, on machines of theirs and with KVM; how long a sandbox takes to be there, without the job.
PUBLISHED = (
    ("OpenSandbox: create, p50", "64"),
    ("Daytona: create", "90"),
    ("E2B (Firecracker): start", "125-150"),
    ("AgentCore: p75", "1,900-2,000"),
)


async def measure(sandboxes: Any, jobs: int) -> list[float]:
    """Milliseconds of each job, sorted; one after the other, with whatever is kept ready there again."""
    await sandboxes.open()
    try:
        found = []
        for _ in range(jobs):
            await sandboxes._pool.filled()
            began = time.perf_counter()
            outcome = await sandboxes.run(JOB)
            found.append((time.perf_counter() - began) * 1_000)
            if outcome.stdout != b"1\n":
                raise RuntimeError(f"the job failed: {outcome}")
        return sorted(found)
    finally:
        await sandboxes.close()


def _bare() -> float:
    began = time.perf_counter()
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", JOB.code], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1_000


async def _all(jobs: int, tools: Path) -> int:
    console, table = Console(), Table("from call to result", "median ms", "p99 ms", "jobs", "wall")
    for name, make in (
        ("gvisor", lambda spare: GvisorSandboxes(LIMITS, spare=spare, tools=tools)),
        ("microvm", lambda spare: MicrovmSandboxes(LIMITS, spare=spare, tools=tools, image=tools / "image")),
    ):
        for kind, spare in (("cold", 0), ("warm", 1)):
            sandboxes = make(spare)
            try:
                found = await measure(sandboxes, jobs)
            except SandboxUnavailableError as error:
                table.add_row(f"Perdure {name}, {kind}", "-", "-", "-", error.message)
                continue
            last = found[min(len(found) - 1, int(len(found) * 0.99))]
            wall = (sandboxes.parts.get("machine") or sandboxes.parts["kernel"]).partition(";")[0]
            table.add_row(
                f"Perdure {name}, {kind}", f"{median(found):.0f}", f"{last:.0f}", str(len(found)), wall
            )
    bare = sorted(_bare() for _ in range(jobs))
    last = bare[min(len(bare) - 1, int(len(bare) * 0.99))]
    table.add_row(
        "bare python3 -I -S",
        f"{median(bare):.0f}",
        f"{last:.0f}",
        str(len(bare)),
        "none: how fast this machine is now",
    )
    for name, figure in PUBLISHED:
        table.add_row(f"published: {name}", figure, "", "", "their machine")
    console.print(table)
    console.print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; published figures were not measured here"
    )
    return 0


def main() -> int:
    """Zero also when a tier is not there: the table says why."""
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox_vms", description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--tools", type=Path, default=Path(".setup/sandboxes"))
    asked = parser.parse_args()
    return asyncio.run(_all(asked.jobs, asked.tools))


if __name__ == "__main__":
    sys.exit(main())
