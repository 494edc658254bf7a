"""What `perdure run` shows on a terminal (stderr) while a run works: steps, waits, tokens."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from perdure.cli import views
from perdure.core import entries as e

if TYPE_CHECKING:
    from rich.console import Group

    from perdure.engines.embedded.watch import Live

LINES = 8  # entries shown
TOKENS = 1_000  # characters of live text shown
HIDDEN = (e.TimerFired, e.StateRead, e.RunParked)


class Quiet:
    """Shows nothing: no terminal, or a program listens."""

    def begin(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def entry(self, entry: e.Entry) -> None:
        """Nothing."""

    def live(self, item: Live) -> None:
        """Nothing."""


class Screen(Quiet):
    """A few lines that are redrawn, by rich.

    Args:
        agent: the agent's name.
        run: the run's id.
    """

    def __init__(self, agent: str, run: str) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._title = f"{agent}  {run}"
        self._begin_s = time.monotonic()
        self._first_ms = 0
        self._steps = 0
        self._lines: list[str] = []
        self._waits: tuple[e.Wait, ...] = ()
        self._tokens = ""
        self._status = ""
        self._live = RichLive(
            console=Console(stderr=True), get_renderable=self._draw, refresh_per_second=8, transient=True
        )

    def begin(self) -> None:
        """Draw from now on."""
        self._live.start()

    def end(self) -> None:
        """Draw no more: a question is asked, or the run has ended."""
        self._live.stop()

    def entry(self, entry: e.Entry) -> None:
        """Something was recorded."""
        self._first_ms = self._first_ms or entry.at_ms
        self._steps += isinstance(entry, e.StepCompleted)
        self._waits = entry.waits if isinstance(entry, e.RunParked) else ()
        if not isinstance(entry, HIDDEN):
            _, at, kind, _, name, text = views.entry_row(entry, self._first_ms)
            self._lines = [*self._lines[1 - LINES :], f"{at:>10}  {kind:<16} {name}  {text}"]

    def live(self, item: Live) -> None:
        """The agent showed something."""
        data: Any = item.data
        if isinstance(data, str):
            self._tokens = (self._tokens + data)[-TOKENS:]
        else:
            self._status = views.shorten(f"{item.kind}: {data}")

    def _draw(self) -> Group:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        seconds = round((time.monotonic() - self._begin_s) * 1000)
        head = f"{self._title}  {views.span(seconds)}  {self._steps} steps"
        parts: list[Any] = [
            Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in self._lines
        ]
        if self._tokens:
            parts.append(Text(self._tokens))
        if self._status:
            parts.append(Text(self._status, style="cyan"))
        parts += [Text(f"waits for {views.wait(item)}", style="blue") for item in self._waits]
        return Group(*parts, Spinner("dots", text=Text(head, style="bold")))


def screen_for(agent: str, run: str, *, is_json: bool) -> Quiet:
    """A screen where there is a terminal to draw on."""
    return Screen(agent, run) if sys.stderr.isatty() and not is_json else Quiet()
