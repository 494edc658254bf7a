"""The watchdog: names the agent and the line when code blocks the loop that all runs share."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from perdure.agents.step import Step
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.worker import Worker

log = logging.getLogger("perdure.watchdog")
CODE = "loop-blocked"  # in docs/errors.md; a warning, not an exception: nobody is there to catch it
_OURS = str(Path(__file__).parent.parent)


class Watchdog:
    """A thread that asks the loop for a sign of life, and looks where it is stuck when none comes.

    Args:
        loop: the loop to watch; the watchdog is made on its thread.
        worker: knows which run is being driven.
        block_ms: how long the loop may be silent.
        report: what to do with a finding, besides logging it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Worker,
        block_ms: int,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._loop = loop
        self._worker = worker
        self._block_s = block_ms / 1000
        self._report = report
        self._thread_id = threading.get_ident()
        self._alive = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="perdure-watchdog", daemon=True)

    def begin(self) -> None:
        """Start to watch."""
        self._thread.start()

    def end(self) -> None:
        """Stop."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._block_s):
            self._alive.clear()
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:
                return  # the loop is closed
            if self._alive.wait(self._block_s) or self._stopped.is_set():
                continue
            since = time.monotonic()
            where = self._where()
            log.warning("%s: %s has blocked the loop for over %d ms", CODE, where, self._block_s * 1000)
            if self._report is not None:
                self._report(where)
            while not self._alive.wait(0.05) and not self._stopped.is_set():
                pass
            log.warning(
                "%s: %s gave the loop back after %.1f s",
                CODE,
                where,
                time.monotonic() - since + self._block_s,
            )

    def _where(self) -> str:
        """The run and agent that are executing, and the innermost line that is not ours or the library's."""
        driving = self._worker.driving
        frame = sys._current_frames().get(self._thread_id)
        line, owner = _scan(frame)
        who = owner or "code outside any run"
        if driving is not None:
            who = f"agent `{driving[1]}` (run {driving[0]})"
        return f"{who} at {line}"


def _scan(frame: FrameType | None) -> tuple[str, str | None]:
    line: str | None = None
    owner: str | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        is_foreign = "/lib/python" in name or name.startswith(("<", _OURS))
        if line is None and not is_foreign:
            line = f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
        host, step = frame.f_locals.get("host"), frame.f_locals.get("step")
        if owner is None and name.startswith(_OURS) and isinstance(host, Host):
            what = f"step `{step.name}` of " if isinstance(step, Step) else ""
            owner = f"{what}agent `{host.agent.name}` (run {host.run_id})"
        frame = frame.f_back
    return line or "an unknown line", owner
