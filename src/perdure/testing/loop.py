"""A single-threaded asyncio loop in virtual time, whose processes can die or stand still.

Time moves only when nothing is ready, and jumps to the next timer. Ready callbacks run first in, first out, as asyncio
documents: interleavings vary because the simulated ports draw their latencies, not because the contract is broken.

A *process* is whatever runs with its name in ``INCARNATION``; tasks and callbacks inherit it through their context. A
process dies by losing its handles: no ``finally`` of it ever runs, just as after a power loss.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Context = contextvars.Context

INCARNATION: contextvars.ContextVar[str | None] = contextvars.ContextVar("perdure_incarnation", default=None)
STEPS_MAX = 5_000_000  # callbacks of one simulation: more means that something spins


class DeadlockError(AssertionError):
    """Nothing is ready and no timer is set, yet the main coroutine has not ended."""


class SimLoop(asyncio.AbstractEventLoop):
    """An event loop without I/O, threads or real time."""

    def __init__(self) -> None:
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self.is_disposed = False
        self._now_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._made = 0
        self._dead: set[str] = set()
        self._paused: dict[str, float] = {}
        self._failure: BaseException | None = None
        self._tasks: list[asyncio.Task[Any]] = []  # strong, so that no ``finally`` runs by collection

    # -- processes
    def kill(self, incarnation: str) -> None:
        """The process of that name never runs again."""
        self._dead.add(incarnation)

    def is_dead(self, incarnation: str | None) -> bool:
        """Whether that process was killed."""
        return incarnation in self._dead

    def pause(self, incarnation: str, seconds: float) -> None:
        """The process stands still; what becomes ready meanwhile runs afterwards, in order."""
        self._paused[incarnation] = self._now_s + seconds

    def fail(self, error: BaseException) -> None:
        """Make :meth:`run_until_complete` raise ``error`` after the callback that is running; the first counts."""
        self._failure = self._failure or error

    # -- running
    def run_until_complete(self, future: Coroutine[Any, Any, T]) -> T:  # type: ignore[override]
        """Run until the coroutine ends.

        Raises:
            DeadlockError: nothing can make it go on.
        """
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            task: asyncio.Task[T] = self.create_task(future)
            while not task.done():
                self._once()
                if self._failure is not None:
                    raise self._failure
            return task.result()
        finally:
            events._set_running_loop(before)

    def _once(self) -> None:
        while not self._ready:
            self._advance()
        handle = self._ready.popleft()
        if handle.cancelled() or self._is_held(handle):
            return
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise DeadlockError(f"{STEPS_MAX} callbacks and no end at t={self._now_s:.3f} s")
        handle._run()

    def _is_held(self, handle: asyncio.Handle) -> bool:
        """Whether the handle's process is dead, or stands still (then the handle waits for its end)."""
        name = handle._context.get(INCARNATION)  # type: ignore[attr-defined]
        if name is None:
            return False
        if name in self._dead:
            return True
        until = self._paused.get(name)
        if until is None:
            return False
        if until <= self._now_s:
            del self._paused[name]
            return False
        self._push(until, handle)
        return True

    def _advance(self) -> None:
        """Go to the next timer; all timers of one instant become ready in the order in which they were set."""
        timers = self._timers
        while timers:
            when, _, handle = heapq.heappop(timers)
            if handle.cancelled():
                continue
            self._now_s = max(self._now_s, when)
            self._ready.append(handle)
            while timers and timers[0][0] <= self._now_s:
                self._ready.append(heapq.heappop(timers)[2])
            return
        raise DeadlockError(f"nothing is left to run at t={self._now_s:.3f} s")

    def _push(self, when: float, handle: asyncio.Handle) -> None:
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, handle))

    def dispose(self) -> None:
        """Drop everything that still stands somewhere, quietly; the loop is not used again."""
        self.is_disposed = True
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                close_quietly(task.get_coro())
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()

    # -- what tasks, futures and timeouts need
    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run after what is ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run after virtual seconds."""
        return self.call_at(self._now_s + max(0.0, delay), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run at a virtual time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._push(when, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Left in the heap; skipped when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        """A task of this loop, kept for as long as it is not done."""
        task = asyncio.Task(coro, loop=self, name=name or "sim", context=context)
        if len(self._tasks) >= 4_096 and len(self._tasks) % 4_096 == 0:
            self._tasks = [item for item in self._tasks if not item.done()]
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody caught."""
        self.errors.append(context)

    def get_debug(self) -> bool:
        """Never in debug mode."""
        return False

    def get_task_factory(self) -> None:
        """None is set."""

    def is_running(self) -> bool:
        """Always, as far as its tasks can see."""
        return True

    def is_closed(self) -> bool:
        """Never while it is used."""
        return self.is_disposed

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do."""

    # -- the real world stays outside
    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        """Refused."""
        raise RuntimeError("threads are not simulated; go through a port")

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise RuntimeError("sockets are not simulated; go through a port")


def close_quietly(coroutine: Any) -> None:
    """Close a coroutine, also those that it was given and never started, without a word."""
    if not inspect.iscoroutine(coroutine):
        return
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED and coroutine.cr_frame is not None:
        for value in list(coroutine.cr_frame.f_locals.values()):
            close_quietly(value)
    try:
        coroutine.close()
    except BaseException:  # noqa: BLE001, S110 - its process is gone; nobody to tell
        pass
