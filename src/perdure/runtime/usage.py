"""What a runtime uses, live: read from ``/proc`` by the process that drives the runs, published in a small file beside the database.

Resident memory counts pages that processes share in each of them. Code of native agents runs in the runtime's own process, so that
processor time and memory of one of their runs cannot be told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from perdure.core.errors import DefinitionError, PerdureError
from perdure.core.records import RunFilter, Status
from perdure.engines.embedded.admission import quarantined

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

log = logging.getLogger("perdure.usage")
FILE = "top.json"  # in the data directory
PERIOD_S = 1.0
STALE_MS = 5_000  # older: nobody publishes any more
RUNS_MAX = 200  # told of each kind: more fit on no screen
PROCESSES_MAX = 4_096  # looked at below the runtime; what is beyond is not counted
PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ENGINES = ("qemu-system", "runsc")  # programs that are the wall of a sandbox
Kind = Literal["runtime", "program", "sandbox", "other"]


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process that the runtime has started, with all below it; or the runtime itself, alone.

    Attributes:
        pid: its number.
        kind: ``program`` (hosted), ``sandbox`` (one job's, or the one from which they are made), ``other`` (such as a tool server).
        name: what it is called.
        run: the run that a program belongs to.
        agent: that run's agent.
        tier: the wall around a program.
        cpu_percent: of one processor, since the look before.
        memory_bytes: resident.
        processes: how many it is.
    """

    pid: int
    kind: Kind
    name: str
    cpu_percent: float
    memory_bytes: int
    processes: int
    run: str = ""
    agent: str = ""
    tier: str = ""


