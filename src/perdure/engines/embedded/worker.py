"""The worker: drives the runs that this process holds leases of. Implements ``Driver`` for their hosts."""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.agents.requests import WAITS, ActCall, AskCall, ProgramCall, StepCall
from perdure.core import entries as e
from perdure.core.errors import (
    AwaitNotDurableError,
    BlockedError,
    BrokenInvariantError,
    CorruptError,
    FenceError,
    InputInvalidError,
    PerdureError,
    QuarantinedError,
    UnavailableError,
)
from perdure.core.records import RunRecord, Status
from perdure.core.values import Payload
from perdure.engines.embedded.acts import act
from perdure.engines.embedded.doubt import block, block_row, requeue, write_patch
from perdure.engines.embedded.ending import finish, stop_at_once
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall, is_wait, note
from perdure.engines.embedded.perform import perform
from perdure.engines.embedded.programs import run_program
from perdure.engines.embedded.steps import run_step
from perdure.engines.embedded.waits import Settled, settle
from perdure.engines.embedded.works import NewRun
from perdure.kernel.run import Block, Drive, Leave, RequestCancel, Rules, decide, fold

if TYPE_CHECKING:
    from perdure.engines.embedded.engine import EmbeddedEngine

log = logging.getLogger("perdure.worker")
SUSPECT_RECOVERIES = 2


