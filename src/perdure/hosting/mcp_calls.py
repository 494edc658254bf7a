"""Uses of tools that are under way: they end whether or not anyone still listens, and some are polled as tasks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Protocol

from perdure.core.errors import PerdureError
from perdure.core.tools import ToolOutput, ToolSpec
from perdure.hosting.mcp_wire import INTERNAL_ERROR, INVALID_PARAMS, Fault, answered, failed
from perdure.ports import Clock, Entropy

Progress = Callable[[float, float | None, str], None]
CALLS_MAX = 1_000  # under way at once: each holds its arguments and its answer in memory
TASKS_MAX = 1_000  # kept for polling; the oldest that has ended makes room
TASK_TTL_MS = 3_600_000  # a task can be polled for an hour after its end
TASK_POLL_MS = 500
PROGRESS_KEPT = 64  # a slow reader misses older ones
TASK_ID_BITS = 192

_logger = logging.getLogger(__name__)


class Caller(Protocol):
    """On whose behalf a request acts: one run. The same object for each request of an attempt: it owns its tasks."""

    async def specs(self) -> Sequence[ToolSpec]:
        """The run's pinned catalogue."""
        ...

    async def use(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        progress: Progress | None = None,
        confidence: int | None = None,
    ) -> ToolOutput:
        """Use a tool; ``confidence`` is in percent, if the program has said so.

        Raises:
            PerdureError: it was refused, or failed.
        """
        ...


class Call:
    """One use of a tool, with what was told of it so far."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.outcome: dict[str, Any] | Fault | None = None
        self.progress: deque[tuple[float, float | None, str]] = deque(maxlen=PROGRESS_KEPT)
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self.ended_ms = 0

    def tell(self, done: float, total: float | None, message: str) -> None:
        """Take note of progress; never waits for a reader."""
        self.progress.append((done, total, message))
        self.changed.set()

    async def wait(self) -> None:
        """Until something new is known of it; one waits at a time."""
        await self.changed.wait()
        self.changed.clear()

    def end(self, outcome: dict[str, Any] | Fault, now_ms: int) -> None:
        """It is over."""
        self.outcome = outcome
        self.ended_ms = now_ms
        self.ended.set()
        self.changed.set()


class Task:
    """A call that is polled."""

    def __init__(self, task_id: str, call: Call, now_ms: int) -> None:
        self.task_id = task_id
        self.call = call
        self.created_ms = now_ms
        self.cancelled_ms: int | None = None

    @property
    def status(self) -> str:
        """Where it is, in the protocol's words."""
        outcome = self.call.outcome
        if self.cancelled_ms is not None:
            return "cancelled"
        if outcome is None:
            return "working"
        return "failed" if isinstance(outcome, Fault) else "completed"

    def shown(self, *, is_modern: bool) -> dict[str, Any]:
        """Its description; durations were renamed in 2026-07-28."""
        told: dict[str, Any] = {
            "taskId": self.task_id,
            "status": self.status,
            "createdAt": _iso(self.created_ms),
            "lastUpdatedAt": _iso(self.cancelled_ms or self.call.ended_ms or self.created_ms),
            "ttlMs" if is_modern else "ttl": TASK_TTL_MS,
            "pollIntervalMs" if is_modern else "pollInterval": TASK_POLL_MS,
        }
        if self.cancelled_ms is not None:
            told["statusMessage"] = "nobody waits for it any more; what was begun is not undone"
        elif self.call.progress:
            told["statusMessage"] = self.call.progress[-1][2]
        return told


class Calls:
    """Owns the calls of a face.

    Args:
        clock: dates tasks.
        entropy: names tasks, so that they cannot be guessed.
    """

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._running: set[asyncio.Task[None]] = set()
        self._tasks: dict[str, Task] = {}

    def start(
        self,
        caller: Caller,
        name: str,
        arguments: dict[str, Any],
        within: AbstractContextManager[Any] | None = None,
        confidence: int | None = None,
    ) -> Call:
        """Begin a use. It goes on when the client is gone: what it does is journaled and cannot be taken back.

        Args:
            caller: who acts.
            name: of the tool.
            arguments: for it.
            within: entered while the use begins, such as the span that it belongs to.
            confidence: how sure the program is, in percent, if it has said so.

        Raises:
            Fault: too many are under way.
        """
        if len(self._running) >= CALLS_MAX:
            raise Fault(
                INTERNAL_ERROR, f"{CALLS_MAX} calls are under way already; try again when some have ended"
            )
        call = Call(caller)
        with within or nullcontext():
            self._own(self._use(call, name, arguments, confidence))
        return call

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _use(self, call: Call, name: str, arguments: dict[str, Any], confidence: int | None) -> None:
        try:
            outcome: dict[str, Any] | Fault = answered(
                await call.caller.use(name, arguments, progress=call.tell, confidence=confidence)
            )
        except PerdureError as error:
            outcome = failed(error)
        except asyncio.CancelledError:
            call.end(Fault(INTERNAL_ERROR, "the runtime is stopping"), self._clock.now_ms())
            raise
        except Exception:
            # A bug of ours: the log has it, and the program gets nothing of our insides.
            _logger.exception("use of tool `%s` broke", name)
            outcome = Fault(INTERNAL_ERROR, "internal error; the runtime's log says more")
        call.end(outcome, self._clock.now_ms())

    def keep(self, call: Call) -> Task:
        """Make a task of a call."""
        now_ms = self._clock.now_ms()
        self._forget(now_ms)
        task = Task(f"{self._entropy.bits(TASK_ID_BITS):048x}", call, now_ms)
        self._tasks[task.task_id] = task
        return task

    def _forget(self, now_ms: int) -> None:
        """Drop tasks that ended long ago, and the oldest ended ones where there are too many."""
        ended = [task for task in self._tasks.values() if task.call.ended.is_set()]
        spare = len(self._tasks) - TASKS_MAX
        for index, task in enumerate(ended):
            if index <= spare or now_ms - task.call.ended_ms > TASK_TTL_MS:
                del self._tasks[task.task_id]

    def find(self, caller: Caller, task_id: Any) -> Task:
        """A caller's task.

        Raises:
            Fault: it has none of that id.
        """
        task = self._tasks.get(task_id) if isinstance(task_id, str) else None
        if task is None or task.call.caller != caller:
            raise Fault(INVALID_PARAMS, f"no task has the id `{task_id!s:.80}`; it may have expired")
        return task

    def of(self, caller: Caller) -> list[Task]:
        """All tasks of a caller, the oldest first."""
        return [task for task in self._tasks.values() if task.call.caller == caller]

    def cancel(self, task: Task) -> None:
        """Stop waiting for it. The use itself goes on: only the gateway may decide what becomes of it."""
        if task.status == "working":
            task.cancelled_ms = self._clock.now_ms()
            task.call.changed.set()

    async def close(self) -> None:
        """Stop everything that is under way and wait until it has stopped."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._tasks.clear()


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