class RunUse(msgspec.Struct, frozen=True, kw_only=True):
    """A run in memory or in the queue: ``running``, ``waiting``, ``queued``, or ``held`` with ``agent-quarantined``."""

    run: str
    agent: str
    state: Literal["running", "waiting", "queued", "held"]
    doing: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime uses.

    Attributes:
        at_ms: when this was read.
        pid: the runtime's process.
        worker: its name in the store.
        running: runs that execute.
        waiting: runs that wait in memory.
        concurrency: how many may execute.
        resources: what there is, what runs have asked for, and agents whose runs wait for it.
        quarantined: agents whose runs are held.
        processes: the runtime and what it has started.
        runs: at most ``RUNS_MAX`` in memory and as many in the queue.
    """

    at_ms: int
    pid: int
    worker: str
    running: int
    waiting: int
    concurrency: int
    resources: Mapping[str, Any]
    quarantined: tuple[str, ...]
    processes: tuple[ProcessUse, ...]
    runs: tuple[RunUse, ...]


class Seen(msgspec.Struct, frozen=True):
    """A process as the kernel tells of it."""

    name: str
    ticks: int
    ticks_below: int
    memory_bytes: int


class Publisher:
    """Looks and publishes until cancelled.

    Args:
        runtime: one that drives runs.
        folder: the data directory.
    """

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime = runtime
        self._path = folder / FILE
        self._before: dict[int, int] = {}
        self._looked_s = 0.0

    async def work(self) -> None:
        """Publish every ``PERIOD_S``; what goes wrong is logged once, and tried again."""
        is_told = False
        try:
            while True:
                try:
                    await self._publish()
                except (OSError, PerdureError) as error:
                    if not is_told:
                        log.warning("what is used cannot be published: %s", error)
                    is_told = True
                await asyncio.sleep(PERIOD_S)
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    async def _publish(self) -> None:
        found = self.now()
        owned = self._programs()
        now_s = asyncio.get_running_loop().time()
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        processes = await asyncio.to_thread(self._measured, owned, elapsed_s)
        data = msgspec.json.encode(msgspec.structs.replace(found, processes=processes))
        await asyncio.to_thread(self._write, data)

    def now(self) -> Usage:
        """Runs and resources at this moment, without processes."""
        runtime = self._runtime
        engine, now_ms = runtime.engine, runtime.now_ms()
        if engine is None:
            raise DefinitionError("only a runtime that drives runs knows what they use")
        want = RunFilter(status=(Status.QUEUED,), limit=RUNS_MAX)
        queued, held = runtime.store.read(lambda tx: (tx.runs(want), quarantined(tx, now_ms)))
        hosts = list(engine.hosts.values())
        inside = [
            RunUse(
                run=host.run_id, agent=host.agent.name, state="waiting" if host.is_parked else "running",
                doing=next((call.request.name for call in host.calls.values()), ""),
            )
            for host in sorted(hosts, key=lambda host: (host.is_parked, host.run_id))[:RUNS_MAX]
        ]  # fmt: skip
        outside = [
            RunUse(run=row.id, agent=row.agent, state="held", doing="agent-quarantined")
            if row.agent in held
            else RunUse(run=row.id, agent=row.agent, state="queued")
            for row in queued
        ]
        return Usage(
            at_ms=now_ms, pid=os.getpid(), worker=engine.name, running=sum(not host.is_parked for host in hosts),
            waiting=sum(host.is_parked for host in hosts), concurrency=engine.settings.concurrency,
            resources=engine.admission.facts(engine.active), quarantined=tuple(sorted(held)), processes=(),
            runs=(*inside, *outside),
        )  # fmt: skip

    def _programs(self) -> dict[int, tuple[str, str, str]]:
        """Run, agent and wall of the hosted programs, by process."""
        outside = self._runtime.engine.outside if self._runtime.engine is not None else None
        living = getattr(outside.programs, "living", {}) if outside is not None else {}
        return {pid: (each.seat.run_id, each.seat.agent, each.within) for pid, each in living.items()}

    def _measured(
        self, programs: Mapping[int, tuple[str, str, str]], elapsed_s: float
    ) -> tuple[ProcessUse, ...]:
        own = os.getpid()
        before, self._before = self._before, {}
        found = []
        for pid in (own, *children_of(own)):
            members = [pid] if pid == own else list(tree_of(pid))
            seen = [each for member in members if (each := seen_process(member)) is not None]
            if not seen:
                continue
            ticks = seen[0].ticks if pid == own else sum(each.ticks + each.ticks_below for each in seen)
            self._before[pid] = ticks
            run, agent, tier = programs.get(pid, ("", "", ""))
            kind: Kind = "runtime" if pid == own else "program" if run else _kind_of(pid)
            share = max(0, ticks - before.get(pid, ticks)) / TICKS_PER_S / elapsed_s if elapsed_s > 0 else 0.0
            found.append(
                ProcessUse(
                    pid=pid, kind=kind, name=seen[0].name, run=run, agent=agent, tier=tier, cpu_percent=round(100 * share, 1),
                    memory_bytes=sum(each.memory_bytes for each in seen), processes=len(seen),
                )
            )  # fmt: skip
        return tuple(found)

    def _write(self, data: bytes) -> None:
        unfinished = self._path.with_suffix(".new")
        unfinished.write_bytes(data)
        unfinished.replace(self._path)  # whoever reads finds the whole of it


def published(folder: Path) -> Usage | None:
    """What the process that drives a data directory has published last; ``None`` if there is none."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Usage)
    except (OSError, msgspec.MsgspecError):
        return None


def seen_process(pid: int, proc: Path = PROC) -> Seen | None:
    """A process as ``/proc/PID/stat`` tells of it; ``None`` if it is gone."""
    try:
        text = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    name, _, rest = text.partition(b"(")[2].rpartition(b")")
    parts = rest.split()
    return Seen(
        name.decode(errors="replace"),
        int(parts[11]) + int(parts[12]),
        int(parts[13]) + int(parts[14]),
        int(parts[21]) * PAGE_BYTES,
    )


def children_of(pid: int, proc: Path = PROC) -> list[int]:
    """The processes that one has started, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def tree_of(pid: int) -> Iterator[int]:
    """A process and all below it, at most ``PROCESSES_MAX``."""
    left, count = [pid], 0
    while left and count < PROCESSES_MAX:
        one = left.pop()
        yield one
        count += 1
        left += children_of(one)


def _kind_of(pid: int) -> Kind:
    """What a process that is no program is, by its command."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "other"
    is_engine = command[0].rpartition("/")[2].startswith(ENGINES)
    return "sandbox" if is_engine or any(word.startswith("/proc/self/fd/") for word in command) else "other"
