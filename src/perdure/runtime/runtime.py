"""The runtime: one data directory, its engine, and everything that may be done from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from perdure.agents.agent import Agent
from perdure.agents.codec import to_json
from perdure.core.actions import Budget
from perdure.core.errors import AgentUnknownError, DefinitionError
from perdure.core.ids import checked_topic, run_id
from perdure.core.limits import Settings
from perdure.core.models import Upstream
from perdure.core.principals import Principal
from perdure.core.records import Conflict, RunFilter, RunRecord, Schedule, Status, statuses
from perdure.core.values import Payload, pack
from perdure.core.workers import Isolation, WorkerRules
from perdure.engines.embedded import EmbeddedEngine, works
from perdure.engines.embedded.acts import Outside
from perdure.engines.embedded.engine import SEED_BITS, Places
from perdure.engines.embedded.watch import Live
from perdure.ports import Clock, Entropy, Secrets, Store, Telemetry, Toolset
from perdure.runtime import forks
from perdure.runtime.actions import Actions
from perdure.runtime.agent_tools import AgentsToolset
from perdure.runtime.approvals import Approvals
from perdure.runtime.approver_keys import Keys
from perdure.runtime.auditing import Audit
from perdure.runtime.config import settings_from
from perdure.runtime.containment import Containments
from perdure.runtime.drifting import Drift
from perdure.runtime.handle import Answerable, RunHandle
from perdure.runtime.isolating import isolated
from perdure.runtime.keeping import keeping
from perdure.runtime.opening import governance_of, opened
from perdure.runtime.outside import World, reach
from perdure.runtime.registry import register
from perdure.runtime.resourcing import ResourcePlan, ResourceRules
from perdure.runtime.rulebook import Rulebook, Rules
from perdure.runtime.schedules import schedule_row
from perdure.runtime.starting import new_run
from perdure.runtime.system import SystemClock, SystemEntropy
from perdure.runtime.undo import Undoing
from perdure.runtime.walls import Recorder, SandboxRules, built_in
from perdure.runtime.watchdog import Watchdog

POLL_S = 0.2  # how often a runtime without an engine looks for changes made by the process that has one


class Runtime:
    """What is open: start runs, find them, talk to them. Made by :meth:`open`."""

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        engine: EmbeddedEngine | None,
        *,
        clock: Clock,
        entropy: Entropy,
        settings: Settings,
    ) -> None:
        self.store = store
        self.agents = agents
        self.engine = engine
        self.settings = settings
        self.is_closed = False
        self.actions = Actions(self)
        self.containment = Containments(self)
        self.undoing = Undoing()
        self.approvals = Approvals(self)
        self.keys = Keys(self)
        self.audit = Audit(self)
        self.drift = Drift(self)
        self._clock = clock
        self.entropy = entropy

    # -- opening
    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        agents: Sequence[Any] = (),
        settings: Settings | None = None,
        telemetry: Telemetry | None = None,
        beside: bool = False,
        upstreams: Sequence[Upstream] = (),
        toolsets: Sequence[Toolset] = (),
        secrets: Secrets | None = None,
        rules: Rules | None = None,
        sandboxes: SandboxRules | None = None,
        isolation: Isolation | WorkerRules = "none",
        resources: ResourceRules | None = None,
    ) -> AsyncIterator[Runtime]:
        """Open a data directory (made if missing) and drive the runs of ``agents``; unfinished ones go on at once.

        On leaving, running steps get ``settings.drain_ms`` to end, and every run is given back.

        Args:
            path: the data directory.
            agents: ``Agent`` definitions, or Pydantic AI agents (taken as they are).
            settings: limits; by default from the environment (``PERDURE_SETTING_CONCURRENCY=8``).
            telemetry: listens to spans and counts.
            beside: do not drive runs: look, send and cancel beside the process that does.
            upstreams: who answers model requests; names of several that stand in for each other may repeat.
            toolsets: MCP servers, OpenAPI documents and databases that agents name in their tools.
            secrets: resolves ``secret://`` references; by default environment, files and keyring.
            rules: what actions are judged by; without them agents may do what their charter says.
            sandboxes: where the toolset ``sandbox`` executes code; by default in namespaces.
            isolation: where agent code runs: ``none`` is this process, ``process`` or ``namespace`` worker processes; or rules.
            resources: what agents may take of the machine; by default what they say themselves, and all of it.

        Raises:
            DataDirLockedError, DataDirInvalidError, CorruptError, StoreReadOnlyError: the directory cannot be used.
            DefinitionError: two agents have one name, one asks for too much, or a setting cannot work.
            SandboxUnavailableError: the isolation that was asked for cannot be had here.
        """
        folder, known, rules = Path(path), register(agents), rules or Rules()
        chosen, walls = settings or settings_from(os.environ), sandboxes or SandboxRules()
        plan, recorder = ResourcePlan(resources, known), Recorder()
        toolsets = [*toolsets, *built_in(walls, folder, toolsets, secrets, recorder, plan.narrowed)]
        own, undoing = AgentsToolset(known), Undoing(toolsets, rules.flow)
        known = {**known, undoing.agent.name: undoing.agent}
        world = World(
            upstreams=upstreams, toolsets=toolsets, secrets=secrets, agents=own, sandboxes=walls, resources=plan.rules
        )  # fmt: skip
        async with opened(folder, chosen, beside=beside) as store, contextlib.aclosing(undoing):
            governance, keys = await governance_of(store, folder)
            reached = reach(
                world, known, folder=folder, settings=chosen, telemetry=telemetry, governance=governance, rules=Rulebook(rules, store)
            )  # fmt: skip
            async with cls.over(
                store, known, chosen, telemetry=telemetry, drive=not beside, reached=reached, plan=plan,
                places=isolated(register(agents), isolation, chosen, folder),
            ) as runtime:  # fmt: skip
                own.runtime = undoing.runtime = runtime
                recorder.store, runtime.undoing, runtime.audit.keys = store, undoing, keys
                async with contextlib.nullcontext() if beside else keeping(runtime, keys, rules, folder):
                    yield runtime

    @classmethod
    @contextlib.asynccontextmanager
    async def over(
        cls,
        store: Store,
        agents: Mapping[str, Agent],
        settings: Settings,
        *,
        telemetry: Telemetry | None,
        drive: bool,
        reached: contextlib.AbstractAsyncContextManager[Outside] | None = None,
        places: contextlib.AbstractAsyncContextManager[Places | None] | None = None,
        plan: ResourcePlan | None = None,
    ) -> AsyncIterator[Runtime]:
        """A runtime on a store that is open already."""
        clock, entropy = SystemClock(), SystemEntropy()
        if not drive:
            runtime = cls(store, agents, None, clock=clock, entropy=entropy, settings=settings)
            yield runtime
            runtime.is_closed = True
            return
        admission = await (plan or ResourcePlan(None, agents)).begun(store)
        nothing: contextlib.nullcontext[None] = contextlib.nullcontext()
        async with reached or nothing as outside, places or nothing as elsewhere:
            engine = EmbeddedEngine(
                store, agents, clock=clock, entropy=entropy, settings=settings, telemetry=telemetry, alone=True,
                outside=outside, places=elsewhere, admission=admission,
            )  # fmt: skip
            watchdog = Watchdog(engine.loop, engine.worker, settings.block_ms)
            runtime = cls(store, agents, engine, clock=clock, entropy=entropy, settings=settings)
            await engine.begin()
            watchdog.begin()
            try:
                yield runtime
            finally:
                runtime.is_closed = True
                await engine.drain()
                watchdog.end()

    # -- starting
    async def start(
        self,
        agent: str,
        input: Any = None,
        *,
        session: str | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        conflict: Conflict | None = None,
        budget: Budget | None = None,
        principals: Sequence[Principal] = (),
        goal: str | None = None,
    ) -> RunHandle:
        """Accept a run; durable on return.

        Args:
            agent: the agent's name.
            input: its one argument, or an object or array with its arguments.
            session: runs of one session of an agent go one at a time.
            idempotency_key: a second start of this agent with the same key returns the same run, for ever.
            priority: higher goes first among runs that are queued.
            deadline: seconds from now after which the run is cancelled and fails.
            conflict: what happens if the session is busy; by default what the agent says.
            budget: what the run may use with everything that it starts; by default what the agent says.
            principals: who it acts for, the nearest first: policies ask for each of them too.
            goal: what it is started for, such as ``refund``: drift tells goals apart; by default the agent's name.

        Raises:
            AgentUnknownError, InputInvalidError, PayloadTooLargeError: nothing was started.
            SessionBusyError: the session is busy and ``conflict`` is ``reject``.
            DrainingError: the runtime is stopping.
            UnavailableError: the store did not answer: start again with the same idempotency key.
        """
        new = new_run(
            self, self.agent(agent), input, session=session, idempotency_key=idempotency_key, priority=priority,
            deadline=deadline, conflict=conflict, budget=budget, principals=principals, goal=goal,
        )  # fmt: skip
        if self.engine is not None:
            record = await self.engine.start(new)
        else:
            now_ms = self.now_ms()
            record, _ = await self.store.transact(lambda tx: works.start(tx, new, now_ms))
        return RunHandle(self, record.id)

    def agent(self, name: str) -> Agent:
        """The definition of an agent.

        Raises:
            AgentUnknownError: none is registered under that name.
        """
        found = self.agents.get(name)
        if found is None:
            known = ", ".join(f"`{item}`" for item in sorted(self.agents)) or "none"
            raise AgentUnknownError(f"no agent is called `{name}`; registered: {known}", agent=name)
        return found

    # -- finding
    def run(self, run: str) -> RunHandle:
        """The handle of a run.

        Raises:
            RunUnknownError: there is none.
        """
        self.store.read(lambda tx: works.find(tx, run))
        return RunHandle(self, run)

    def runs(
        self,
        *,
        agent: str | None = None,
        status: Status | Literal["unfinished"] | Sequence[Status] | None = None,
        session: str | None = None,
        parent: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[RunRecord]:
        """Rows of runs, newest first; ``before`` is the id of the last one of the page before."""
        chosen = statuses(status)
        want = RunFilter(
            agent=agent, status=chosen, session=session, parent=parent, before=before, limit=limit
        )
        return self.store.read(lambda tx: tx.runs(want))

    def questions(self, run: str | None = None) -> list[Answerable]:
        """Open questions to a human, oldest first."""
        rows = self.store.read(lambda tx: tx.questions(run))
        return [Answerable.of(row, self.bytes_of(row.question)) for row in rows]

    # -- acting
    async def send(
        self, run: str, topic: str, body: Any = None, *, key: str | None = None, sender: str = ""
    ) -> int:
        """Put a message into a run's mailbox (see ``RunHandle.send``)."""
        checked_topic(topic)
        payload, blobs = pack(to_json(body), self.settings.payload_bytes_max)
        now_ms = self._clock.now_ms()
        message = await self.store.transact(
            lambda tx: works.send(tx, run, topic, payload, blobs, sender=sender, now_ms=now_ms, key=key)
        )
        self.look_after([run])
        return message

    async def answer(self, run: str, call: int, data: bytes, *, sender: str = "") -> None:
        """Answer a question (see ``RunHandle.answer``)."""
        payload, blobs = pack(data, self.settings.payload_bytes_max)
        work = partial(works.answer, sender=sender, now_ms=self._clock.now_ms())
        await self.store.transact(lambda tx: work(tx, run, call, payload, blobs))
        self.look_after([run])

    async def cancel(self, run: str, reason: str = "cancelled by the caller") -> None:
        """Ask a run and its children to stop; durable on return."""
        now_ms = self.now_ms()
        self.look_after(await self.store.transact(lambda tx: works.cancel(tx, run, reason, now_ms)))

    async def resume(self, run: str, *, migrate: bool = False) -> None:
        """Let a blocked run go on; with ``migrate``, under the version of its agent that is registered here.

        Raises:
            UsageError: it is not blocked.
        """
        now_ms = self._clock.now_ms()
        version = self.agent(self.run(run).record().agent).version if migrate else None
        await self.store.transact(lambda tx: works.resume(tx, run, now_ms, version=version))
        self.look_after([run])

    async def fork(self, run: str, *, at: int, changes: Mapping[int, Any] | None = None) -> RunHandle:
        """Start a new run that has the first ``at`` entries of another's journal and goes on from there.

        Args:
            run: the origin; it is not touched.
            at: the last entry to keep.
            changes: new results for recorded entries (``StepCompleted``, ``MessageReceived``, ``QuestionAnswered``)
                and, under 1, a new input; by ``seq``.

        Raises:
            ForkInvalidError: no such entry, or it has nothing to change.
        """
        new_id = await forks.fork(self, run, at, changes or {}, chance=self.entropy.bits(SEED_BITS))
        self.look_after([new_id])
        return RunHandle(self, new_id)

    async def schedule(
        self, name: str, cron: str, agent: str, input: Any = None, *, timezone: str = "UTC"
    ) -> None:
        """Start a run of ``agent`` at every time of a cron expression; a schedule of that name is replaced.

        Each occurrence starts one run, also with several workers; those missed while nothing ran are made up by one.

        Raises:
            DefinitionError: the expression or the time zone is wrong.
            AgentUnknownError, InputInvalidError: the run could not be started.
        """
        self.agent(agent).parameters.read_input(to_json(input))
        now_ms, limit = self.now_ms(), self.settings.payload_bytes_max
        row = schedule_row(name, cron, agent, input, timezone, now_ms=now_ms, limit=limit)
        await self.store.transact(lambda tx: tx.put_schedule(row))
        self.look_after([name])

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule; whether it was there."""
        return await self.store.transact(lambda tx: tx.drop_schedule(name))

    def schedules(self) -> list[Schedule]:
        """All schedules by name."""
        return self.store.read(lambda tx: tx.schedules())

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        if not payload.blob:
            return bytes(payload.inline)
        return self.store.read(lambda tx: tx.blob(payload.blob))

    @contextlib.contextmanager
    def changes(self, run: str, *, only_end: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set when a run changes (or only when it ends or is blocked)."""
        if self.engine is not None:
            with self.engine.watchers.changes(run, only_end=only_end) as event:
                yield event
        else:
            yield asyncio.Event()

    async def wait_for(self, changed: asyncio.Event) -> None:
        """Until a run may have changed."""
        try:
            async with asyncio.timeout(POLL_S if self.engine is None else self.settings.lease_ms / 1000):
                await changed.wait()
        except TimeoutError:
            return

    def live(self, run: str) -> contextlib.AbstractContextManager[asyncio.Queue[Live | None]]:
        """A queue of what a run shows.

        Raises:
            DefinitionError: this runtime drives no runs, so it sees none live.
        """
        if self.engine is None:
            raise DefinitionError("live output is seen only in the process that drives the runs")
        return self.engine.watchers.live(run)

    def now_ms(self) -> int:
        """The time of day."""
        return self._clock.now_ms()

    def new_id(self) -> str:
        """An id that nothing else has."""
        return run_id(self._clock.now_ms(), self.entropy.bits(60))

    def look_after(self, touched: list[str]) -> None:
        """Something happened to these runs."""
        if self.engine is not None:
            self.engine.look_after(touched)
