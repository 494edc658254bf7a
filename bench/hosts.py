"""Measure of a sandbox host: the same jobs in sandboxes of this process and at a host on loopback, taken in turns.

python -m bench.hosts [--jobs 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from perdure.core.sandbox import SandboxFile, SandboxJob
from perdure.ports import Sandboxes
from perdure.runtime.system import SystemClock
from perdure.sandboxes.host_client import HostAddress, SandboxHosts
from perdure.sandboxes.host_keys import context, enrol
from perdure.sandboxes.namespace import NamespaceSandboxes

PAUSE_S = 0.01  # between two jobs: what is measured is one job, with a sandbox that is ready
WARM = 10
MANY = 8
FILE_BYTES = 1_000_000
JOBS = {
    "print": SandboxJob(code="print(1)"),
    "a megabyte in and out": SandboxJob(
        argv=("/bin/cp", "a", "b"), files=(SandboxFile(name="a", data=bytes(FILE_BYTES)),), collects=True
    ),
}


async def _ms(sandboxes: Sandboxes, job: SandboxJob) -> float:
    began = time.perf_counter()
    found = await sandboxes.run(job)
    took = (time.perf_counter() - began) * 1000
    assert (found.ending, found.exit_code) == ("ended", 0), found
    await asyncio.sleep(PAUSE_S)
    return took


def _row(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {"p50_ms": statistics.median(times), "p99_ms": cuts[98]}


async def _per_s(sandboxes: Sandboxes, jobs: int) -> float:
    left = iter(range(jobs))

    async def work() -> None:
        for _ in left:
            await sandboxes.run(JOBS["print"])

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(MANY)))
    return jobs / (time.perf_counter() - began)


async def measure(folder: Path, *, jobs: int = 200) -> dict[str, Any]:
    """Times of single jobs, in turns, and the rate of eight at once; each beside the other, with the ratio."""
    for name, role in (("alpha", "host"), ("runtime", "client")):
        enrol(folder, name, role, clock=SystemClock())  # type: ignore[arg-type]
    command = [
        sys.executable, "-m", "perdure.cli", "worker", "--role", "sandbox", "--client", "runtime", "--listen", "127.0.0.1:0",
        "--certificate", folder / "alpha.pem", "--key", folder / "alpha.key", "--authority", folder / "authority.pem", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder)
    near = NamespaceSandboxes()
    try:
        port = int(json.loads(process.stdout.readline())["listening"].rpartition(":")[2])
        tls = context("client", folder / "runtime.pem", folder / "runtime.key", folder / "authority.pem")
        far = SandboxHosts([HostAddress("alpha", "127.0.0.1", port)], tls)
        await near.open()
        await far.open()
        result: dict[str, Any] = {}
        for name, job in JOBS.items():
            times: tuple[list[float], list[float]] = ([], [])
            for number in range(WARM + jobs):
                for place, sandboxes in enumerate((near, far)):
                    took = await _ms(sandboxes, job)
                    if number >= WARM:
                        times[place].append(took)
            rows = [_row(each) for each in times]
            ratio = rows[1]["p50_ms"] / rows[0]["p50_ms"]
            result[name] = {"local": rows[0], "host": rows[1], "ratio_p50": ratio}
        rates = {"local": await _per_s(near, jobs), "host": await _per_s(far, jobs)}
        result[f"jobs per second, {MANY} at once"] = {**rates, "ratio": rates["local"] / rates["host"]}
        await far.close()
        return result
    finally:
        await near.close()
        process.terminate()
        process.wait(20)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), jobs=chosen.jobs)), indent=2))


if __name__ == "__main__":
    main()
