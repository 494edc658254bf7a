"""What a fresh sandbox costs: ``python -m bench.sandboxes``.

Beside a bare interpreter that is started and ended in the same round; memory; neighbours of bombs; the same as an ordinary user.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - before we cannot read where we are any more
import contextlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.sandboxes.namespace import NamespaceSandboxes

BARE = ("/usr/bin/python3", "-I", "-S", "-c", "print(1)")
JOB = SandboxJob(code="print(1)")
SAMPLES = 300
PAUSE_S = 0.02  # between two: what comes in all at once is the throughput
IN_FLIGHT = 8
NOBODY = 65_534
BOMBS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "held = []\nwhile True: held.append(bytearray(b'x' * 1_000_000))",
    "disk filler": "f = open('big', 'wb')\nwhile True:\n    try: f.write(b'x' * 100_000)\n    except OSError: f.seek(0)",
    "output flood": "import os, signal\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\nwhile True: os.write(1, b'x' * 9999)",
    "busy loop": "while True: pass",
    "zombie maker": "import os\nwhile True:\n    try:\n        if os.fork() == 0: os._exit(0)\n    except OSError: pass",
}
RIVALS = {
    "OpenSandbox, create (published)": "64 ms p50",
    "Daytona, create (published)": "90 ms",
    "E2B / Firecracker, create (published)": "125-150 ms",
    "AgentCore, session (published)": "1.9-2.0 s p75",
}


def _percentile(found: list[float], share: float) -> float:
    return sorted(found)[min(len(found) - 1, int(len(found) * share))]


async def _bare() -> float:
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *BARE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if said != b"1\n":
        raise RuntimeError("the bare interpreter did not work")
    return (time.perf_counter() - began) * 1000


async def _walled(sandboxes: NamespaceSandboxes) -> float:
    began = time.perf_counter()
    found = await sandboxes.run(JOB)
    if found.stdout != b"1\n":
        raise RuntimeError(f"a sandbox did not work: {found.ending}")
    return (time.perf_counter() - began) * 1000


async def latency() -> dict[str, float]:
    """One at a time, in turns: bare, from the pool, forked on demand."""
    warm = NamespaceSandboxes(spare=4)
    cold = NamespaceSandboxes(spare=0, spare_max=0)
    await warm.open()
    await cold.open()
    try:
        found: dict[str, list[float]] = {"bare": [], "warm": [], "on demand": []}
        for _ in range(SAMPLES):
            found["bare"].append(await _bare())
            await asyncio.sleep(PAUSE_S)
            found["warm"].append(await _walled(warm))
            await asyncio.sleep(PAUSE_S)
            found["on demand"].append(await _walled(cold))
            await asyncio.sleep(PAUSE_S)
        told = {
            f"{name} {label}": value
            for name, times in found.items()
            for label, value in (("p50", median(times)), ("p99", _percentile(times, 0.99)))
        }
        told["private MiB"] = _private_mib(warm)
        return told
    finally:
        await warm.close()
        await cold.close()


async def throughput() -> dict[str, float]:
    """So many at once, as fast as they go."""
    sandboxes = NamespaceSandboxes(spare=IN_FLIGHT, spare_max=2 * IN_FLIGHT)
    await sandboxes.open()
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(bare: bool) -> None:
        async with room:
            await (_bare() if bare else _walled(sandboxes))

    try:
        rates = {}
        for name, is_bare in (("walled", False), ("bare", True)):
            began = time.perf_counter()
            await asyncio.gather(*(one(is_bare) for _ in range(2 * SAMPLES)))
            rates[f"{name} per s"] = 2 * SAMPLES / (time.perf_counter() - began)
        return rates
    finally:
        await sandboxes.close()


def _private_mib(sandboxes: NamespaceSandboxes) -> float:
    """Of one spare sandbox: the private memory of its two processes."""
    zygote = sandboxes._zygote  # noqa: SLF001 - nobody else needs to know which process it is
    if zygote is None:
        return 0.0
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            children.setdefault(int(path.read_text().rsplit(")", 1)[1].split()[1]), []).append(
                int(path.parent.name)
            )
    inner = children.get(zygote._process.pid, [])  # noqa: SLF001
    first = [pid for each in inner for pid in children.get(each, [])]
    sizes = [sum(map(_private_kib, (pid, *children.get(pid, [])))) for pid in first]
    return sum(sizes) / max(1, len(sizes)) / 1024


def _private_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(
        int(number) for number in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE)
    )


async def neighbours() -> dict[str, tuple[float, float]]:
    """The p99 of small jobs alone, and beside each bomb: as a share of a processor each bomb has at most half of one of two."""
    limits = SandboxLimits(
        cpu_share=0.5, wall_ms=20_000, cpu_ms=60_000, memory_bytes=256 * MIB, disk_bytes=32 * MIB
    )
    bombing = NamespaceSandboxes(limits, spare=1)
    healthy = NamespaceSandboxes(spare=4)
    await bombing.open()
    await healthy.open()

    async def measured(count: int) -> float:
        times = []
        for _ in range(count):
            times.append(await _walled(healthy))
            await asyncio.sleep(PAUSE_S)
        return _percentile(times, 0.99)

    async def again(code: str) -> None:
        while True:
            await bombing.run(SandboxJob(code=code), SandboxLimits(wall_ms=10_000, output_bytes=1 << 20))

    found: dict[str, tuple[float, float]] = {}
    try:
        for name, code in BOMBS.items():
            alone = await measured(SAMPLES // 2)
            bomb = asyncio.ensure_future(again(code))
            await asyncio.sleep(0.3)
            beside = await measured(SAMPLES // 2)
            bomb.cancel()
            await asyncio.gather(bomb, return_exceptions=True)
            found[name] = (alone, beside)
    finally:
        await bombing.close()
        await healthy.close()
    return found


def _ordinary(told: Any) -> None:
    """In a process of its own: the same as an ordinary user."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        told.send(asyncio.run(latency()))
    except Exception as error:  # noqa: BLE001 - told to whoever waits
        told.send(str(error))


