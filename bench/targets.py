"""The targets, and what was reached: pure functions from raw results to rows of verdicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.storage import extrapolate

FASTER_THAN = {"restate": 3.0, "langgraph": 15.0, "dbos": 25.0}  # throughput, times
OF_BARE_GROUP = 0.5  # an aim: the share of what a bare group-committing writer reaches
STEP_OVER_COMMIT = 2.5
PARKED_BYTES = 1024
WAKE_MS = 5.0
FIRST_STEP_S = 1.0
LINEAR_RECOVERY = 1.5  # a later run may take this much longer than an earlier one: timing is noisy
OVER_BARE_MS = 2.0  # what the journal may add to a model call alone, and to the first token of a stream
OVER_BARE_MANY = 1.3  # how many times the calls per second of the bare proxy, 64 in flight
REPLAYED_PER_S = 1_000.0
FRONTIER_S = 2.0
LINEAR_STORAGE = 1.1  # the same for bytes, which are not

Result = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One target: what was asked, what was measured; ``met`` is ``None`` if it could not be measured."""

    what: str
    target: str
    measured: str
    met: bool | None


def value(row: dict[str, Result], name: str, *path: str) -> float | None:
    """A figure of one subject in one round, if it is there."""
    found: Any = row.get(name)
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def medians(rounds: list[dict[str, Result]], name: str, *path: str) -> float | None:
    """The median over the rounds."""
    found = [figure for row in rounds if (figure := value(row, name, *path)) is not None]
    return median(found) if found else None


def ratio(rounds: list[dict[str, Result]], above: str, below: str, *path: str) -> float | None:
    """The median of the ratios within each round."""
    found = []
    for row in rounds:
        over, under = value(row, above, *path), value(row, below, *path)
        if over is not None and under:
            found.append(over / under)
    return median(found) if found else None


def verdicts(results: Result) -> list[Verdict]:
    """All targets, in the order of the measures."""
    of_gateway = gateway(results["gateway"]) if "gateway" in results else []
    rounds = results["rounds"]
    if not rounds:
        return of_gateway
    rows = [
        _least(
            f"steps/s over {name}", ratio(rounds, "perdure", name, "throughput", "steps_per_s"), least, "x"
        )
        for name, least in FASTER_THAN.items()
    ]
    bare = ratio(rounds, "perdure", "bare_group", "throughput", "steps_per_s")
    rows.append(_least("steps/s over a bare group commit (aim)", bare, OF_BARE_GROUP, "x"))
    step = ratio(rounds, "perdure", "bare_commit", "latency", "step_ms")
    rows.append(_most("a step alone over one bare commit", step, STEP_OVER_COMMIT, "x"))
    found = results.get("parked", {})
    runs = found.get("runs", 0)
    rows.append(
        _most(f"memory of a parked run, {runs:,} parked", found.get("bytes_per_run"), PARKED_BYTES, " B")
    )
    rows.append(_most(f"a message wakes a run, {runs:,} parked", found.get("wake_ms"), WAKE_MS, " ms"))
    return rows + _recovery(results.get("recovery", [])) + _storage(results.get("storage", {})) + of_gateway


def _recovery(rows: list[Result]) -> list[Verdict]:
    runs = rows[-1]["runs"] if rows else 0
    whole = [row for row in rows if row.get("completed") == row["runs"]]
    first = rows[-1].get("first_step_s") if rows else None
    slope = None
    if len(whole) == len(rows) == 3:
        a, b, c = ((row["runs"], row["all_done_s"]) for row in rows)
        slope = ((c[1] - b[1]) / (c[0] - b[0])) / ((b[1] - a[1]) / (b[0] - a[0]))
    lost = (
        None
        if len(rows) != sum("completed" in row for row in rows) or not rows
        else float(sum(row["runs"] - row["completed"] for row in rows))
    )
    return [
        _most(f"first step after kill -9, {runs:,} runs", first, FIRST_STEP_S, " s"),
        _most("time per later run over earlier run (linear = 1)", slope, LINEAR_RECOVERY, "x"),
        _most("runs lost", lost, 0, ""),
    ]


def gateway(found: Result) -> list[Verdict]:
    """What the gateway may cost, over the bare proxy in the same round, and what it must do."""
    rounds = found.get("rounds", [])
    rows: list[Verdict] = []
    for size in ("3kb", "30kb"):
        added = _added(rounds, f"one_{size}", "median_ms")
        rows.append(
            _most(f"a model call alone over a bare proxy, {size.upper()}", added, OVER_BARE_MS, " ms")
        )
    for size in ("3kb", "30kb"):
        times = ratio(rounds, "bare", "gateway", f"many_{size}", "calls_per_s")
        what = f"a bare proxy's calls/s over the gateway's, 64 in flight, {size.upper()}"
        rows.append(_most(what, times, OVER_BARE_MANY, "x"))
    token = _added(rounds, "stream_3kb", "median_ms")
    replayed = medians(rounds, "replay", "alone", "calls_per_s")
    frontier = medians(rounds, "crash", "gateway_s")
    again = [float(row[name]["repeated"]) for row in rounds for name in ("replay", "crash")]
    calls = found.get("calls", 0)
    return [
        *rows,
        _most("first token of a stream over a bare proxy", token, OVER_BARE_MS, " ms"),
        _least("replayed calls/s, one at a time", replayed, REPLAYED_PER_S, "/s"),
        _most(f"frontier after kill -9, {calls:,} calls, without own start", frontier, FRONTIER_S, " s"),
        _most("calls made again at the provider", sum(again) if again else None, 0, ""),
    ]


def _added(rounds: list[dict[str, Result]], *path: str) -> float | None:
    """The median over the rounds of what the gateway takes longer."""
    pairs = [(value(row, "gateway", *path), value(row, "bare", *path)) for row in rounds]
    found = [over - under for over, under in pairs if over is not None and under is not None]
    return median(found) if found else None


def _storage(found: dict[str, Result]) -> list[Verdict]:
    points = found.get("perdure", {}).get("points", [])
    growth = None
    if len(points) == 3:
        a, b, c = ((point["turns"], point["bytes"]) for point in points)
        growth = ((c[1] - b[1]) / (c[0] - b[0])) / ((b[1] - a[1]) / (b[0] - a[0]))
    return [_most("bytes per later turn over earlier turn (linear = 1)", growth, LINEAR_STORAGE, "x")]


def langgraph_at(results: Result) -> tuple[int, float, float] | None:
    """At Perdure's longest session: turns, its bytes, and LangGraph's bytes **extrapolated** to as many turns."""
    ours = results.get("storage", {}).get("perdure", {}).get("points")
    theirs = results.get("storage", {}).get("langgraph", {}).get("points")
    if not ours or not theirs:
        return None
    turns = ours[-1]["turns"]
    return turns, ours[-1]["bytes"], extrapolate(theirs, turns)


def _least(what: str, measured: float | None, target: float, unit: str) -> Verdict:
    met = None if measured is None else measured >= target
    return Verdict(what, f"at least {target:g}{unit}", _text(measured, unit), met)


def _most(what: str, measured: float | None, target: float, unit: str) -> Verdict:
    met = None if measured is None else measured <= target
    return Verdict(what, f"at most {target:,g}{unit}", _text(measured, unit), met)


def _text(measured: float | None, unit: str) -> str:
    if measured is None:
        return "not measured"
    return f"{measured:,.3g}{unit}" if measured < 1000 else f"{measured:,.0f}{unit}"


def as_rows(found: list[Verdict]) -> list[Result]:
    """For the raw JSON."""
    return [asdict(item) for item in found]
