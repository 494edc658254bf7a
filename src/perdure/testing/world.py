"""A simulated world: workers that crash, stand still and disagree about the time, and what reaches the outside."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from perdure.agents.agent import Agent
from perdure.core.limits import Settings
from perdure.engines.embedded.engine import EmbeddedEngine
from perdure.stores.sqlite.transaction import SqliteTransaction
from perdure.testing.chance import Chance, SimEntropy, Swarm
from perdure.testing.loop import INCARNATION, SimLoop
from perdure.testing.oracle import Oracle
from perdure.testing.store import SimDisk, SimStore

EPOCH_MS = 1_700_000_000_000
LEASE_MS = 3_000
FAULTY_S = 25.0  # virtual seconds with faults
HEALED_S = 240.0  # virtual seconds in which everything must end without faults

_world: contextvars.ContextVar[World] = contextvars.ContextVar("perdure_world")


def here() -> World:
    """The world in which this code runs."""
    return _world.get()


class ToolError(Exception):
    """A step's own failure."""


@dataclass
class SimClock:
    """The ``Clock`` port of one worker: skewed, and it may jump."""

    loop: SimLoop
    skew_ms: int = 0

    def now_ms(self) -> int:
        """Milliseconds of the epoch, as this worker believes."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.skew_ms


@dataclass
class Process:
    """One life of a worker."""

    slot: int
    name: str
    worker: str
    context: contextvars.Context
    clock: SimClock
    engine: EmbeddedEngine | None = None
    is_alive: bool = True


class World:
    """One seed.

    Args:
        seed: decides everything.
        only: the faults that may happen; ``None`` is all that the seed gives.
        transaction: how the store writes (planted bugs have their own).
    """

    def __init__(
        self,
        seed: int,
        only: frozenset[str] | None = None,
        *,
        transaction: type[SqliteTransaction] = SqliteTransaction,
    ) -> None:
        from perdure.testing import acting, workload

        self.seed = seed
        self.chance = Chance(seed, only)
        self.swarm = Swarm.of(self.chance)
        self.loop = SimLoop()  # type: ignore[abstract] # what is not simulated raises on use
        self.disk = SimDisk(transaction)
        self.agents: dict[str, Agent] = {item.name: item for item in (*workload.AGENTS, *acting.ACTORS)}
        self.trace: list[str] = []
        self.sometimes: Counter[str] = Counter()
        self.oracle = Oracle(self)
        self.ledger = self.oracle.ledger
        self.processes: list[Process | None] = [None] * self.swarm.workers
        self.graveyard: list[Process] = []
        self.crashes = 0
        self._born = 0
        self._performed = 0
        self.context = contextvars.copy_context()

    # -- what happened
    def log(self, *what: object) -> None:
        """Add a line to the trace."""
        who = INCARNATION.get() or "world"
        self.trace.append(f"{self.loop.time():>9.3f} {who:<6} " + " ".join(map(str, what)))

    def hash(self) -> str:
        """A digest of the trace: equal for equal seeds."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    # -- running
    def run(self) -> None:
        """Live through the seed.

        Raises:
            Violation: an invariant does not hold.
        """
        self.context.run(self._run)

    def _run(self) -> None:
        from perdure.testing.clients import Clients

        _world.set(self)
        watch = _Log(self)
        logger = logging.getLogger("perdure")
        logger.addHandler(watch)
        level, propagates = logger.level, logger.propagate
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            self.loop.run_until_complete(self._live(Clients(self)))
        finally:
            logger.removeHandler(watch)
            logger.setLevel(level)
            logger.propagate = propagates
            self._dispose()

    async def _live(self, clients: Any) -> None:
        for slot in range(self.swarm.workers):
            self.boot(slot)
        chaos = self.loop.create_task(self._chaos())
        await clients.work()
        await asyncio.sleep(max(0.0, FAULTY_S - self.loop.time()))
        chaos.cancel()
        self._heal()
        until = self.loop.time() + HEALED_S
        while self.loop.time() < until:
            await clients.help()
            await asyncio.sleep(1.0)
            for process in self._up():
                self.oracle.progress(process.name, process.engine)
            if not self.oracle.unfinished() and not self.ledger.open() and clients.is_done:
                break
        self.log("end")
        await asyncio.sleep(15.0)  # the last answers, and those who stood still, come back
        self.oracle.finished()
        for process in self._up():
            self.oracle.at_rest(process.worker, process.engine)

    async def _chaos(self) -> None:
        """Faults that come from outside, one look at a time."""
        swarm, chance = self.swarm, self.chance
        while True:
            await asyncio.sleep(chance.between("chaos ms", 300, 3_000) / 1000)
            process = chance.pick("victim", self.processes)
            if process is None or not process.is_alive:
                continue
            if chance.fault("crash", swarm.crash):
                self.crash(process.name, "at random")
            elif chance.fault("pause", swarm.pause):
                seconds = chance.between("pause ms", 200, 4 * LEASE_MS) / 1000
                self.sometimes["pause"] += 1
                self.log("pause", process.name, seconds)
                self.loop.pause(process.name, seconds)
            elif chance.fault("clock", swarm.clock_step):
                process.clock.skew_ms += chance.between("clock ms", -8_000, 8_000)
                self.sometimes["clock step"] += 1
                self.log("clock", process.name, process.clock.skew_ms)
            elif process.engine is not None and chance.fault("drain", swarm.drain):
                self.sometimes["drain"] += 1
                self.log("drain", process.name)
                self.call(process, lambda engine=process.engine: self._drain(engine))  # type: ignore[misc]

    async def _drain(self, engine: EmbeddedEngine) -> None:
        await engine.drain(self.chance.between("drain ms", 0, 2_000))
        self.crash(INCARNATION.get() or "", "after a drain")

    def _heal(self) -> None:
        self.log("heal")
        self.chance.is_healed = True
        self.swarm.step_ms = min(self.swarm.step_ms, 400)
        for process in self.processes:
            if process is not None:
                process.clock.skew_ms = 0

    # -- processes
    def boot(self, slot: int) -> None:
        """Begin a life of a worker."""
        self._born += 1
        name = f"w{slot}.{self._born}"
        context = self.context.copy()
        context.run(INCARNATION.set, name)
        bound = 0 if self.chance.is_healed else self.swarm.skew_ms
        clock = SimClock(self.loop, self.chance.between("skew", -bound, bound))
        worker = f"w{slot}" if self.swarm.named else name  # an operator may give workers lasting names
        process = Process(slot, name, worker, context, clock)
        self.processes[slot] = process
        self.log("boot", name, clock.skew_ms)
        self.call(process, lambda: self._begin(process))

    async def _begin(self, process: Process) -> None:
        engine = context_engine(self, process)
        while True:
            try:
                await engine.begin()
                break
            except Exception as error:  # noqa: BLE001 - the store did not answer: its supervisor tries again
                self.log("begin failed", error)
                await asyncio.sleep(0.5)
        process.engine = engine

    def call(self, process: Process, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Do something inside a process; it dies with it."""
        return process.context.copy().run(lambda: self.loop.create_task(work()))

    def crash(self, name: str, where: str) -> None:
        """A process dies now; another life of its worker begins later."""
        process = next((item for item in self.processes if item is not None and item.name == name), None)
        if process is None:
            return
        self.crashes += 1
        self.sometimes[f"crash {where}"] += 1
        self.log("CRASH", name, where)
        self.loop.kill(name)
        process.is_alive = False
        self.graveyard.append(process)
        self.processes[process.slot] = None
        delay_s = self.chance.between("down ms", 10, 5_000) / 1000
        self.loop.call_later(delay_s, self.boot, process.slot, context=self.context.copy())

    def _up(self) -> list[Any]:
        """The processes whose engine works."""
        return [item for item in self.processes if item is not None and item.engine is not None]

    def holder(self) -> Process | None:
        """A process that is up, by chance."""
        up = self._up()
        return self.chance.pick("which worker", up) if up else None

    # -- the outside world
    async def perform(self, action: str, seen: str, *, may_hang: bool = False) -> str:
        """What a step does: reach the world under the action's key, and fail in every way on both sides of that."""
        chance, swarm = self.chance, self.swarm
        name = INCARNATION.get() or ""
        self.oracle.step_begins(name.split(".")[0] if swarm.named else name, action, seen)
        await asyncio.sleep(chance.between("step ms", 0, swarm.step_ms) / 1000)
        if may_hang and chance.fault("step hangs", swarm.step_hangs):
            self.sometimes["step hung"] += 1
            await asyncio.sleep(3_600)
        if chance.fault("step fails before", swarm.step_fails_before):
            self.sometimes["step failed before its effect"] += 1
            raise ToolError("before the effect")
        self._performed += 1
        key = self.key_of(action)
        self.log("effect", key)
        self.oracle.effect(action, key)
        if chance.fault("crash in step", swarm.crash_in_step):
            self.crash(name, "after an effect")
            await self.loop.create_future()
        if chance.fault("step fails after", swarm.step_fails_after):
            self.sometimes["step failed after its effect"] += 1
            raise ToolError("after the effect")
        token = f"{action}#{self._performed}"
        await asyncio.sleep(chance.between("answer ms", 0, swarm.step_ms // 4) / 1000)
        return token

    def key_of(self, action: str) -> str:
        """The idempotency key of an action: its run and number, never an attempt."""
        return action

    def _dispose(self) -> None:
        self.loop.is_disposed = True
        for process in (*self.graveyard, *self.processes):
            if process is not None and process.engine is not None:
                for host in list(process.engine.hosts.values()):
                    host.is_closed = True
                    host.loop.abandon()
        self.loop.dispose()
        self.disk.connection.close()


def context_engine(world: World, process: Process) -> EmbeddedEngine:
    """The engine of a process, with limits drawn by its seed."""
    from perdure.testing.tools import outside_of

    swarm = world.swarm
    settings = Settings(
        concurrency=swarm.concurrency,
        resident_runs_max=swarm.resident,
        lease_ms=LEASE_MS,
        poll_ms=250,
        recoveries_max=swarm.recoveries_max,
        drain_ms=1_000,
    )
    return EmbeddedEngine(
        SimStore(world, process.worker),
        world.agents,
        clock=process.clock,
        entropy=SimEntropy(world.chance, process.name),
        settings=settings,
        name=process.worker,
        thread=None,
        outside=outside_of(world.agents),
    )


class _Log(logging.Handler):
    """What the engine logs as an error is a violation, but for runs that it may block."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        world = self._world
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        world.log(record.levelname, text)
        if record.levelno < logging.ERROR or world.loop.is_disposed:
            return
        if "(run-quarantined)" in text:
            world.sometimes["run quarantined"] += 1
            return
        from perdure.testing.oracle import Violation

        world.loop.fail(Violation(f"invariant 2: the engine says: {text}"))
