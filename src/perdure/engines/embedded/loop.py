"""The loop on which an agent's own code runs: deterministic, with time from the journal.

Agent code is ordinary asyncio code. It runs on a loop of its own that has no I/O: ready callbacks run first in, first
out until nothing is ready; then the engine delivers the next entry of the journal. So ``gather``, ``TaskGroup`` and
``asyncio.timeout`` interleave on replay as they did live. Time stands still between entries, and a timer fires when
the journal says so.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from perdure.core.errors import OutsideRunError, Suspended

log = logging.getLogger("perdure.agent")
_LAST_TURNS_MAX = 10_000  # callbacks that evicted code may run while it unwinds
_TASKS_KEPT = 64  # finished tasks are dropped from the list when it has grown by this many


class _Timer(asyncio.TimerHandle):
    __slots__ = ("number",)
    number: int


class RunLoop(asyncio.AbstractEventLoop):
    """An event loop for one run. ``drain`` runs what is ready; nothing else makes it go on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.timers: dict[int, _Timer] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self._timers_made = 0
        self._closed = False

    # -- driven by the engine
    def drain(self, turns: int = -1) -> None:
        """Run callbacks until none is ready (or, at eviction, for so many turns)."""
        before = events._get_running_loop()
        # Python 3.14 keeps one current task for each thread, not for each loop: the outer one steps aside.
        outer = None if before is None else asyncio.current_task(before)
        if before is not None and outer is not None:
            tasks._leave_task(before, outer)
        events._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, self._end_generator)
        ready = self.ready
        try:
            while ready and turns:
                turns -= 1
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(before)
            if before is not None and outer is not None:
                tasks._enter_task(before, outer)
            sys.set_asyncgen_hooks(*hooks)

    def _end_generator(self, generator: Any) -> None:
        """Close a forgotten generator on this loop, not on the process's; once the run left memory, not at all."""
        if not self._closed:
            self.create_task(generator.aclose())

    def fire(self, number: int) -> bool:
        """Make a timer's callback ready; whether there is such a timer, or was."""
        timer = self.timers.pop(number, None)
        if timer is not None:
            self.ready.append(timer)
        return number <= self._timers_made

    def abandon(self) -> None:
        """Drop the agent's code where it stands.

        Tasks that were woken with ``Suspended`` unwind here, each in its own context; what still waits for something
        else is closed. ``finally`` blocks run, but the host lets them make no durable call.
        """
        self._closed = True
        self.timers.clear()
        self.drain(_LAST_TURNS_MAX)
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                try:
                    coroutine.close()
                except (Suspended, RuntimeError, Exception):  # noqa: BLE001, S110 - the run is gone; nobody to tell
                    pass
        self.tasks.clear()
        self.ready.clear()

    # -- what tasks, futures and timeouts need
    def time(self) -> float:
        """Seconds of the epoch at the entry that was delivered last."""
        return self.now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run after what is ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run after a delay, durably."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run at a time, durably; timers are numbered in the order in which they are made."""
        timer = _Timer(when, callback, args, self, context)
        if when <= self.now_s:
            timer.number = 0
            self.ready.append(timer)
            return timer
        self._timers_made += 1
        timer.number = self._timers_made
        self.timers[timer.number] = timer
        return timer

    def _timer_handle_cancelled(self, handle: _Timer) -> None:
        self.timers.pop(handle.number, None)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[Any]:
        """A task of this loop."""
        task = asyncio.Task(coro, loop=self, name=name or "run", context=context)
        if len(self.tasks) >= _TASKS_KEPT and len(self.tasks) % _TASKS_KEPT == 0:
            self.tasks = [item for item in self.tasks if not item.done()]
        self.tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task of the agent failed and nobody asked it why: worth a line, not more."""
        log.debug("in agent code: %s", context.get("message"), exc_info=context.get("exception"))

    def get_debug(self) -> bool:
        """Never in debug mode: the tracebacks of each handle would cost more than the agent."""
        return False

    def get_task_factory(self) -> None:
        """None is set."""

    def is_running(self) -> bool:
        """Always, as far as the agent can see."""
        return not self._closed

    def is_closed(self) -> bool:
        """Whether the run was evicted."""
        return self._closed

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do."""

    # -- the world is reached through steps
    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        """Refused."""
        raise _outside("a thread")

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override] # noqa: ARG002
        """Refused."""
        raise _outside("another thread's callback")

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise _outside("a connection")

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise _outside("a name look-up")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise _outside("a program")

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise _outside("a program")


def _outside(what: str) -> OutsideRunError:
    return OutsideRunError(
        f"agent code asked for {what}, which would not be repeated on replay; "
        "do it in a step: `await run.step(function, ...)`"
    )
