"""The waterfall of a run's calls: one line each, placed in time, with tokens, cost and how a restart was answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.cli import views
from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState, Served, Spend

LINES_MAX = 60  # calls shown; more are left out in the middle
BAR = 32  # characters of the time axis
NAME = 24  # characters of a name
MICROS = 1_000_000
FULL, LIVE = "█", "▒"


@dataclass(frozen=True, slots=True)
class Line:
    """One call: when it was made and ended, and what is known of it."""

    call: int
    kind: str
    name: str
    begun_ms: int
    ended_ms: int | None
    state: str
    tokens: int | None = None
    usd_micros: int | None = None
    is_priced: bool = False
    levels: tuple[str, ...] = ()


def lines_of(
    journal: Sequence[e.Entry], rows: Sequence[ActionRecord], served: Sequence[Served]
) -> list[Line]:
    """The calls of a run, in their order."""
    actions = {row.call: row for row in rows}
    levels: dict[int, list[str]] = {}
    for item in served:
        levels.setdefault(item.call, []).append(item.level)
    found: dict[int, Line] = {}
    for entry in journal:
        if isinstance(entry, e.CallEntry):
            row = actions.get(entry.call)
            known = found.get(entry.call)
            # A call without an entry at its beginning (a step that succeeded at once) is a point: it may have waited long.
            begun = known.begun_ms if known else entry.at_ms
            found[entry.call] = _line(entry, row, begun, tuple(levels.get(entry.call, ())))
    return [found[call] for call in sorted(found)]


def _line(entry: e.CallEntry, row: ActionRecord | None, begun_ms: int, levels: tuple[str, ...]) -> Line:
    is_open = isinstance(entry, e.NOTES)
    ended_ms = None if is_open else entry.at_ms
    if row is None:
        state = "open" if is_open else ("failed" if isinstance(entry, e.StepFailed) else "")
        return Line(entry.call, entry.kind, entry.name, begun_ms, ended_ms, state)
    told = row.what == "model" and (row.state is ActionState.SUCCEEDED or bool(row.spent.unpriced))
    return Line(
        call=entry.call,
        kind=row.what,
        name=row.name,
        begun_ms=begun_ms,
        ended_ms=ended_ms,
        state=row.state.value,
        tokens=row.spent.tokens if told else None,
        usd_micros=row.spent.usd_micros if told else None,
        is_priced=not row.spent.unpriced,
        levels=levels,
    )


def draw(lines: Sequence[Line], now_ms: int) -> list[str]:
    """The picture, as lines of text."""
    if not lines:
        return []
    start = min(line.begun_ms for line in lines)
    end = max([line.ended_ms or now_ms for line in lines] + [start + 1])
    kept: list[Line | int] = list(lines)
    if len(lines) > LINES_MAX:
        half = LINES_MAX // 2
        kept = [*lines[:half], len(lines) - 2 * half, *lines[-half:]]
    drawn = [
        f"{'call':>5} {'kind':<8}{'name':<{NAME}} {'':<{BAR}} {'took':>8} {'tokens':>7} {'USD':>10}  state"
    ]
    for line in kept:
        if isinstance(line, int):
            drawn.append(
                f"      ... {line} more calls; `perdure actions list` shows those of tools and models"
            )
        else:
            drawn.append(_drawn(line, start, end, now_ms))
    return drawn


def _drawn(line: Line, start: int, end: int, now_ms: int) -> str:
    span = end - start
    left = (line.begun_ms - start) * BAR // span
    until = line.ended_ms or now_ms
    width = max(1, -(-(until - line.begun_ms) * BAR // span))
    left = min(left, BAR - 1)
    width = min(width, BAR - left)
    bar = " " * left + (FULL if line.ended_ms else LIVE) * width
    took = views.span(until - line.begun_ms) if until > line.begun_ms else ""
    tokens = "" if line.tokens is None else str(line.tokens)
    money = "" if line.usd_micros is None else (f"{line.usd_micros / MICROS:.6f}" if line.is_priced else "?")
    state = line.state if line.state != "succeeded" else ""
    told = Counter(line.levels)
    served = " ".join(f"{level}x{count}" if count > 1 else level for level, count in told.items())
    name = views.shorten(line.name, NAME)
    text = (
        f"{line.call:>5} {line.kind:<8}{name:<{NAME}} {bar:<{BAR}} {took:>8} {tokens:>7} {money:>10}  {state}"
    )
    return f"{text}{' ' if state and served else ''}{f'<- {served}' if served else ''}".rstrip()


def totals(spent: Spend) -> str:
    """What was used altogether."""
    money = f"{spent.usd_micros / MICROS:.6f} USD"
    unknown = f" and {spent.unpriced} calls of unknown cost" if spent.unpriced else ""
    return f"{spent.calls} actions, {spent.tokens} tokens, {money}{unknown}"


def attempts(served: Sequence[Served], rows: Sequence[ActionRecord]) -> list[str]:
    """For each attempt of a hosted program: how many calls were answered from the journal at which level, how many were live."""
    live = Counter(row.attempt for row in rows if row.attempt)
    found: list[str] = []
    for number in sorted({*live, *(item.attempt for item in served)}):
        levels = Counter(item.level for item in served if item.attempt == number)
        told = [f"{level} {count}" for level, count in levels.items()] + (
            [f"live {live[number]}"] if live[number] else []
        )
        found.append(f"attempt {number}: {', '.join(told) or 'no calls'}")
    return found
