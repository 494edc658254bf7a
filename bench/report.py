"""What a person reads: tables of medians, ratios and targets, met or MISSED."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.subjects import TABLE
from bench.targets import Verdict, langgraph_at, medians, ratio

Result = dict[str, Any]
GATEWAY_ROWS = (
    ("one at a time, 3 KB", "one_3kb", "median_ms", "ms"),
    ("one at a time, 30 KB", "one_30kb", "median_ms", "ms"),
    ("64 in flight, 3 KB", "many_3kb", "calls_per_s", "calls/s"),
    ("64 in flight, 3 KB", "many_3kb", "median_ms", "ms"),
    ("64 in flight, 3 KB: processor time", "many_3kb", "cpu_ms", "ms"),
    ("64 in flight, 30 KB", "many_30kb", "calls_per_s", "calls/s"),
    ("64 in flight, 30 KB", "many_30kb", "median_ms", "ms"),
    ("64 in flight, 30 KB: processor time", "many_30kb", "cpu_ms", "ms"),
    ("first token of a stream, 3 KB", "stream_3kb", "median_ms", "ms"),
)


def show(results: Result, found: list[Verdict], console: Console) -> None:
    """All tables."""
    if results["plan"] != "full":
        console.print("[bold yellow]quick plan: one round and small sizes; not figures to quote[/]")
    if results["machine"]["filesystem"] in ("tmpfs", "ramfs"):
        console.print("[bold red]the data is on tmpfs, where a commit is free: these figures mean nothing[/]")
    if results["rounds"]:
        _speed(results["rounds"], console)
        _once(results, console)
    if "gateway" in results:
        _gateway(results["gateway"], console)
    _targets(found, console)
    _not_run(results, console)


def _speed(rounds: list[dict[str, Result]], console: Console) -> None:
    table = Table(title=f"The same steps on all, median of {len(rounds)} round(s)")
    for column in (
        "subject",
        "version",
        "steps/s, 256 in flight",
        "Perdure / it",
        "step alone, ms",
        "run/10, ms",
    ):
        table.add_column(column, justify="left" if column in ("subject", "version") else "right")
    for name, about in TABLE.items():
        if name not in rounds[0]:
            continue
        if error := error_of(rounds, name):
            table.add_row(about.title, "", f"not run: {error[:60]}", "", "", "")
            continue
        title = about.title if about.durable else f"{about.title} (not durable per step)"
        table.add_row(
            title,
            str(rounds[0][name].get("version", "")),
            _number(medians(rounds, name, "throughput", "steps_per_s"), 0),
            _number(ratio(rounds, "perdure", name, "throughput", "steps_per_s"), 2),
            _number(medians(rounds, name, "latency", "step_ms"), 3),
            _number(medians(rounds, name, "latency", "run_tenth_ms"), 3),
        )
    console.print(table)


def _once(results: Result, console: Console) -> None:
    table = Table(title="Measured once")
    for column in ("measure", "size", "figures"):
        table.add_column(column)
    if found := results.get("parked"):
        text = found.get("error") or (
            f"{found['bytes_per_run']:,.0f} B each; parked in {found['park_s']:.1f} s; "
            f"wake {found['wake_ms']:.2f} ms (p99 {found['wake_p99_ms']:.2f}) over {found['wakes']}"
        )
        table.add_row("parked runs", f"{results['parked'].get('runs', 0):,}", text)
    for found in results.get("recovery", []):
        text = found.get("error") or (
            f"first step {found['first_step_s']:.2f} s, all done {found['all_done_s']:.2f} s, "
            f"{found['completed']:,} completed, {found['steps_again']} unrecorded steps again"
        )
        table.add_row("kill -9, start again", f"{found['runs']:,} runs", text)
    for name, found in results["storage"].items():
        if "error" in found:
            table.add_row(f"session, {TABLE[name].title}", "", found["error"])
        for point in found.get("points", []):
            size = f"{point['bytes_per_turn']:,.0f} B/turn ({point['bytes'] / 1e6:,.1f} MB)"
            table.add_row(f"session, {TABLE[name].title}", f"{point['turns']:,} turns", size)
    if beside := langgraph_at(results):
        turns, ours, theirs = beside
        text = f"{theirs / turns:,.0f} B/turn ({theirs / 1e6:,.0f} MB), {theirs / ours:,.0f} times Perdure's"
        table.add_row("session, LangGraph, [italic]extrapolated[/]", f"{turns:,} turns", text)
    console.print(table)


def _gateway(found: Result, console: Console) -> None:
    if error := found.get("error"):
        console.print(f"[bold]gateway[/] not run: {error}", highlight=False)
        return
    rounds = found["rounds"]
    table = Table(
        title=f"Model calls through the gateway and through a bare proxy, median of {len(rounds)} round(s)"
    )
    for column in ("calls", "bare", "gateway", "gateway - bare", "gateway / bare"):
        table.add_column(column, justify="left" if column == "calls" else "right")
    for title, window, key, unit in GATEWAY_ROWS:
        over, under = (medians(rounds, name, window, key) for name in ("gateway", "bare"))
        times = ratio(rounds, "gateway", "bare", window, key)
        added = None if over is None or under is None else over - under
        places = 2 if unit == "ms" else 0
        table.add_row(
            f"{title}, {unit}",
            *(_number(figure, places) for figure in (under, over, added)),
            _number(times, 2),
        )
    console.print(table)
    alone, beside = (medians(rounds, "replay", name, "calls_per_s") for name in ("alone", "side_by_side"))
    frontier, opened, own = (
        medians(rounds, "crash", name) for name in ("frontier_s", "opened_s", "own_start_s")
    )
    console.print(
        f"replayed: {_number(alone, 0)} calls/s one at a time, {_number(beside, 0)} with 16 in flight\n"
        f"kill -9 after {found['calls']:,} calls: first live call {_number(frontier, 2)} s after the start of the new "
        f"process, which had opened after {_number(opened, 2)} s; own start of the program {_number(own, 2)} s",
        highlight=False,
    )


def _targets(found: list[Verdict], console: Console) -> None:
    table = Table(title="Targets")
    for column in ("what", "target", "measured", "verdict"):
        table.add_column(column)
    words = {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: "[yellow]not measured[/]"}
    for item in found:
        table.add_row(item.what, item.target, item.measured, words[item.met])
    console.print(table)


def _not_run(results: Result, console: Console) -> None:
    for name in results["rounds"][0] if results["rounds"] else ():
        if error := error_of(results["rounds"], name):
            console.print(f"[bold]{TABLE[name].title}[/] not run: {error}", highlight=False)


def error_of(rounds: list[dict[str, Result]], name: str) -> str | None:
    """Why a subject has no figures."""
    return next((str(row[name]["error"]) for row in rounds if "error" in row[name]), None)


def _number(figure: float | None, places: int) -> str:
    return "–" if figure is None else f"{figure:,.{places}f}"
