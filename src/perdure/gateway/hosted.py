"""Hosted programs: a restarted program is answered from the journal up to the frontier, and live from there.

One :class:`Attempt` is one start of the program. Each of its calls is recognised by ``kernel.identity``: the first row
of the run that this attempt has not consumed yet, at the strongest level; only what no row answers is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionState, Served, Spend, What
from perdure.core.errors import DivergedError, ModelUnknownError, PerdureError, RunEndedError
from perdure.core.tools import ToolOutput, ToolSpec
from perdure.core.values import digest
from perdure.gateway import ledger
from perdure.gateway.catalogue import Catalogue, check_pin, digests
from perdure.gateway.frontier import Claim, Frontier, Known
from perdure.gateway.gateway import Gateway, lost
from perdure.gateway.outputs import read_exchange, read_kept
from perdure.gateway.seat import Act, HostedSeat, Outcome
from perdure.gateway.tee import Tee
from perdure.gateway.wire import read_request
from perdure.gateway.wire.usage import asking_for_usage
from perdure.kernel.identity import VOLATILE, Identity, difference, identify_model, identify_tool
from perdure.ports import Tool

S = ActionState
PATIENCE_S = 1.0  # how long rows may be left alone before a call beside them counts as a divergence
Divergence = Literal["fail", "live", "ask"]
Progress = Callable[[float, float | None, str], None]


class Attempt:
    """One start of a hosted program.

    Args:
        gateway: the path of every act.
        seat: the run.
        number: which attempt, from 1.
        catalogue: what the program may use.
        divergence: what to do with a call that no row answers while rows are left: ``fail``, send it ``live``, or
            ``ask`` a human.
        before: the attempt before in this process, whose upstream answers may still be arriving.
    """

    def __init__(
        self,
        gateway: Gateway,
        seat: HostedSeat,
        number: int,
        catalogue: Catalogue,
        *,
        divergence: Divergence,
        before: Attempt | None = None,
    ) -> None:
        self.gateway = gateway
        self.seat = seat
        self.number = number
        self.catalogue = catalogue
        self.divergence: Divergence = divergence
        self.is_over = False
        self.within = ""  # the wall around the program, as whoever runs it has found it
        self.waiting, self.working = 0, 0  # requests that only a decision can end; other ones under way
        self.changed = asyncio.Event()
        self._frontier: Frontier = Frontier(seat.ledger(), before._frontier if before else None)

    # -- models
    async def model(
        self, endpoint: str, body: bytes, headers: tuple[tuple[str, str], ...] = (), *, is_retry: bool = False
    ) -> tuple[Tee, Claim]:
        """Answer a model request; the tee gives the answer as it comes, or as it was recorded.

        Raises:
            RequestInvalidError, ModelUnknownError, BudgetExhaustedError, DivergedError, UpstreamError and others.
        """
        self._check()
        facts = read_request(endpoint, body)
        if not self.gateway.upstreams.offers(facts.model, endpoint):
            offered = ", ".join(f"`{item}`" for item in self.gateway.upstreams.names()) or "none by name"
            message = f"no upstream offers model `{facts.model}` for `{endpoint}`; offered: {offered}"
            raise ModelUnknownError(message, model=facts.model)
        identity = identify_model(endpoint, facts.data)
        while (claim := self._claim("model", identity, is_retry=is_retry)) is not None:
            recorded = await self._recorded_model(claim)
            if recorded is not None:
                return recorded, claim
        act = Act(
            what="model",
            name=facts.model,
            digest=identity.exact[:16],
            request=body,
            recovery="pure",
            effect="read",
            estimate=self.gateway.estimate(facts, self.seat.now_ms()),
            endpoint=endpoint,
            attempt=self.number,
            identity=identity,
            headers=headers,
            metered=asking_for_usage(endpoint, body, facts.data) or b"",
        )
        hold = await self._diverged("model", facts.data)
        known = self._adopt(act)
        tee = known.tee = Tee()
        self.seat.work(self._live_model(act, known, tee, hold), act.call)
        return tee, Claim(act.call, "live")

    async def _recorded_model(self, claim: Claim) -> Tee | None:
        """The answer of a row; ``None`` for one that turns out to be lost: its runtime died before it was answered."""
        known = self._frontier.known(claim.call)
        if known.tee is not None and known.tee.error is None:
            self._note(claim)
            return known.tee
        entry = await self._entry_of(claim)
        if known.state is S.LOST:
            self._frontier.remove("model", claim.call)
            return None
        self._note(claim)
        tee = Tee()
        if not isinstance(entry, e.ActionEnded) or entry.result is None:
            found = entry.error if isinstance(entry, e.ActionEnded) else None
            raise ledger.raised(
                found or e.Failure(code="upstream-unavailable", message="no answer was recorded")
            )
        told = read_exchange(self.seat.bytes_of(entry.result))
        tee.head(told.status, told.content_type, (("x-perdure-replayed", claim.level),))
        tee.feed(told.body, True)  # noqa: FBT003 - a pair
        tee.end()
        return tee

    async def _live_model(self, act: Act, known: Known, tee: Tee, hold: e.Failure | None) -> None:
        """Intent, dispatch, outcome; goes on when the program is gone."""
        self._busy(1)
        try:
            if not await self._cleared(act, known, hold):
                tee.fail(self._refusal(known))
                return
            try:
                async with self.gateway.ask_model(act, self.seat.run_id) as answer:
                    tee.head(answer.status, answer.content_type, answer.headers)
                    outcome = await self.gateway.drain(act, answer, tee.feed, self.seat.now_ms())
            except PerdureError as error:
                await self._end(act, known, lost(error))
                tee.fail(error)
                return
            await self._end(act, known, outcome)
            tee.end()
        except PerdureError as error:
            tee.fail(error)
            raise
        finally:
            if known.end_seq is not None:
                known.tee = None  # from now on it is served from the journal
            if not tee.is_over:
                tee.fail(RunEndedError(f"run `{self.seat.run_id}` was stopped"))
            self._busy(-1)

    # -- tools
    async def specs(self) -> Sequence[ToolSpec]:
        """The tools that the run is pinned to, as they are shown to it; those that changed are left out."""
        self._check()
        tools = await self.catalogue.tools()
        await self._pin(tools)
        shown: list[ToolSpec] = []
        for name, tool in tools.items():
            if self.seat.pins.get(name) == tool.spec.digest:
                shown.append(
                    tool.spec if tool.spec.name == name else msgspec.structs.replace(tool.spec, name=name)
                )
        return shown

    async def _pin(self, tools: Mapping[str, Tool]) -> None:
        if not self.seat.pins and tools:
            await self.seat.pin(digests(tools))

    async def use(
        self, name: str, arguments: dict[str, Any], *, progress: Progress | None = None,
        confidence: int | None = None,
    ) -> ToolOutput:  # fmt: skip
        """Use a tool, or answer from the journal; ``confidence`` is in percent, if the program has said so.

        Raises:
            ToolUnknownError, ToolChangedError, ArgumentsInvalidError, BudgetExhaustedError, DivergedError: nothing was sent.
            ToolFailedError, ActionNotDoneError: how it ended.
        """
        self._check()
        del progress  # a tool of ours has none to tell yet; the face reports that it is alive
        tool = await self.catalogue.find(name)
        await self._pin(await self.catalogue.tools())
        check_pin(self.seat.pins, name, tool.spec)
        self.gateway.check_arguments(tool.spec, arguments)
        identity = identify_tool(name, arguments)
        claim = self._claim("tool", identity, is_retry=False)
        if claim is None:
            data = msgspec.json.encode(arguments)
            act = Act(
                what="tool",
                name=name,
                digest=digest(data),
                request=data,
                recovery=tool.spec.recovery,
                effect=tool.spec.effect,
                estimate=Spend(calls=1),
                attempt=self.number,
                identity=identity,
                tool=tool,
                confidence=confidence,
            )
            hold = await self._diverged("tool", arguments)
            known = self._adopt(act)
            claim = Claim(act.call, "live")
            self.seat.work(self._live_tool(act, known, tool, hold), act.call)
        else:
            self._note(claim)
        return await self._outcome(claim)

    async def _live_tool(self, act: Act, known: Known, tool: Tool, hold: e.Failure | None) -> None:
        self._busy(1)
        try:
            if await self._cleared(act, known, hold):
                outcome = await self.gateway.use_tool(act, tool, self.seat.run_id)
                await self._end(act, known, outcome)
        finally:
            self._busy(-1)

    async def _outcome(self, claim: Claim) -> ToolOutput:
        """Wait for the end of a row, however long a decision takes."""
        entry = await self._entry_of(claim)
        self._frontier.known(claim.call).is_abandoned = False
        if not isinstance(entry, e.ActionEnded):
            raise RunEndedError(f"run `{self.seat.run_id}` was stopped")
        if entry.error is not None:
            raise ledger.raised(entry.error, action=f"{self.seat.run_id}/{claim.call}")
        return read_kept(self.seat.bytes_of(entry.result)).output() if entry.result else ToolOutput()

    async def _entry_of(self, claim: Claim) -> e.Entry:
        """The end of a row, waiting for it if need be."""
        known = self._frontier.known(claim.call)
        if known.end_seq is not None:
            return self.seat.entry(known.end_seq)
        is_stuck = False

        def tell(state: ActionState) -> None:
            nonlocal is_stuck
            known.state = state
            if is_stuck is not (state in (S.UNKNOWN, S.HELD)):
                is_stuck = not is_stuck
                self._wait(1 if is_stuck else -1)

        try:
            entry = await self.seat.ended(claim.call, tell)
        finally:
            if is_stuck:
                self._wait(-1)
        self._settled(known, entry)
        return entry

    def _settled(self, known: Known, entry: e.CallEntry) -> None:
        if isinstance(entry, e.ActionEnded):
            known.state = ActionState(entry.state)
            known.end_seq = entry.seq

    # -- rows
    def _claim(self, what: What, identity: Identity, *, is_retry: bool) -> Claim | None:
        self.changed.set()
        return self._frontier.claim(what, identity, is_retry=is_retry)

    def _adopt(self, act: Act) -> Known:
        """Make a new row, consumed by this attempt."""
        act.agent, act.within = self.seat.agent, self.within
        if act.identity is None:
            raise RunEndedError("a call of a hosted program has no identity")
        act.call = self.seat.adopt(act)
        return self._frontier.adopt(act.call, act.what, act.identity)

    def _note(self, claim: Claim) -> None:
        served = Served(
            run=self.seat.run_id,
            attempt=self.number,
            call=claim.call,
            level=claim.level,
            at_ms=self.seat.now_ms(),
        )
        self.seat.later(lambda tx: tx.note_served(served))

    async def _diverged(self, what: What, asked: Any) -> e.Failure | None:
        """A call that no row answers while rows are left: stop, hold it, or let it go.

        A program with several lines of work may be at the frontier with one while the others are still behind it; so as
        long as rows are being asked for, this waits.
        """
        if self.divergence == "live":
            return None
        while left := self._frontier.left(what):
            seen = self.consumed
            await asyncio.sleep(PATIENCE_S)
            if seen == self.consumed:
                break
        if not left:
            return None
        known = self._frontier.known(left[0])
        intent = self.seat.entry(known.intent_seq)
        lines: list[str] = []
        name = ""
        if isinstance(intent, e.ActionIntended | e.ActionHeld):
            name = intent.name
            lines = difference(
                msgspec.json.decode(self.seat.bytes_of(intent.request)), asked, ignore=VOLATILE
            )
        message = (
            f"the restarted program asks for something else than before: row {left[0]} ({name}) of run "
            f"`{self.seat.run_id}` and {len(left) - 1} more were not asked for yet; " + "; ".join(lines)
        )
        if self.divergence == "fail":
            raise DivergedError(message, run=self.seat.run_id, row=left[0], difference=lines)
        return e.Failure(code=DivergedError.code, message=message)

    async def _cleared(self, act: Act, known: Known, hold: e.Failure | None) -> bool:
        """Propose, wait while it is held; whether it may be sent."""
        entry = await self.gateway.propose(self.seat, act, hold=hold)
        while isinstance(entry, e.ActionHeld):
            known.state, known.intent_seq = S.HELD, entry.seq
            self._wait(1)
            self._busy(-1)
            try:
                decided = await self.seat.decided(act.call)
            finally:
                self._wait(-1)
                self._busy(1)
            if not isinstance(decided, e.ActionDecided):
                entry = decided
                break
            entry = await self.gateway.release(self.seat, act)
        known.intent_seq = entry.seq
        if isinstance(entry, e.ActionIntended):
            known.state = S.INTENDED
            return True
        self._drop(act, known, entry)
        return False

    def _drop(self, act: Act, known: Known, entry: e.CallEntry) -> None:
        """It was refused: no fact, and a later attempt may ask again."""
        self._settled(known, entry)
        self._frontier.remove(act.what, act.call)
        if known.tee is not None and isinstance(entry, e.ActionEnded) and entry.error is not None:
            error = ledger.raised(entry.error)
            if isinstance(error, PerdureError):
                known.tee.fail(error)

    def _refusal(self, known: Known) -> PerdureError:
        if known.tee is not None and known.tee.error is not None:
            return known.tee.error
        return RunEndedError(f"run `{self.seat.run_id}` was stopped")

    async def _end(self, act: Act, known: Known, outcome: Outcome) -> None:
        entry = await self.gateway.conclude(self.seat, act, outcome)
        self._settled(known, entry)
        if isinstance(entry, e.ActionDoubted):
            known.state = S.UNKNOWN
        elif known.state is S.LOST:
            self._frontier.remove(act.what, act.call)

    # -- coming to rest
    def abandon(self, claim: Claim) -> None:
        """The reader of a row went away before it had everything: the same request again attaches to it."""
        self._frontier.known(claim.call).is_abandoned = True

    @property
    def consumed(self) -> int:
        """How many calls were answered from the journal so far."""
        return self._frontier.consumed

    def _check(self) -> None:
        if self.is_over:
            raise RunEndedError(f"attempt {self.number} of run `{self.seat.run_id}` is over")

    def _wait(self, change: int) -> None:
        self.waiting += change
        self.changed.set()

    def _busy(self, change: int) -> None:
        self.working += change
        self.changed.set()

    async def stuck_for(self, grace_s: float) -> None:
        """Until the attempt has been stuck for so long without a break."""
        while True:
            self.changed.clear()
            if not self.waiting or self.working:  # not all that it has asked for waits for a decision
                await self.changed.wait()
                continue
            try:
                async with asyncio.timeout(grace_s):
                    await self.changed.wait()
            except TimeoutError:
                return