class Worker:
    """Begins, feeds and ends the runs in memory."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self.payload_bytes_max = engine.settings.payload_bytes_max
        self.driving: tuple[str, str, float] | None = None  # run, agent, since: for the watchdog
        self._pumps: list[Host] = []

    # -- beginning
    def begin(self, run: RunRecord, *, fresh: NewRun | None = None) -> None:
        """Go on with a run whose lease was taken: in memory if it rests there, else from its journal."""
        engine = self.engine
        known = engine.hosts.get(run.id)
        if known is not None:
            if known.is_parked and known.seq == run.seq and not run.recoveries:
                engine.rouse(known)
                known.fence = run.fence
                self.settle(known, forced=True)
                return
            engine.forget(known)
        try:
            journal = (
                _first(run, fresh) if fresh is not None else engine.store.read(lambda tx: tx.journal(run.id))
            )
        except CorruptError as error:
            log.error("run %s is blocked: %s", run.id, error)
            engine.spawn(block_row(self, run, error), name=f"perdure-block-{run.id}")
            return
        except UnavailableError as error:
            self._reclaim(run.id, run.fence, str(error))
            return
        if run.recoveries >= SUSPECT_RECOVERIES:
            engine.suspect = run.id
        self._drive(run, journal)

    def _drive(self, run: RunRecord, journal: list[e.AnyEntry]) -> None:
        engine = self.engine
        host = engine.host(run)
        if engine.outside is not None and engine.outside.gateway.governance.memory is not None:
            host.memory = engine.outside.gateway.governance.memory()
        engine.adopt(host)
        host.seq, host.at_ms = journal[-1].seq, journal[-1].at_ms
        try:
            state = fold(journal)
            if run.cancel_reason is not None and (
                state.seq == 1 + state.recoveries or state.status is Status.BLOCKED
            ):
                self.work(
                    host, stop_at_once(self, host, run.cancel_reason, run.cancel_code or "run-cancelled")
                )
                return
            rules = Rules(host.agent.version, engine.settings.recoveries_max, engine.settings.migrate)
            match decide(state, engine.clock.now_ms(), rules):
                case Leave():
                    engine.forget(host)
                    return
                case Block(error=error, expected=expected, found=found):
                    kind = QuarantinedError if error.code == "run-quarantined" else BlockedError
                    self.work(
                        host,
                        self._block(host, kind(error.message, expected=expected, found=found), error.code),
                    )
                    return
                case RequestCancel() | Drive():  # the deadline is noticed when the waits are looked at
                    pass
            self._at(host, lambda: host.begin(journal))
        except InputInvalidError as error:
            failure = e.Failure(code=error.code, message=error.message)
            self.work(host, finish(self, host, failure=failure))
            return
        except UnavailableError as error:
            self._lose(host, error)
            return
        except Exception as error:  # noqa: BLE001 - that run is blocked; the dispatcher goes on with the others
            self._trouble(host, error)
            return
        if host.main is not None and host.is_live:
            host.go_live()
        self._after(host, forced=True)

    def _at(self, host: Host, action: Any) -> None:
        """Run agent code, with its name where the watchdog can see it."""
        self.driving = (host.run_id, host.agent.name, self.engine.loop.time())
        try:
            action()
        except SystemExit:
            log.warning("agent `%s` raised SystemExit; it ends its run, not the process", host.agent.name)
        finally:
            self.driving = None

    # -- port ``Driver``
    def launch(self, host: Host, open_call: OpenCall) -> None:
        """Begin to work on a call."""
        if self.engine.is_draining:
            return  # whoever takes the run over begins it; otherwise a busy run would never come to rest
        if host.unwritten:
            host.held.append(open_call)
            return
        request = open_call.request
        if isinstance(request, StepCall):
            if open_call.due_ms is None:
                open_call.task = self.work(host, run_step(self, host, open_call))
        elif isinstance(request, ActCall | ProgramCall):
            self._launch_outside(host, open_call)
        elif not isinstance(request, WAITS) or (isinstance(request, AskCall) and not open_call.asked):
            open_call.task = self.work(host, perform(self, host, open_call))
        else:
            host.must_settle = True

    def _launch_outside(self, host: Host, open_call: OpenCall) -> None:
        """Begin an act or a program, unless it is under way, or waits for a decision or its next attempt."""
        if open_call.task is not None and not open_call.task.done():
            return
        if is_wait(open_call) or open_call.due_ms is not None:
            host.must_settle = True
        elif isinstance(open_call.request, ActCall):
            open_call.task = self.work(host, act(self, host, open_call))
        else:
            open_call.task = self.work(host, run_program(self, host, open_call))

    def drop_call(self, host: Host, open_call: OpenCall) -> None:
        """The agent gave up on a call."""
        if (
            open_call.task is not None
            and isinstance(open_call.request, StepCall | ProgramCall)
            and not open_call.is_recording
        ):
            open_call.task.cancel()
        if isinstance(open_call.request, AskCall) and host.is_live:
            number = open_call.number
            self.work(host, self._close_question(host, number))

    async def _close_question(self, host: Host, number: int) -> None:
        await self.engine.store.transact(lambda tx: tx.close_question(host.run_id, number))

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        if not payload.blob:
            return bytes(payload.inline)
        name = payload.blob
        return self.engine.store.read(lambda tx: tx.blob(name))

    def show(self, host: Host, kind: str, data: Any) -> None:
        """Pass something on to live watchers."""
        self.engine.watchers.show(host.run_id, kind, data)

    def record_patch(self, host: Host, name: str) -> None:
        """Append ``PatchApplied``; until that is durable nothing that the agent does next may be recorded."""
        host.unwritten += 1
        self.work(host, write_patch(self, host, name))

    def wall_ms(self) -> int:
        """The time of day."""
        return self.engine.clock.now_ms()

    # -- working
    def work(self, host: Host, work: Any) -> asyncio.Task[None]:
        """A task for a run: while it lasts the run is not parked."""
        host.busy += 1
        task = self.engine.spawn(self._guard(host, work), name=f"perdure-{host.run_id}")
        task.add_done_callback(partial(self._unbegun, host, work))
        return task

    def _unbegun(self, host: Host, work: Any, task: asyncio.Task[None]) -> None:
        """A task that was cancelled before its first line ran no ``finally`` either: the run would never be parked."""
        if not task.cancelled() or inspect.getcoroutinestate(work) != inspect.CORO_CREATED:
            return
        work.close()
        host.busy -= 1
        if not host.is_closed and host.busy == 0 and not host.is_pumping:
            self._after(host)

    async def _guard(self, host: Host, work: Any) -> None:
        """Let a piece of work end; what it cannot handle drops the run, which then goes on from its journal."""
        try:
            await work
        except asyncio.CancelledError:
            if self.engine.is_draining or host.is_closed:
                raise
        except FenceError as error:
            log.warning("%s", error)
            self.engine.forget(host)
        except UnavailableError as error:
            self._lose(host, error)
        except Exception as error:  # noqa: BLE001 - ours or a bug: an operator must see it; the other runs go on
            self._trouble(host, error)
        finally:
            host.busy -= 1
            if not host.is_closed and host.busy == 0 and not host.is_pumping:
                self._after(host)

    def deliver(self, host: Host, entry: e.Entry) -> None:
        """Hand a durable entry to a run; its code goes on in a callback of its own."""
        if host.is_closed:
            return
        if self.engine.suspect == host.run_id and not isinstance(entry, e.RunRecovered):
            self.engine.suspect = None  # it got further than at the crash
            self.engine.dispatcher.poke()
        if host.deliver(entry):
            self._pumps.append(host)
            if len(self._pumps) == 1:
                self.engine.loop.call_soon(self._pump)
        self.engine.watchers.tell(host.run_id)

    def _pump(self) -> None:
        hosts, self._pumps = self._pumps, []
        for host in hosts:
            if host.is_closed:
                continue
            try:
                self._at(host, host.pump)
            except Exception as error:  # noqa: BLE001 - a mismatch or a bug: that run is blocked, the others go on
                self._trouble(host, error)
                continue
            self._after(host)

    def _after(self, host: Host, *, forced: bool = False) -> None:
        """The agent's code has nothing ready: it has ended, waits, or must be told that it waits for nothing."""
        if host.is_closed or host.is_ending or host.is_parked or host.main is None:
            return
        if host.buffer or host.unwritten or host.is_computing:
            return  # more is about to be delivered
        if host.main.done():
            if host.is_acting():
                return  # what was dispatched comes to its end first; that calls here again
            host.is_ending = True
            self.work(host, finish(self, host))
        elif host.busy == 0 and not host.calls and not host.loop.timers:
            message = (
                "the agent waits for something that is not durable, so nothing can ever wake it; "
                "do I/O in steps, wait with `run.sleep` and `run.receive`"
            )
            self.work(host, self._block(host, AwaitNotDurableError(message), "await-not-durable"))
        elif host.busy == 0 or forced or host.must_settle:
            self.settle(host, forced=forced)
        elif host.loop.timers or host.deadline_ms is not None:
            self._set_alarm(host, self.wall_ms())

    # -- waits
    def settle(self, host: Host, *, forced: bool = False) -> None:
        """Look at the waits of a run, unless that is under way: then once more afterwards."""
        if host.is_closed or host.is_ending or host.is_parked or not host.is_live or self.engine.is_draining:
            return
        if host.is_settling or host.unwritten or host.is_computing:
            host.must_settle = host.must_settle or forced
            return
        host.is_settling = True
        host.must_settle = False
        self.work(host, self._settle(host))

    async def _settle(self, host: Host) -> None:
        if host.is_closed:
            return
        if host.unwritten or host.is_computing:  # since this task was made
            host.is_settling, host.must_settle = False, True
            return
        # Taken in one go with the waits, just before the work is queued: nothing else of the run is under way.
        may_park = host.busy == 1 and not host.buffer
        waits = host.waits()
        timers = sorted((round(timer.when() * 1000), number) for number, timer in host.loop.timers.items())
        now_ms = self.wall_ms()
        try:
            found = await self.engine.store.transact(
                lambda tx: settle(tx, host, waits, timers, may_park=may_park, now_ms=now_ms)
            )
        finally:
            host.is_settling = False
        if host.is_closed:
            return
        self._settled(host, found, now_ms)

    def _settled(self, host: Host, found: Settled, now_ms: int) -> None:
        if found.touched:
            self.engine.look_after([name for name in found.touched if name != host.run_id])
        if found.retry is not None:
            found.retry.due_ms = None
            if isinstance(found.entry, e.ActionDecided):
                note(found.retry, found.entry)
                found.retry.is_decided = True
            self.launch(host, found.retry)
        if found.entry is not None:
            self.deliver(host, found.entry)
        if isinstance(found.entry, e.ActionDecided | e.ActionEnded):
            for open_call in host.suspended():  # what it waited for is decided: the program goes on
                open_call.is_suspended = False
                self.launch(host, open_call)
        if found.parked:
            due_ms = host.next_due_ms()
            self.engine.rest(host)
            self.engine.dispatcher.due_by(due_ms)
        elif found.entry is None and host.must_settle:
            self.settle(host, forced=True)
        elif found.entry is None:
            self._set_alarm(host, now_ms)

    def _set_alarm(self, host: Host, now_ms: int) -> None:
        """Look again when the next wait is due; until then something else of the run is being worked on."""
        due_ms = host.next_due_ms()
        if host.alarm is not None:
            if host.alarm_ms == due_ms:
                return
            host.alarm.cancel()
            host.alarm = None
        host.alarm_ms = due_ms
        if due_ms is not None:
            delay_s = max(0.001, (due_ms - now_ms) / 1000)
            host.alarm = self.engine.loop.call_later(delay_s, self._alarm, host)

    def _alarm(self, host: Host) -> None:
        host.alarm = None
        self.settle(host, forced=True)

    # -- trouble
    def _trouble(self, host: Host, error: Exception) -> None:
        """Something is wrong that trying again does not mend."""
        if host.is_closed:
            return
        if host.is_blocking:  # even that could not be written down
            log.error("run %s is dropped", host.run_id, exc_info=error)
            self.engine.forget(host)
            return
        if not isinstance(error, PerdureError):
            log.error("a bug in Perdure blocks run %s", host.run_id, exc_info=error)
            error = BrokenInvariantError(f"{type(error).__name__}: {error}")
        self.work(host, self._block(host, error, error.code))

    async def _block(self, host: Host, error: PerdureError, code: str) -> None:
        """Record that an operator must decide, and leave the run alone."""
        await block(self, host, error, code)

    def _lose(self, host: Host, error: PerdureError) -> None:
        """A write is in doubt: drop the run; its journal tells what is true."""
        fence, name = host.fence, host.run_id
        self.engine.forget(host)
        self._reclaim(name, fence, str(error))

    def _reclaim(self, name: str, fence: int, why: str) -> None:
        log.warning("run %s goes on from its journal: %s", name, why)
        self.engine.spawn(requeue(self, name, fence), name=f"perdure-requeue-{name}")


def _first(run: RunRecord, new: NewRun) -> list[e.AnyEntry]:
    """The journal of a run that was accepted a moment ago, without reading it back."""
    started = e.RunStarted(
        seq=1, at_ms=run.created_ms, agent=new.agent, version=new.version, input=new.input, chance=new.chance,
        session=new.session, parent=new.parent, deadline_ms=new.deadline_ms, principals=new.principals,
        goal=new.goal,
    )  # fmt: skip
    return [started]
