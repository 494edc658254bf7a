"""Watchers: whoever follows a run in this process, by cursor (entries) or live (tokens)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LIVE_ITEMS_MAX = 10_000  # items that a slow watcher may be behind; then the oldest are dropped


@dataclass(frozen=True, slots=True)
class Live:
    """Something an agent showed: not recorded."""

    run: str
    kind: str
    data: Any


class Watchers:
    """Wakes those who wait for a change of a run."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}
        self._ends: dict[str, set[asyncio.Event]] = {}
        self._queues: dict[str, set[asyncio.Queue[Live | None]]] = {}

    def tell(self, run: str) -> None:
        """A run has new entries, or another status."""
        for event in self._events.get(run, ()):
            event.set()

    def show(self, run: str, kind: str, data: Any) -> None:
        """Hand something live to the watchers of a run."""
        for queue in self._queues.get(run, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(Live(run, kind, data))

    @contextmanager
    def changes(self, run: str, *, only_end: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set at each change of a run (or at its end and when it is blocked); clear it yourself."""
        event = asyncio.Event()
        waiting = self._ends if only_end else self._events
        waiting.setdefault(run, set()).add(event)
        try:
            yield event
        finally:
            waiting[run].discard(event)
            if not waiting[run]:
                del waiting[run]

    @contextmanager
    def live(self, run: str) -> Iterator[asyncio.Queue[Live | None]]:
        """A queue of what a run shows; ``None`` ends it."""
        queue: asyncio.Queue[Live | None] = asyncio.Queue(LIVE_ITEMS_MAX)
        self._queues.setdefault(run, set()).add(queue)
        try:
            yield queue
        finally:
            self._queues[run].discard(queue)
            if not self._queues[run]:
                del self._queues[run]

    def end(self, run: str) -> None:
        """A run has ended or is blocked: live watchers stop."""
        self.tell(run)
        for event in self._ends.get(run, ()):
            event.set()
        for queue in self._queues.get(run, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def close(self) -> None:
        """Wake everyone: the engine has stopped."""
        for run in [*self._events, *self._ends, *self._queues]:
            self.end(run)
