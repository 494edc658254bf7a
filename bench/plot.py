"""The picture: throughput, latency, recovery and storage in one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench.subjects import TABLE
from bench.targets import medians

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

Result = dict[str, Any]
OURS, THEIRS, BARE = "#1b6ca8", "#b0b7bf", "#dfe3e6"


def draw(results: Result, path: Path) -> None:
    """Write the picture of ``results`` to ``path``."""
    rounds = results["rounds"]
    of_gateway = results.get("gateway", {}).get("rounds", [])
    height = (2 if rounds else 0) + (1 if of_gateway else 0)
    if not height:
        return
    figure, axes = pyplot.subplots(height, 2, figsize=(13, 4.25 * height), squeeze=False)
    if of_gateway:
        _gateway(axes[-1], of_gateway)
    if rounds:
        _embedded(axes, results)
    words = "" if results["plan"] == "full" else " (quick plan, not for quoting)"
    figure.suptitle(
        f"The same workload on all, {results['machine']['cpus']} cores; Perdure and bare: synchronous=FULL, rivals as shipped{words}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _embedded(axes: Any, results: Result) -> None:
    rounds = results["rounds"]
    _bars(axes[0][0], rounds, ("throughput", "steps_per_s"), "durable steps/s, 256 runs in flight (log)")
    _bars(axes[0][1], rounds, ("latency", "step_ms"), "a step alone, median ms (log)")
    _recovery(axes[1][0], results.get("recovery", []))
    _storage(axes[1][1], results["storage"])


def _bars(axis: Any, rounds: list[dict[str, Result]], path: tuple[str, str], title: str) -> None:
    rows = [(name, figure) for name in TABLE if (figure := medians(rounds, name, *path)) is not None]
    names = [
        TABLE[name].title + ("" if TABLE[name].durable else "\n(not durable per step)") for name, _ in rows
    ]
    colours = [OURS if name == "perdure" else BARE if name.startswith("bare") else THEIRS for name, _ in rows]
    bars = axis.barh(names, [figure for _, figure in rows], color=colours)
    axis.bar_label(
        bars, [f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}" for _, figure in rows], padding=3
    )
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_title(title)


def _gateway(axes: Any, rounds: list[Result]) -> None:
    """What a journaled model call costs over a proxy that journals nothing."""
    pictures = (
        ("median_ms", "model calls: median ms", (("one_3kb", "alone, 3 KB"), ("one_30kb", "alone, 30 KB"),
         ("stream_3kb", "first token"))),
        ("calls_per_s", "model calls/s, 64 in flight", (("many_3kb", "3 KB"), ("many_30kb", "30 KB"))),
    )  # fmt: skip
    for axis, (key, title, windows) in zip(axes, pictures, strict=True):
        for offset, name, colour in ((-0.2, "bare", BARE), (0.2, "gateway", OURS)):
            figures = [medians(rounds, name, window, key) or 0.0 for window, _ in windows]
            places = [at + offset for at in range(len(windows))]
            label = "bare proxy" if name == "bare" else "gateway"
            bars = axis.barh(places, figures, height=0.38, color=colour, label=label)
            axis.bar_label(bars, [f"{figure:,.3g}" for figure in figures], padding=3)
        axis.set_yticks(range(len(windows)), [title for _, title in windows])
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.legend()


def _recovery(axis: Any, rows: list[Result]) -> None:
    rows = [row for row in rows if "error" not in row]
    runs = [row["runs"] for row in rows]
    axis.plot(runs, [row["all_done_s"] for row in rows], "o-", color=OURS, label="all done")
    axis.plot(runs, [row["first_step_s"] for row in rows], "s--", color="#7aa6c8", label="first step")
    axis.set_title("seconds from process start after kill -9")
    axis.set_xlabel("unfinished runs")
    axis.set_ylim(bottom=0)
    axis.legend()


def _storage(axis: Any, found: dict[str, Result]) -> None:
    for name, colour in (("perdure", OURS), ("langgraph", THEIRS)):
        points = found.get(name, {}).get("points", [])
        if points:
            sizes = [point["bytes_per_turn"] for point in points]
            axis.plot(
                [point["turns"] for point in points], sizes, "o-", color=colour, label=TABLE[name].title
            )
    axis.set_yscale("log")
    axis.set_title("bytes per turn of one session (log)")
    axis.set_xlabel("turns")
    if found:
        axis.legend()
