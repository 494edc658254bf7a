"""The worker processes of one app: as many as its runs need between two bounds, each replaced when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from perdure.core.errors import SandboxUnavailableError
from perdure.core.workers import WorkerRules
from perdure.engines.isolated.host import RemoteHost
from perdure.engines.isolated.process import WorkerApp, WorkerProcess

log = logging.getLogger("perdure.workers")
BACKOFF_S = (
    0.05,
    15.0,
)  # before a worker is started after several that ended before they did anything: unit and longest
TICK_S = 0.2  # between two looks at who waits and who is idle
FULL_SHARE = 0.75  # of its memory: from here on a worker gets no more runs, and is replaced


class Pool:
    """Finds a worker for each run. Implements ``Desk``.

    Args:
        app: what a worker is started as.
        rules: bounds.
        folder: of the sockets and marks.
        token: makes a one-time token.
        drain_ms: how long runs may go on in a worker that is to end.
        owner: the user that workers are.
    """

    def __init__(
        self,
        app: WorkerApp,
        rules: WorkerRules,
        folder: Path,
        token: Callable[[], str],
        *,
        drain_ms: int,
        owner: int,
    ) -> None:
        self.app = app
        self.rules = rules
        self.workers: list[WorkerProcess] = []
        self.ended = 0  # workers that ended without being told to
        self._folder = folder
        self._token = token
        self._owner = owner
        self._drain_s = drain_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[RemoteHost, float]] = deque()
        self._failures = 0
        self._not_before = 0.0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem = ""

    # -- life
    async def open(self) -> None:
        """Start the least number of workers, at least one: it shows that the app can be had this way.

        Raises:
            SandboxUnavailableError: no worker starts.
        """
        for _ in range(max(1, self.rules.min)):
            self._start()
        while not any(worker.state == "ready" for worker in self.workers):
            if self._problem or not self.workers:
                await self.close()
                why = self._problem or "it did not start"
                message = f"no worker process of `{self.app.name}` can be had: {why}"
                raise SandboxUnavailableError(
                    f'{message}; make that work, or set `isolation = "none"` if the agents may run in the runtime\'s own process'
                )
            self._changed.clear()
            await self._changed.wait()
        self._spawn(self._tend())

    async def close(self) -> None:
        """End every worker; the runs are given back by the engine."""
        self._is_closed = True
        for worker in list(self.workers):
            worker.stop() if worker.state in ("ready", "draining") else worker.kill("the runtime stops")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self) -> None:
        worker = WorkerProcess(self.app, self.rules, self._token(), self._folder, self._owner, self._change)
        self.workers.append(worker)
        try:
            worker.start()
        except OSError as error:
            worker.kill(f"it cannot be started: {error.strerror}")

    def worker_of(self, token: str) -> WorkerProcess | None:
        """The worker that waits for its hello with this token: each is good once."""
        for worker in self.workers:
            if worker.state == "starting" and worker.token == token:
                return worker
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- port ``Desk``
    def admit(self, host: RemoteHost) -> None:
        """Find a worker for a run, or let it wait for one."""
        self._queue.append((host, self._loop.time()))
        self._assign()

    def rested(self, host: RemoteHost) -> None:  # noqa: ARG002 - whoever waits may have its room
        """A run waits in memory."""
        if self._queue:
            self._assign()

    def release(self, host: RemoteHost) -> None:
        """A run leaves memory."""
        if isinstance(host.post, WorkerProcess):
            worker = host.post
            worker.release(host)
            if not worker.hosts:
                worker.reserved = False
                worker.idle_since = self._loop.time()
        if self._queue:
            self._queue = deque(item for item in self._queue if item[0] is not host)
            self._assign()

    # -- who goes where
    def _assign(self) -> None:
        if self._is_closed:
            return
        left: deque[tuple[RemoteHost, float]] = deque()
        while self._queue:
            host, since = self._queue.popleft()
            worker = self._alone() if host.is_alone else self._place()
            if host.is_closed:
                continue
            if worker is None:
                left.append((host, since))
                if not host.is_alone and not any(item[0].is_alone for item in self._queue):
                    left.extend(self._queue)
                    break
                continue
            worker.reserved = host.is_alone
            worker.adopt(host)
        self._queue = left
        if left:
            self._grow(left[0][1], is_alone=any(host.is_alone for host, _ in left))

    def _place(self) -> WorkerProcess | None:
        most = self.rules.concurrency
        found = [
            (worker.active, index)
            for index, worker in enumerate(self.workers)
            if worker.state == "ready" and not worker.reserved
        ]
        active, index = min(found, default=(most, -1))
        return self.workers[index] if active < most else None

    def _alone(self) -> WorkerProcess | None:
        for worker in self.workers:
            if worker.state == "ready" and not worker.hosts and not worker.reserved:
                return worker
        return None

    def _grow(self, since: float, *, is_alone: bool) -> None:
        """Start another worker if none is on its way, and the bounds and the back-off allow it."""
        now = self._loop.time()
        living = [worker for worker in self.workers if worker.state in ("starting", "ready")]
        usual = [worker for worker in living if not worker.reserved]
        if any(worker.state == "starting" for worker in living) or now < self._not_before:
            return
        has_waited = not usual or now - since >= self.rules.grow_ms / 1000
        if (is_alone or has_waited) and len(living) < self.rules.max + (1 if is_alone or not usual else 0):
            self._start()

    async def _tend(self) -> None:
        """Look after who waits, who is idle, and who is full."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._is_closed:
                return
            now = self._loop.time()
            for worker in list(self.workers):
                if worker.state == "draining" and (not worker.active or now >= worker.drain_by):
                    self._hand_back(worker)
                elif worker.state == "ready" and self._is_to_end(worker, now):
                    worker.state = "draining"
                    worker.drain_by = now + self._drain_s
            if self._queue:
                self._assign()
            elif now >= self._not_before and self._living() < self.rules.min:
                self._start()

    def _living(self) -> int:
        return sum(worker.state in ("starting", "ready") for worker in self.workers)

    def _is_to_end(self, worker: WorkerProcess, now: float) -> bool:
        if worker.peak_bytes > self.rules.memory_bytes * FULL_SHARE and worker.hosts:
            return True
        ready = sum(other.state == "ready" for other in self.workers)
        is_idle = not worker.active and now - worker.idle_since > self.rules.idle_ms / 1000
        if worker.active:
            worker.idle_since = now
        return is_idle and ready > self.rules.min and not self._queue

    def _hand_back(self, worker: WorkerProcess) -> None:
        """End a worker: runs that still execute there go on elsewhere from their journals, without blame."""
        hosts = list(worker.hosts.values())
        worker.stop()
        for host in hosts:
            host.move(is_blamed=False, why="its worker was drained")

    # -- changes
    def _change(self, worker: WorkerProcess) -> None:
        self._changed.set()
        if worker.state == "ready":
            self._assign()
            return
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        if self._is_closed or not worker.why:
            self._spawn(self._bury(worker, set()))
            return
        self.ended += 1
        self._failures = 1 if worker.has_worked else self._failures + 1
        wait_s = (
            0.0 if self._failures == 1 else min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(self._failures, 10))
        )
        self._not_before = self._loop.time() + wait_s
        self._spawn(self._bury(worker, worker.suspects()))

    async def _bury(self, worker: WorkerProcess, blamed: set[RemoteHost]) -> None:
        hosts = list(worker.hosts.values())
        code = await worker.gone()
        if not worker.why:
            return
        why = f"{worker.why} (exit code {code}); it said last: `{worker.said()}`"
        if not self._is_closed:
            log.warning("worker %d of `%s` ended: %s", worker.pid, self.app.name, why)
        self._problem = why
        for host in hosts:
            if not host.is_closed:
                host.move(is_blamed=host in blamed, why=why)
        self._changed.set()
        self._loop.call_later(max(0.0, self._not_before - self._loop.time()), self._assign)