def ordinary() -> dict[str, float] | str:
    """Latency without any right of root's; where we are no root, the same again."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_ordinary, args=(theirs,))
    process.start()
    found = ours.recv() if ours.poll(120) else "it took too long"
    process.join(10)
    return found  # type: ignore[no-any-return]


def _row(table: Table, what: str, value: str, wanted: str, is_met: bool | None) -> None:
    table.add_row(
        what, value, wanted, "" if is_met is None else "[green]met[/]" if is_met else "[red]missed[/]"
    )


def show(found: Mapping[str, Any], console: Console) -> None:
    """The table."""
    table = Table("fresh namespace sandbox, print(1)", "measured", "wanted", "")
    for who, times in (("as started", found["latency"]), ("as an ordinary user", found["ordinary"])):
        if isinstance(times, str):
            table.add_row(who, times, "", "")
            continue
        bare = times["bare p50"]
        _row(table, f"{who}: bare interpreter, no wall, p50", f"{bare:.1f} ms", "", None)
        _row(table, f"{who}: warm, p50", f"{times['warm p50']:.1f} ms", "5 ms", times["warm p50"] < 5)
        _row(table, f"{who}: warm, p99", f"{times['warm p99']:.1f} ms", "15 ms", times["warm p99"] < 15)
        ratio = times["warm p50"] / bare
        _row(table, f"{who}: warm over bare", f"{ratio:.2f}x", "0.7x", ratio < 0.7)
        ratio = times["on demand p50"] / bare
        _row(table, f"{who}: forked on demand over bare", f"{ratio:.2f}x", "1.3x", ratio < 1.3)
        _row(
            table,
            f"{who}: private memory of a warm one",
            f"{times['private MiB']:.2f} MiB",
            "2 MiB",
            times["private MiB"] < 2,
        )
    rates = found["throughput"]
    _row(
        table, f"{IN_FLIGHT} at once", f"{rates['walled per s']:.0f}/s", "180/s", rates["walled per s"] >= 180
    )
    _row(table, "the same bare", f"{rates['bare per s']:.0f}/s", "", None)
    for name, (alone, beside) in found["neighbours"].items():
        _row(
            table,
            f"p99 beside a {name} over alone",
            f"{beside / alone:.2f}x ({alone:.1f} to {beside:.1f} ms)",
            "2x",
            beside <= 2 * alone,
        )
    for name, text in RIVALS.items():
        table.add_row(name, text, "", "")
    console.print(table)


def measure() -> dict[str, Any]:
    """Everything, one after the other."""
    return {
        "ordinary": ordinary(),
        "latency": asyncio.run(latency()),
        "throughput": asyncio.run(throughput()),
        "neighbours": asyncio.run(neighbours()),
    }


def main() -> int:
    """Zero also when targets are missed: the table says so."""
    try:
        found = measure()
    except SandboxUnavailableError as error:
        print(f"no namespaces here: {error.message}")
        return 0
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))
    show(found, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
