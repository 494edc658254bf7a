"""The people and programs outside a simulated world: they start, send, answer, cancel, repeat themselves and are late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.agents.codec import to_json
from perdure.agents.requests import ANSWER_TOPIC
from perdure.core.errors import PerdureError, RefusedError, UsageError
from perdure.core.records import RunRecord, Status
from perdure.core.values import Payload, pack
from perdure.engines.embedded import works
from perdure.engines.embedded.engine import EmbeddedEngine
from perdure.testing.operators import Operators
from perdure.testing.store import SimStore

if TYPE_CHECKING:
    from perdure.testing.world import World

PATIENCE_S = 4.0  # how long a client waits before it asks again
KINDS = (
    "chain", "fan", "brittle", "collector", "parent", "busy", "exclusive", "latest", "asker", "hurried", "busy",
    "fan", "collector", "hasty", "errand", "crowd", "careless", "thrifty", "household", "company", "errand", "crowd",
    "company",
)  # fmt: skip
Ask = Callable[[EmbeddedEngine], Coroutine[Any, Any, Any]]


def payload_of(value: Any) -> Payload:
    """A value as a payload."""
    return pack(to_json(value), 1 << 20)[0]


class Clients:
    """All clients of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = SimStore(world, "")
        self._open = 0
        self.mailboxes: list[str] = []
        self._operators = Operators(world, self._act, self._now_ms)

    @property
    def is_done(self) -> bool:
        """Whether no client still waits for a confirmation."""
        return self._open == 0

    async def work(self) -> None:
        """Start what the seed says, some of it in short order."""
        from perdure.testing.world import FAULTY_S

        world = self._world
        self._spawn(self._operators.watch(FAULTY_S))
        for number in range(world.swarm.clients):
            self._spawn(self._client(number))
            await asyncio.sleep(world.chance.between("client ms", 0, 1_500) / 1000)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._open += 1
        task = self._world.loop.create_task(work)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.loop.fail(error)

    # -- asking, until there is an answer
    async def _insist(self, beside: Callable[[], Any], through: Ask | None) -> Any:
        """Ask a worker, or the store beside the workers, until one confirms; refusals are answers."""
        world = self._world
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if through is None or world.chance.draw("beside") < 0.3:
                        return await beside()
                    return await self._through(through)
            except (RefusedError, UsageError) as error:
                return error
            except (PerdureError, TimeoutError):
                world.sometimes["client asked again"] += 1
                await asyncio.sleep(0.3)

    async def _through(self, ask: Ask) -> Any:
        process = self._world.holder()
        if process is None or process.engine is None:
            raise TimeoutError
        engine = process.engine
        answer: asyncio.Future[Any] = self._world.loop.create_future()
        impatient = self._world.chance.fault("client gives up", self._world.swarm.client_gives_up)
        gives_up_s = self._world.chance.between("gives up ms", 0, 20) / 1000 if impatient else None
        self._world.sometimes["client gave up"] += impatient

        async def inside() -> None:
            try:
                async with asyncio.timeout(gives_up_s):
                    found = await ask(engine)
            except Exception as error:  # noqa: BLE001 - it is the client's
                if not answer.done():
                    answer.set_exception(error)
                return
            if not answer.done():
                answer.set_result(found)

        self._world.call(process, inside)
        return await answer

    # -- clients
    async def _client(self, number: int) -> None:
        world, chance = self._world, self._world.chance
        kind = chance.pick("kind", KINDS)
        run = await self._start(number, kind)
        if run is None:
            return
        world.log("started", kind, run)
        if kind == "collector":
            self.mailboxes.append(run)
            for item in range(chance.between("mails", 0, 5)):
                await self._send(run, f"{number}-{item}")
                if chance.draw("twice") < 0.3:
                    await self._send(run, f"{number}-{item}")
                    world.sometimes["message sent twice"] += 1
                await asyncio.sleep(chance.between("mail ms", 0, 2_000) / 1000)
        elif chance.draw("cancels") < 0.2:
            await asyncio.sleep(chance.between("cancel ms", 0, 5_000) / 1000)
            await self._cancel(run)

    async def _start(self, number: int, kind: str) -> str | None:
        world, chance = self._world, self._world.chance
        data: Any = None if kind == "collector" else chance.between("n", 1, 4)
        in_session = kind in ("busy", "exclusive", "latest")
        options: dict[str, Any] = {
            "session": chance.pick("session", ("desk", "shop")) if in_session else None,
            "idempotency_key": f"client-{number}",
            "priority": chance.pick("priority", (0, 0, 1)),
        }
        deadline_ms = chance.between("deadline ms", 500, 8_000) if kind == "hurried" else None
        agent = world.agents[kind]

        def new(engine: EmbeddedEngine | None) -> works.NewRun:
            due_ms = None if deadline_ms is None else self._now_ms() + deadline_ms
            if engine is not None:
                return engine.new_run(agent, payload_of(data), {}, deadline_ms=due_ms, **options)
            return works.NewRun(
                id=f"client{number:02}x{chance.bits('id'):016x}", agent=kind, version=agent.version,
                input=payload_of(data), chance=chance.bits("seed") >> 2, deadline_ms=due_ms,
                conflict=agent.conflict, budget=agent.budget, **options,
            )  # fmt: skip

        async def beside() -> RunRecord:
            made = new(None)
            return (await self._store.transact(lambda tx: works.start(tx, made, self._now_ms())))[0]

        found = await self._insist(beside, lambda engine: engine.start(new(engine)))
        if isinstance(found, Exception):
            world.sometimes["start refused"] += 1
            return None
        name: str = found.id
        return name

    def _now_ms(self) -> int:
        from perdure.testing.world import EPOCH_MS

        return EPOCH_MS + int(self._world.loop.time() * 1000)

    async def _act(self, work: Callable[[Any], Any], run: str) -> Any:
        async def beside() -> Any:
            return await self._store.transact(work)

        async def through(engine: EmbeddedEngine) -> Any:
            found = await engine.store.transact(work)
            engine.look_after(found if isinstance(found, list) else [run])
            return found

        return await self._insist(beside, through)

    async def _send(self, run: str, body: str) -> None:
        mail = payload_of(body)
        now_ms = self._now_ms()
        await self._act(
            lambda tx: works.send(tx, run, "mail", mail, {}, sender="client", now_ms=now_ms, key=body), run
        )

    async def _cancel(self, run: str) -> None:
        self._world.sometimes["cancel"] += 1
        await self._act(lambda tx: works.cancel(tx, run, "no longer wanted", self._now_ms()), run)

    # -- after healing
    async def help(self) -> None:
        """What people do when all works again: answer, tell mailboxes to stop, resume what was quarantined."""
        rows = self._world.oracle.unfinished()
        for row in rows:
            if row.status is Status.BLOCKED:
                await self._act(partial(self._resume, run=row.id), row.id)
            elif row.agent == "collector" and (row.parent is None or self._is_orphan(row)):
                await self._send(row.id, "stop")
        await self._operators.help()
        await self.answer()

    def _resume(self, tx: Any, run: str) -> Any:
        return works.resume(tx, run, self._now_ms(), version=None)

    def _answer(self, tx: Any, run: str, call: int, body: Payload) -> Any:
        return works.answer(tx, run, call, body, {}, sender="human", now_ms=self._now_ms())

    def _is_orphan(self, row: RunRecord) -> bool:
        """Whether the parent that would have told it to stop has ended."""
        parent = self._world.disk.read(lambda tx: tx.run(str(row.parent)))
        return parent is None or parent.status.is_ended

    async def answer(self) -> None:
        """Answer every question."""
        for item in self._world.disk.read(lambda tx: tx.questions(None)):
            if self._world.disk.read(lambda tx, q=item: tx.has_mail(q.run, f"{ANSWER_TOPIC}{q.call}")):  # type: ignore[misc]
                continue
            body = payload_of(f"answer to {item.call}")
            self._world.sometimes["question answered"] += 1
            await self._act(
                partial(self._answer, run=item.run, call=item.call, body=body),
                item.run,
            )
