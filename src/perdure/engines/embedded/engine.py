"""The embedded engine: accepts runs, claims them under leases, drives their hosts, and gives them back.

Who does what: ``Dispatcher`` (claims, leases, schedules), ``Worker`` (steps, waits, endings of the runs in
memory), ``works`` (what may be done to a run from outside). The engine owns their tasks and the runs in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from perdure.agents.agent import Agent
from perdure.agents.requests import ProgramCall
from perdure.core.errors import DrainingError, PerdureError, RefusedError, UsageError
from perdure.core.ids import run_id
from perdure.core.limits import Settings
from perdure.core.records import RunRecord, Status
from perdure.core.values import Payload
from perdure.engines.embedded import works
from perdure.engines.embedded.acts import Outside
from perdure.engines.embedded.admission import Admission, quarantined
from perdure.engines.embedded.dispatch import Dispatcher
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.watch import Watchers
from perdure.engines.embedded.worker import Worker
from perdure.ports import Clock, Entropy, NullTelemetry, Store, Telemetry

log = logging.getLogger("perdure.engine")
SEED_BITS = 62  # fits SQLite's and JSON's signed 64-bit integers


class Places(Protocol):
    """Where the code of agents runs, if not in this process."""

    def host(self, worker: Worker, run: RunRecord, agent: Agent) -> Host | None:
        """A host for a run whose code runs elsewhere; ``None``: it runs here."""
        ...


class EmbeddedEngine:
    """Drives the runs of the given agents on one store.

    Args:
        store: where everything durable is.
        agents: definitions by name; runs of other agents are left alone.
        clock: the time of day.
        entropy: ids, seeds, jitter.
        settings: limits.
        telemetry: listens to spans and counts.
        name: the worker's id; made up if not given.
        alone: no other engine works on this store, so leases of others are dead.
        thread: runs a plain function in a thread; ``None`` where there are none (the simulator).
        outside: the gateway, the tools of each agent, and where programs run; without it runs cannot act.
        places: where the code of agents runs; without it, in this process.
        admission: what executing runs may ask for together; by default without limit.
    """

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        *,
        clock: Clock,
        entropy: Entropy,
        settings: Settings | None = None,
        telemetry: Telemetry | None = None,
        name: str | None = None,
        alone: bool = False,
        thread: Callable[..., Coroutine[Any, Any, Any]] | None = asyncio.to_thread,
        outside: Outside | None = None,
        places: Places | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.store = store
        self.agents = agents
        self.clock = clock
        self.entropy = entropy
        self.settings = settings or Settings()
        self.telemetry = telemetry or NullTelemetry()
        self.name = name or f"worker-{entropy.bits(40):010x}"
        self.alone = alone
        self.thread = thread
        self.outside = outside
        self.places = places
        self.admission = admission or Admission()
        self.loop = asyncio.get_running_loop()
        self.hosts: dict[str, Host] = {}
        self.parked: OrderedDict[str, Host] = OrderedDict()
        self.active: dict[str, int] = dict.fromkeys(agents, 0)
        self.accepting: set[str] = set()  # new runs that begin here as soon as their transaction is answered
        self.suspect: str | None = None
        self.is_draining = False
        self.watchers = Watchers()
        self.worker = Worker(self)
        self.dispatcher = Dispatcher(self)
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life
    async def begin(self) -> None:
        """Take the lease and start to claim; runs of dead workers go on from here."""
        await self.dispatcher.begin()
        self.spawn(self.dispatcher.serve(), name="perdure-dispatch")

    async def drain(self, within_ms: int | None = None) -> None:
        """Stop: claim nothing more, let running steps end (at most ``within_ms``), give every run back."""
        self.is_draining = True
        self.dispatcher.stop()
        for host in list(self.hosts.values()):
            for open_call in list(host.calls.values()):
                if isinstance(open_call.request, ProgramCall) and open_call.task is not None:
                    open_call.task.cancel()  # it may run for days; its calls are recorded, so it is simply started again
        grace_ms = self.settings.drain_ms if within_ms is None else within_ms
        until = self.loop.time() + grace_ms / 1000
        while any(host.busy for host in self.hosts.values()) and self.loop.time() < until:
            await asyncio.sleep(0.005)
        await asyncio.gather(*(self._give_back(host) for host in list(self.hosts.values())))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.store.transact(lambda tx: tx.retire(self.name))
        except PerdureError as error:  # the lease ends by itself
            log.warning("the lease was not given back: %s", error)
        self.watchers.close()

    async def _give_back(self, host: Host) -> None:
        parked = host.is_parked
        self.forget(host)
        if parked:
            return
        try:
            await self.store.transact(
                lambda tx: tx.move(host.run_id, host.fence, Status.QUEUED, now_ms=self.clock.now_ms())
            )
        except PerdureError as error:  # the lease ends by itself
            log.warning("run %s was not given back: %s", host.run_id, error)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """A task that the engine owns: cancelled at drain, and a failure of it is a bug that is logged."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s of the engine failed", task.get_name(), exc_info=error)

    # -- runs in memory
    def host(self, run: RunRecord) -> Host:
        """A run in memory, before its first entry."""
        agent = self.agents[run.agent]
        found = None if self.places is None else self.places.host(self.worker, run, agent)
        return found or Host(self.worker, run, agent)

    def adopt(self, host: Host) -> None:
        """Keep a host as an executing run."""
        self.hosts[host.run_id] = host
        self.active[host.agent.name] += 1

    def rest(self, host: Host) -> None:
        """Keep a parked host in memory, and evict the one that has been parked longest if there are too many."""
        self.active[host.agent.name] -= 1
        host.rest()
        self.parked[host.run_id] = host
        if self.suspect == host.run_id:
            self.suspect = None
        while len(self.parked) > self.settings.resident_runs_max:
            _, oldest = self.parked.popitem(last=False)
            self.forget(oldest)
        self.dispatcher.poke_soon()

    def rouse(self, host: Host) -> None:
        """A parked host executes again."""
        self.parked.pop(host.run_id, None)
        host.is_parked = False
        self.active[host.agent.name] += 1

    def forget(self, host: Host) -> None:
        """Evict a run from memory; what it has recorded is all that remains."""
        if self.hosts.get(host.run_id) is host:
            del self.hosts[host.run_id]
            self.parked.pop(host.run_id, None)
            if not host.is_parked:
                self.active[host.agent.name] -= 1
            if self.suspect == host.run_id:
                self.suspect = None
        host.close()
        self.dispatcher.poke_soon()

    def room(self) -> int:
        """How many more runs may execute."""
        return self.settings.concurrency - sum(self.active.values())

    # -- accepting
    def new_run(
        self, agent: Agent, payload: Payload, blobs: Mapping[str, bytes], **options: Any
    ) -> works.NewRun:
        """A run to be accepted, with a fresh id (unless given) and seed."""
        if "id" not in options:
            options["id"] = run_id(self.clock.now_ms(), self.entropy.bits(60))
        options.setdefault("conflict", agent.conflict)
        options.setdefault("budget", agent.budget)
        return works.NewRun(
            agent=agent.name,
            version=agent.version,
            input=payload,
            blobs=blobs,
            chance=self.entropy.bits(SEED_BITS),
            **options,
        )

    async def start(self, new: works.NewRun) -> RunRecord:
        """Accept a run, durably on return; it begins at once if there is room.

        Raises:
            DrainingError: the engine is stopping.
            SessionBusyError: see ``works.start``.
        """
        if self.is_draining:
            raise DrainingError("the runtime is stopping and takes no new runs; start it on another one")
        agent = self.agents[new.agent]
        now_ms = self.clock.now_ms()
        at_once = self.room() > 0 and self._has_room(agent) and self.dispatcher.is_idle and new.priority >= 0
        worker = self.name if at_once else None
        if at_once:
            self.active[agent.name] += 1  # reserved while the transaction is under way
            self.accepting.add(new.id)
        try:
            record, touched = await self.store.transact(
                lambda tx: works.start(
                    tx, new, now_ms, worker=None if new.agent in quarantined(tx, now_ms) else worker
                )
            )
        except BaseException as error:
            if at_once and not isinstance(error, UsageError | RefusedError):
                self.dispatcher.doubt()  # no answer, or the caller went away: it may be ours all the same
            raise
        finally:
            self.accepting.discard(new.id)
            if at_once:
                self.active[agent.name] -= 1
        self.look_after(touched)
        if record.worker == self.name and record.id == new.id and record.status is Status.RUNNING:
            self.worker.begin(record, fresh=new)
        elif record.status is Status.QUEUED:
            self.dispatcher.poke()
        return record

    def _has_room(self, agent: Agent) -> bool:
        is_free = agent.concurrency is None or self.active[agent.name] < agent.concurrency
        return is_free and self.admission.room(agent.name, self.active) > 0

    def look_after(self, touched: list[str] | tuple[str, ...]) -> None:
        """Something happened to these runs: those in memory look, the others may be claimable."""
        for name in touched:
            host = self.hosts.get(name)
            if host is not None and not host.is_parked:
                self.worker.settle(host, forced=True)
            self.watchers.tell(name)
        if touched:
            self.dispatcher.poke()

    def rules_version(self, agent: Agent) -> str:
        """The version of the agent that this worker has."""
        return agent.version
