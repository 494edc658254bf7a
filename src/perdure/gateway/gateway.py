"""The path of every act: gates and budget, durable intent, dispatch, durable outcome.

Nothing leaves the process before its intent is durable, and nothing is told to the agent before its outcome is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from perdure.core import entries as e
from perdure.core.actions import ActionState, Spend
from perdure.core.errors import (
    ArgumentsInvalidError,
    PerdureError,
    ToolDoubtfulError,
    ToolFailedError,
    ToolUnreachableError,
    UnavailableError,
    UpstreamError,
)
from perdure.core.limits import ERROR_TEXT_MAX
from perdure.core.models import ModelRequest, Usage
from perdure.core.tools import ToolOutput, ToolSpec, ToolUse
from perdure.core.verdicts import ALLOW, Verdict, both, deny
from perdure.gateway import intents, ledger
from perdure.gateway.gates.walls import walled
from perdure.gateway.governance import Governance
from perdure.gateway.outputs import bounded, exchange
from perdure.gateway.prices import cost_usd_micros, estimate_usd_micros
from perdure.gateway.redact import Redactor
from perdure.gateway.schema import ArgumentSchema
from perdure.gateway.seat import Act, Outcome, Seat
from perdure.gateway.wire import AnswerReader, RequestFacts
from perdure.gateway.wire.usage import without_usage
from perdure.kernel.actions import in_doubt
from perdure.ports import Answer, NullTelemetry, Probe, Telemetry, Tool, Transaction, Undo, Upstreams

S = ActionState
OUTPUT_TOKENS_ASSUMED = 4_096  # reserved for an answer where the request sets no limit
BYTES_PER_TOKEN = 3  # on the safe side: text has about four bytes a token
REPEATS_MAX = 2  # how often a pure or idempotent tool is sent again, under its key, when no answer came
Emit = Callable[[bytes, bool], None]  # a chunk, and whether it (or one before) ends the answer


class Gateway:
    """Judges, records, dispatches, records.

    Args:
        upstreams: who answers model requests.
        redactor: takes secrets out of what is stored.
        payload_bytes_max: the largest request or result.
        telemetry: listens to spans and counts.
        governance: the gates, what they go by, and who may approve.
    """

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        redactor: Redactor,
        payload_bytes_max: int,
        telemetry: Telemetry | None = None,
        governance: Governance | None = None,
    ) -> None:
        self.upstreams = upstreams
        self.redactor = redactor
        self.payload_bytes_max = payload_bytes_max
        self.telemetry = telemetry or NullTelemetry()
        self.governance = governance or Governance()
        self._schemas: dict[str, ArgumentSchema] = {}

    # -- before
    def check_arguments(self, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        """Gate 1, the schema.

        Raises:
            ArgumentsInvalidError: the arguments do not fit.
        """
        digest = spec.digest
        schema = self._schemas.get(digest)
        if schema is None:
            schema = self._schemas[digest] = ArgumentSchema(spec.parameters)
        schema.check(arguments, spec.name)

    def estimate(self, facts: RequestFacts, at_ms: int) -> Spend:
        """What a model request may use at most, as far as it can be told beforehand."""
        tokens_in = facts.input_bytes // BYTES_PER_TOKEN + 1
        tokens_out = facts.output_tokens_max or OUTPUT_TOKENS_ASSUMED
        price = self.upstreams.price(facts.model)
        money = estimate_usd_micros(facts.model, tokens_in, tokens_out, price, at_ms)
        return Spend(
            tokens=tokens_in + tokens_out, usd_micros=money or 0, calls=1, unpriced=1 if money is None else 0
        )

    async def propose(self, seat: Seat, act: Act, *, hold: e.Failure | None = None) -> e.CallEntry:
        """Judge and record: ``ActionIntended``, ``ActionHeld``, or ``ActionEnded`` when it is refused. Durable on return.

        With ``hold`` the act is held for that reason, whatever the gates say.
        """
        act.stored, _ = self.redactor.clean(act.request)
        warnings: list[str] = []
        governance = self.governance
        act.seal = governance.sealer(seat, act)

        async def judged() -> e.CallEntry:
            verdict = await self._looked(seat, act, walled(act, await governance.judge(seat, act)))

            def covered(tx: Transaction, found: Verdict, now_ms: int) -> str:
                claim = governance.claim(seat, act, act.stored, found.policy)
                return governance.use_group(tx, claim, found.reasons, found.demands, now_ms)

            def make(tx: Transaction, position: dict[str, int]) -> tuple[e.CallEntry, Any]:
                entry, blobs, room = intents.propose(
                    tx, position, seat, act, self.payload_bytes_max, hold, verdict, covered
                )
                warnings.extend(room.warnings)
                return entry, blobs

            return await seat.write(make)

        entry = await _in_turn(seat, judged)
        self._warn(seat, warnings)
        return entry

    async def release(self, seat: Seat, act: Act) -> e.CallEntry:
        """Judge a held act again, under the policies in force now, and with what was signed about it."""
        act.stored, _ = self.redactor.clean(act.request)
        governance = self.governance
        held = seat.held(act.call)
        if held is not None:
            act.shown, act.asked, act.confidence = held.reasons, held.asked, held.confidence
        changed = governance.changed_arguments(seat, act)
        act.seal = governance.sealer(seat, act)
        asked = act.stored  # what was shown and signed, before anybody changed it
        if changed is not None:
            act.request, act.is_changed = changed, True
            act.stored, _ = self.redactor.clean(changed)

        async def judged() -> e.CallEntry:
            verdict = self._fitting(act)
            if not verdict.is_deny:
                again = walled(act, await governance.judge(seat, act, is_release=True))
                verdict = await self._looked(seat, act, again)
            claim = governance.claim(seat, act, asked, verdict.policy)
            return await seat.write(
                lambda tx, position: intents.release(
                    tx, position, seat, act, self.payload_bytes_max, verdict, governance, claim
                )
            )

        return await _in_turn(seat, judged)

    def _fitting(self, act: Act) -> Verdict:
        """Whether arguments that an approver has changed fit the tool."""
        try:
            if act.spec is not None and act.is_changed:
                self.check_arguments(act.spec, msgspec.json.decode(act.request))
        except ArgumentsInvalidError as error:
            return deny(error.code, error.message)
        return ALLOW

    async def _looked(self, seat: Seat, act: Act, verdict: Verdict) -> Verdict:
        """Let the tool look at what it is about to change, if it can undo it; if it cannot look, the answer is no."""
        if verdict.is_deny or act.effect != "reversible" or not isinstance(act.tool, Undo):
            return verdict
        try:
            act.before = await self._image(act.tool, act, seat.run_id)
        except Exception as error:  # noqa: BLE001 - the tool's own failure: told to the agent
            why = self._told(f"tool `{act.name}` could not look at what it would change: {error}")
            return both(verdict, deny("image-failed", why))
        return verdict

    async def _image(self, tool: Undo, act: Act, run_id: str) -> bytes | None:
        arguments: dict[str, Any] = msgspec.json.decode(act.request)
        use = ToolUse(run=run_id, key=f"{run_id}/{act.call}", arguments=arguments)
        seen = await tool.image(use)
        return None if seen is None else self.redactor.clean(msgspec.json.encode(seen))[0]

    def _warn(self, seat: Seat, warnings: list[str]) -> None:
        for text in warnings:
            seat.show("budget", text)

    # -- after
    async def conclude(self, seat: Seat, act: Act, outcome: Outcome) -> e.CallEntry:
        """Record an outcome; durable on return."""
        seen = None if seat.memory is None else seat.memory.seen
        outcome = replace(outcome, tier=outcome.tier or act.within)
        if seen is not None:
            outcome = replace(outcome, labels=seen.labels_of_outcome(act, outcome))
        entry = await seat.write(
            lambda tx, position: ledger.conclude(
                tx, position, seat.run_id, act.call, act.digest, outcome, self.payload_bytes_max
            )
        )
        if self.telemetry.is_on:
            self.telemetry.count(
                "perdure.actions.ended", 1, {"what": act.what, "name": act.name, "state": outcome.state.value}
            )
        return entry

    # -- tools
    async def use_tool(self, act: Act, tool: Tool, run_id: str) -> Outcome:
        """Dispatch a tool, again under the same key if it may be repeated and did not answer."""
        spec = tool.spec
        arguments: dict[str, Any] = msgspec.json.decode(act.request)
        use = ToolUse(
            run=run_id, key=f"{run_id}/{act.call}", arguments=arguments, tier=act.tier, agent=act.agent
        )
        repeats = REPEATS_MAX if in_doubt("tool", act.recovery) == "repeat" else 0
        while True:
            outcome = await self._one_use(tool, spec, use)
            if outcome.state is S.SUCCEEDED and act.effect == "reversible" and isinstance(tool, Undo):
                with contextlib.suppress(
                    Exception
                ):  # without it a conflict is not seen, and the undoing says so
                    return replace(outcome, after=await self._image(tool, act, run_id))
            if outcome.state is not S.UNKNOWN:
                return outcome
            if repeats:
                repeats -= 1
                continue
            if in_doubt("tool", act.recovery) == "probe":
                return await self.probe(tool, use, outcome)
            if act.recovery in ("pure", "idempotent"):
                return Outcome(S.FAILED, Spend(calls=1), error=outcome.error)
            return outcome

    async def _one_use(self, tool: Tool, spec: ToolSpec, use: ToolUse) -> Outcome:
        spent = Spend(calls=1)
        try:
            async with asyncio.timeout(spec.timeout_ms / 1000):
                output = await tool.call(use)
        except (ToolDoubtfulError, TimeoutError) as error:
            text = str(error) or f"tool `{spec.name}` did not answer within {spec.timeout_ms} ms"
            return Outcome(
                S.UNKNOWN, spent, error=e.Failure(code="action-doubtful", message=text[:ERROR_TEXT_MAX])
            )
        except PerdureError as error:
            unreached = isinstance(error, ToolUnreachableError)
            labels = error.facts.get("labels", ())
            failure = e.Failure(code=error.code, message=self._told(error.message), labels=labels)
            return Outcome(S.FAILED, Spend() if unreached else spent, error=failure)
        except Exception as error:  # noqa: BLE001 - the tool's own failure: recorded, and raised in the agent
            kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
            text = self._told(f"tool `{spec.name}` failed: {kind}: {error}")
            return Outcome(
                S.FAILED, spent, error=e.Failure(code=ToolFailedError.code, message=text, type=kind)
            )
        return self.answered(spec, output, spent)

    def answered(self, spec: ToolSpec, output: ToolOutput, spent: Spend) -> Outcome:
        """The outcome of an answer: searched for secrets, bounded, the excess kept as an artifact."""
        try:
            kept, blobs = bounded(output, spec.output_bytes_max, self.redactor)
        except PerdureError as error:
            failure = e.Failure(code=error.code, message=error.message)
            return Outcome(S.FAILED, spent, error=failure)
        return Outcome(
            S.SUCCEEDED, spent, result=kept, labels=output.labels, blobs=blobs, tier=output.tier, breach=output.breach
        )  # fmt: skip

    def _told(self, text: str) -> str:
        cleaned, _ = self.redactor.clean(text.encode())
        return cleaned.decode(errors="replace")[:ERROR_TEXT_MAX]

    async def probe(self, tool: Tool, use: ToolUse, doubt: Outcome) -> Outcome:
        """Ask a tool whether a doubtful use of it happened; it stays doubtful if that is not found out."""
        if not isinstance(tool, Probe):
            return doubt
        try:
            async with asyncio.timeout(tool.spec.timeout_ms / 1000):
                finding = await tool.probe(use)
        except Exception as error:  # noqa: BLE001 - a probe that fails leaves the doubt, and a human decides
            why = f"the probe of tool `{tool.spec.name}` failed: {error}"
            failure = e.Failure(code="action-doubtful", message=self._told(why))
            return Outcome(S.UNKNOWN, doubt.spent, error=failure)
        if finding.answer == "happened":
            output = finding.output or ToolOutput(value=None)
            found = self.answered(tool.spec, output, Spend(calls=1))
            return Outcome(
                found.state,
                found.spent,
                result=found.result,
                error=found.error,
                labels=found.labels,
                decided_by="probe",
                blobs=found.blobs,
            )
        if finding.answer == "did-not-happen":
            failure = e.Failure(
                code="action-not-done", message="the tool's probe says that it did not happen"
            )
            return Outcome(S.FAILED, Spend(), error=failure, decided_by="probe")
        return doubt

    # -- models
    @contextlib.asynccontextmanager
    async def ask_model(self, act: Act, run_id: str) -> AsyncIterator[Answer]:
        """Send a model request; the answer's head has arrived when this is entered."""
        request = ModelRequest(
            endpoint=act.endpoint,
            model=act.name,
            body=act.metered or act.request,
            headers=act.headers,
            key=f"{run_id}/{act.call}",
        )
        async with self.upstreams.open(request) as answer:
            yield answer

    async def drain(self, act: Act, answer: Answer, emit: Emit, at_ms: int) -> Outcome:
        """Read an answer to its end, handing each chunk on, and make its outcome.

        Raises:
            UpstreamError: it broke off.
        """
        reader = AnswerReader(act.endpoint, answer.content_type)
        chunks: list[bytes] = []
        tail: list[bytes] = []
        async for chunk in answer.chunks:
            reader.feed(chunk)
            if reader.is_finishing or answer.status >= 400:
                tail.append(chunk)
            else:
                chunks.append(chunk)
                emit(chunk, False)  # noqa: FBT003 - a pair
        facts = reader.end()
        if tail:
            end = b"".join(tail)
            end = without_usage(end) if act.metered else end
            # An upstream that refuses may repeat what it was sent, the key too: that goes to nobody.
            chunks.append(self.redactor.clean(end)[0] if answer.status >= 400 else end)
            emit(chunks[-1], True)  # noqa: FBT003
        body = b"".join(chunks)
        stored, _ = self.redactor.clean(body)
        result = exchange(answer.status, answer.content_type, stored)
        if answer.status < 300 and not facts.is_complete:
            why = facts.problem or "the answer broke off"
            message = f"upstream `{answer.upstream}` sent an answer that cannot be used: {why}"
            raise UpstreamError(
                message, status=answer.status, body=body[:ERROR_TEXT_MAX].decode(errors="replace")
            )
        spent, money = self._spent(act, answer, facts.usage, at_ms)
        state = S.SUCCEEDED if answer.status < 400 else S.FAILED
        error = None
        if state is S.FAILED:
            text = self._told(body[:ERROR_TEXT_MAX].decode(errors="replace"))
            error = e.Failure(code="upstream-refused", message=f"status {answer.status}: {text}")
        return Outcome(
            state,
            spent,
            result=result,
            error=error,
            usage=facts.usage,
            usd_micros=money,
            upstream=answer.upstream,
        )

    def _spent(self, act: Act, answer: Answer, usage: Usage | None, at_ms: int) -> tuple[Spend, int | None]:
        if answer.status >= 400:
            return Spend(calls=1), 0
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0) if usage else 0
        money: int | None = None
        if usage is not None:
            price = self.upstreams.price(act.name)
            money = cost_usd_micros(answer.model if price is None else act.name, usage, price, at_ms)
        if money is None:  # unknown, never zero: what was reserved stands for it where there is a budget
            return Spend(
                tokens=tokens or act.estimate.tokens, usd_micros=act.estimate.usd_micros, calls=1, unpriced=1
            ), None
        return Spend(tokens=tokens, usd_micros=money, calls=1), money

    async def model(self, seat: Seat, act: Act) -> Outcome:
        """One model request without a reader: the outcome, or ``lost``."""
        try:
            async with self.ask_model(act, seat.run_id) as answer:
                return await self.drain(act, answer, lambda *_: None, seat.now_ms())
        except PerdureError as error:
            return lost(error)


async def _in_turn(seat: Seat, judged: Callable[[], Awaitable[e.CallEntry]]) -> e.CallEntry:
    """Judge and record one action of a run: what gates remember must hold it before the next one is judged."""
    if seat.memory is None:
        return await judged()
    async with seat.memory.lock:
        entry = await judged()
        seat.memory.see_ahead(entry, seat.bytes_of)
    return entry


def lost(error: PerdureError) -> Outcome:
    """The outcome of a model request that counts as not made."""
    state = S.LOST if isinstance(error, UnavailableError) else S.FAILED
    return Outcome(state, Spend(), error=e.Failure(code=error.code, message=error.message[:ERROR_TEXT_MAX]))
