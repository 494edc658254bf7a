"""Handles: follow one run and talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.agents.codec import to_json
from perdure.core import entries as e
from perdure.core.errors import RefusedError, ReplayError, StepError, error_for
from perdure.core.records import Question, RunRecord, Status
from perdure.core.values import decode
from perdure.engines.embedded import works
from perdure.engines.embedded.waits import outcome_of
from perdure.engines.embedded.watch import Live

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

PAGE = 500  # entries read at a time


@dataclass(frozen=True, slots=True)
class Answerable:
    """An open question: which run and call asks it, and what."""

    run: str
    call: int
    agent: str
    question: Any
    asked_ms: int
    due_ms: int | None

    @classmethod
    def of(cls, row: Question, body: bytes) -> Answerable:
        """From the store's row."""
        return cls(row.run, row.call, row.agent, decode(body), row.asked_ms, row.due_ms)


class RunHandle:
    """One run, seen from outside."""

    def __init__(self, runtime: Runtime, run_id: str) -> None:
        self._runtime = runtime
        self.id = run_id

    def __repr__(self) -> str:
        return f"RunHandle({self.id!r})"

    def record(self) -> RunRecord:
        """The run's row: status, session, times, fence."""
        return self._runtime.store.read(lambda tx: works.find(tx, self.id))

    @property
    def status(self) -> Status:
        """Where the run is in its life."""
        return self.record().status

    def journal(self, after: int = 0, limit: int | None = None) -> list[e.AnyEntry]:
        """The entries that are durable now, with ``seq`` over ``after``."""
        return self._runtime.store.read(lambda tx: tx.journal(self.id, after, limit))

    async def entries(self, after: int = 0) -> AsyncIterator[e.AnyEntry]:
        """Every entry with ``seq`` over ``after``, live as they are recorded, until the run has ended or is blocked.

        A follower that was cut off goes on with ``after`` = the last ``seq`` that it has seen.
        """
        with self._runtime.changes(self.id) as changed:
            while True:
                changed.clear()
                status = self.status
                page = self.journal(after, PAGE)
                for entry in page:
                    after = entry.seq
                    yield entry
                if page:
                    continue
                if status.is_ended or status is Status.BLOCKED or self._runtime.is_closed:
                    return
                await self._runtime.wait_for(changed)

    async def live(self) -> AsyncIterator[Live]:
        """What the agent shows while it works (tokens, progress): not recorded, only while you listen."""
        with self._runtime.live(self.id) as queue:
            if self.status.is_ended:
                return
            while (item := await queue.get()) is not None:
                yield item

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result as plain data.

        Raises:
            AgentFailedError, RunCancelledError, DeadlineExceededError, ResultInvalidError: how it ended instead.
            ReplayError, QuarantinedError, CorruptError: it is blocked; see ``facts``.
            TimeoutError: it did not end within ``timeout`` seconds (it goes on).
        """
        async with asyncio.timeout(timeout):
            with self._runtime.changes(self.id, only_end=True) as changed:
                while True:
                    changed.clear()
                    record = self.record()
                    if record.status.is_ended or record.status is Status.BLOCKED:
                        return self._outcome(record)
                    await self._runtime.wait_for(changed)

    def _outcome(self, record: RunRecord) -> Any:
        if record.status is Status.BLOCKED and record.code in ("journal-corrupt", "store-corrupt"):
            raise error_for(record.code)(f"the journal of run `{self.id}` is damaged", run=self.id)
        last = self.journal(after=record.seq - 1)[-1]
        if isinstance(last, e.RunBlocked):
            facts = {"expected": last.expected, "found": last.found, "run": self.id}
            raise error_for(last.error.code)(last.error.message, **facts)
        result, failure = outcome_of(last)
        if failure is not None:
            kind = error_for(failure.code)
            if not issubclass(kind, StepError | ReplayError | RefusedError):
                kind = error_for("agent-failed")
            raise kind(failure.message, type=failure.type, run=self.id)
        return decode(self._runtime.bytes_of(result)) if result is not None else None

    async def send(self, topic: str, body: Any = None, *, key: str | None = None, sender: str = "") -> int:
        """Put a message into the run's mailbox; durable on return.

        Args:
            topic: what the run receives by.
            body: anything that JSON holds.
            key: a second message with the same key is dropped.
            sender: who sends, as the run sees it.

        Returns:
            The message's id, 0 for one that was dropped.

        Raises:
            RunUnknownError, RunEndedError: nobody would read it.
        """
        return await self._runtime.send(self.id, topic, body, key=key, sender=sender)

    async def answer(self, call: int, body: Any, *, sender: str = "") -> None:
        """Answer the question that the run asked in call ``call``.

        Raises:
            QuestionUnknownError: it asks nothing there, or was answered.
        """
        await self._runtime.answer(self.id, call, to_json(body), sender=sender)

    def questions(self) -> list[Answerable]:
        """What the run asks now."""
        return self._runtime.questions(self.id)

    async def cancel(self, reason: str = "cancelled by the caller") -> None:
        """Ask the run and its children to stop; durable on return, they stop soon after."""
        await self._runtime.cancel(self.id, reason)
