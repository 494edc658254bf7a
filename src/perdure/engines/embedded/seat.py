"""The seat of a run at the gateway: its journal, under its lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from perdure.agents.requests import ActCall
from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState
from perdure.core.approvals import GrantRecord
from perdure.core.errors import RunEndedError
from perdure.core.principals import Chain, Risk
from perdure.core.values import Payload
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.waits import position, record
from perdure.gateway.memory import RunMemory
from perdure.gateway.seat import Act, Make
from perdure.kernel.budget import usd_micros_left
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

log = logging.getLogger("perdure.worker")
LATER_MS = 50  # a program that replays makes a thousand calls in a second: that is twenty commits then, not a thousand


class HostSeat:
    """Implements ``HostedSeat`` on a run in memory."""

    def __init__(self, worker: Worker, host: Host) -> None:
        self._worker = worker
        self._host = host
        self._later: list[Callable[[Transaction], Any]] = []  # what is written with the next entry, or soon

    @property
    def run_id(self) -> str:
        """The run."""
        return self._host.run_id

    @property
    def agent(self) -> str:
        """The name of its agent."""
        return self._host.agent.name

    @property
    def principals(self) -> Chain:
        """The run, then who it acts for."""
        return self._host.principals

    @property
    def risk(self) -> Risk:
        """The tier of its agent."""
        return self._host.agent.risk

    @property
    def memory(self) -> RunMemory | None:
        """What gates remember of the run."""
        return self._host.memory

    @property
    def pins(self) -> Mapping[str, str]:
        """Digests of the tools that the run began with."""
        return self._host.pins

    @property
    def payload_bytes_max(self) -> int:
        """The largest request or result."""
        return self._worker.payload_bytes_max

    def now_ms(self) -> int:
        """The time of day."""
        return self._worker.wall_ms()

    def budget_left(self) -> int | None:
        """What is left of the tightest budget of money."""
        return usd_micros_left(self._worker.engine.store.read(lambda tx: tx.accounts(self._host.run_id)))

    async def write(self, make: Make) -> e.CallEntry:
        """Record an entry with what ``make`` writes."""
        entry: e.CallEntry = await self._write(make)
        return entry

    async def _write(
        self, make: Callable[[Transaction, dict[str, int]], tuple[Any, Mapping[str, bytes]]]
    ) -> Any:
        host, worker = self._host, self._worker
        if host.is_closed:
            raise RunEndedError(f"run `{host.run_id}` is not in memory any more")
        now_ms = worker.wall_ms()
        self._write_later()

        def work(tx: Transaction) -> e.Entry:
            entry, blobs = make(tx, position(host, now_ms))
            return record(tx, host, entry, dict(blobs))

        entry = await worker.engine.store.transact(work)
        worker.deliver(host, entry)
        return entry

    async def pin(self, digests: Mapping[str, str]) -> None:
        """Record the tools that the run goes by from now on."""
        host = self._host
        if host.pins:
            return
        await self._write(lambda _, at: (e.ToolsPinned(**at, digests=dict(digests)), {}))
        host.pins = dict(digests)

    def show(self, kind: str, data: Any) -> None:
        """Show something to live watchers."""
        self._worker.show(self._host, kind, data)

    def held(self, call: int) -> e.ActionHeld | None:
        """How a call was held the last time."""
        open_call = self._host.calls.get(call) or self._host.given_up.get(call)
        intent = None if open_call is None else open_call.intent
        return intent if isinstance(intent, e.ActionHeld) else None

    def grants(self, call: int) -> list[GrantRecord]:
        """What was signed about a held call, oldest first."""
        return self._worker.engine.store.read(lambda tx: tx.grants(self._host.run_id, call))

    # -- of hosted programs
    @property
    def fence(self) -> int | None:
        """The fence of the run's lease; ``None`` once the run left this memory."""
        return None if self._host.is_closed else self._host.fence

    def adopt(self, act: Act) -> int:
        """Give a call the next number."""
        if self._host.is_closed or self._host.is_ending:
            raise RunEndedError(f"run `{self._host.run_id}` has ended or is not in memory any more")
        request = ActCall(act.name, act.digest, bytes, act.what, act.request, act.endpoint)
        return self._host.adopt(request).number

    def ledger(self) -> list[ActionRecord]:
        """The rows of the run."""
        return self._worker.engine.store.read(lambda tx: tx.run_actions(self._host.run_id))

    def entry(self, seq: int) -> e.Entry:
        """One entry of the journal."""
        return self._worker.engine.store.read(lambda tx: tx.journal(self._host.run_id, seq - 1, 1))[0]

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        return self._worker.bytes_of(payload)

    def work(self, work: Coroutine[Any, Any, None], call: int) -> None:
        """Run something that belongs to the run and not to whoever asked for it."""
        task = self._worker.work(self._host, work)
        open_call = self._host.calls.get(call)
        if open_call is not None:
            open_call.task = task

    def later(self, work: Callable[[Transaction], Any]) -> None:
        """Write something that nobody waits for: before the next entry, and within ``LATER_MS``."""
        self._later.append(work)
        if len(self._later) == 1:
            self._worker.engine.loop.call_later(LATER_MS / 1000, self._write_later)

    def _write_later(self) -> None:
        works, self._later = self._later, []
        if not works:
            return

        def work(tx: Transaction) -> None:
            for item in works:
                item(tx)

        future = asyncio.ensure_future(self._worker.engine.store.transact(work))
        future.add_done_callback(_noted)

    async def ended(self, call: int, told: Callable[[ActionState], None]) -> e.CallEntry:
        """Wait for the end of an open call."""
        open_call = self._host.calls.get(call)
        if open_call is None:
            return self._ended_already(call)
        if open_call.ended is None:
            open_call.ended = self._worker.engine.loop.create_future()
        open_call.told = told
        told(_state(open_call.held, open_call.doubt))
        return await asyncio.shield(open_call.ended)

    def _ended_already(self, call: int) -> e.CallEntry:
        row = self._worker.engine.store.read(lambda tx: tx.action(self._host.run_id, call))
        if row is None or row.end_seq is None:
            raise RunEndedError(f"run `{self._host.run_id}` is not in memory any more")
        entry = self.entry(row.end_seq)
        if not isinstance(entry, e.CallEntry):
            raise RunEndedError(f"action `{row.key}` has no end")
        return entry

    async def decided(self, call: int) -> e.CallEntry:
        """Wait for the decision about a held call."""
        open_call = self._host.calls.get(call)
        if open_call is None:
            return self._ended_already(call)
        if open_call.decided is None or open_call.decided.done():
            open_call.decided = self._worker.engine.loop.create_future()
        return await asyncio.shield(open_call.decided)


def _noted(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.warning("what a program was answered with was not noted down: %s", error)


def _state(held: bool, doubt: bool) -> ActionState:  # noqa: FBT001 - the two marks of an open call
    if doubt:
        return ActionState.UNKNOWN
    return ActionState.HELD if held else ActionState.INTENDED
