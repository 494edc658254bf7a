"""The face of the demo: arguments, what a person sees, and the summary that a program reads."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from perdure import PerdureError
from perdure.demo import evidence
from perdure.demo.desk import FolderError, mails_in, steps_expected
from perdure.demo.director import DemoError, Outcome, Plan, direct
from perdure.demo.refund.show import Refund, run_refund
from perdure.demo.refund.show import told as told_refund
from perdure.demo.review import Answer
from perdure.demo.reviewer import SHIPPED_MAILS, PersonReviewer, Reviewer, ScriptedReviewer
from perdure.demo.trip.show import Trip, TripError, run_trip

EXIT_PROVED, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
PACE_MS = 150  # a person can watch it, and the kill finds steps at work
PACE_FAST_MS = 10
PACE_MS_MAX = 10_000
LEDGER_HEAD = 12  # rows of the ledger shown at the end
EXTRACTION = "rules, no model"


def run_face(arguments: Sequence[str] | None) -> int:
    """Run the demo from command-line arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=options.json, quiet=options.json)
    errors = Console(stderr=True)
    folder = (options.folder or SHIPPED_MAILS).absolute()
    try:
        files = mails_in(folder)
        plan = _plan(options, folder, files)
        reviewer = _reviewer(options, folder, console)
        watched = _Show(
            console, plan, steps_expected(len(files)), has_bar=isinstance(reviewer, ScriptedReviewer)
        )
        started = time.monotonic()
        trip, refund = (None, None) if options.folder else _first_parts(console, plan)
        watched.opening(folder, len(files), reviewer)
        with watched.progress:
            outcome = asyncio.run(direct(plan, reviewer, watched))
        elapsed_ms = round((time.monotonic() - started) * 1000)
    except (FolderError, OSError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return EXIT_USAGE
    except (DemoError, TripError, PerdureError, TimeoutError) as error:
        errors.print(f"[red]the demo failed:[/] {escape(str(error) or 'it took too long')}", soft_wrap=True)
        return EXIT_FAILED
    except KeyboardInterrupt:
        errors.print("interrupted; the worker was stopped")
        return EXIT_INTERRUPTED
    if options.json:
        sys.stdout.write(
            json.dumps(
                {
                    **summary_of(plan, outcome, reviewer, elapsed_ms),
                    "trip": None if trip is None else told(trip),
                    "refund": None if refund is None else told_refund(refund),
                },
                indent=2,
                ensure_ascii=False,
            )
            + "\n"
        )
    else:
        _show_outcome(console, plan, outcome, elapsed_ms)
    parts = [part for part in (trip, refund) if part is not None]
    proved = outcome.is_proved and all(part.is_proved for part in parts)
    return EXIT_PROVED if proved else EXIT_FAILED


def _first_parts(console: Console, plan: Plan) -> tuple[Trip, Refund]:
    """The unmodified program and the governed refund, which need no folder of mails."""

    def say(text: str) -> None:
        _say(console, text)

    console.rule("an unmodified agent program")
    trip = asyncio.run(run_trip(plan.data.parent / "trip", say))
    _show_trip(console, trip)
    console.rule("a governed refund")
    refund = asyncio.run(run_refund(plan.data.parent / "refund", say))
    verdict = "proved: released once, by a signature, and the log shows tampering"
    console.print(
        f"[bold]{verdict if refund.is_proved else 'not proved'}[/] ({refund.took_ms} ms)", highlight=False
    )
    return trip, refund


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)


def _show_trip(console: Console, trip: Trip) -> None:
    for line in trip.picture:
        console.print(escape(line), soft_wrap=True, highlight=False)
    lost = f", and {trip.lost_model_calls} that was under way at the kill" if trip.lost_model_calls else ""
    booked = ", ".join(f"{what} {count}x" for what, count in sorted(trip.bookings.items()))
    _say(console, f"answer: {trip.answer}")
    _say(
        console,
        f"model requests paid for: {trip.model_calls}{lost}; booked: {booked}; {trip.served} calls answered from the journal",
    )
    wall = f"its attempts ran behind: {', '.join(trip.walls)}; the gateway was all that it could reach"
    if trip.why_no_wall:
        wall = f"it ran as a plain process, for there can be no wall here: {trip.why_no_wall}"
    _say(console, wall)
    verdict = (
        "proved: nothing was done twice, and nothing recorded was paid for twice"
        if trip.is_proved
        else "not proved"
    )
    console.print(f"[bold]{verdict}[/] ({trip.took_ms} ms)", highlight=False)


def told(trip: Trip) -> dict[str, Any]:
    """The trip, for programs."""
    return {
        "proved": trip.is_proved,
        **{name: getattr(trip, name) for name in trip.__struct_fields__ if name != "picture"},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perdure demo",
        description="An invoice desk whose worker is killed half-way with SIGKILL and goes on where it was. "
        f"Offline. Extraction: {EXTRACTION}.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a folder with .eml files (default: those shipped)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--yes", action="store_true", help="let the scripted reviewer answer, also at a terminal"
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--fast", action="store_true", help=f"pause {PACE_FAST_MS} ms in each step, not {PACE_MS}"
    )
    pace.add_argument("--pace", type=_pace, metavar="MS", help="pause so long in each step, to watch it")
    parser.add_argument(
        "--data", type=Path, help="where to keep journal, ledger and logs (default: a new folder)"
    )
    return parser


def _pace(text: str) -> int:
    if not text.isdecimal() or int(text) > PACE_MS_MAX:
        raise argparse.ArgumentTypeError(f"expected milliseconds from 0 to {PACE_MS_MAX}, found `{text}`")
    return int(text)


def _plan(options: argparse.Namespace, folder: Path, files: list[str]) -> Plan:
    if options.data is None:
        base = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    else:
        base = options.data.absolute()
        base.mkdir(parents=True, exist_ok=True)
        if any(base.iterdir()):
            raise FolderError(
                f"`{base}` is not empty; give a new folder, so that the proof is about this run only"
            )
    pace_ms = options.pace if options.pace is not None else PACE_FAST_MS if options.fast else PACE_MS
    return Plan(
        folder=folder,
        data=base / "data",
        ledger=base / "ledger.csv",
        pace_ms=pace_ms,
        kill_at=steps_expected(len(files)) // 2,
    )


def _reviewer(options: argparse.Namespace, folder: Path, console: Console) -> Reviewer:
    scripted = ScriptedReviewer(folder)
    if options.yes or options.json or not (sys.stdin.isatty() and console.is_terminal):
        return scripted
    return PersonReviewer(
        scripted,
        ask=lambda prompt: console.input(f"  {escape(prompt)}: "),
        say=lambda line: console.print(escape(line), soft_wrap=True, highlight=False),
    )


class _Show:
    """Tells a person what happens, as the director's watcher."""

    def __init__(self, console: Console, plan: Plan, steps: int, *, has_bar: bool) -> None:
        self._console = console
        self._plan = plan
        self.progress = Progress(
            TextColumn("  steps in the journal"), BarColumn(), MofNCompleteColumn(),
            console=console, transient=True, disable=not (has_bar and console.is_terminal),
        )  # fmt: skip
        self._bar = self.progress.add_task("", total=steps)
        self._steps = steps

    def opening(self, folder: Path, mails: int, reviewer: Reviewer) -> None:
        """Say what is about to happen."""
        which = "shipped with the demo" if folder == SHIPPED_MAILS else "yours"
        self._console.rule("[bold]invoice desk[/]")
        self._say(f"{mails} e-mails in {folder} ({which})")
        self._say(f"extraction: {EXTRACTION}; nothing leaves this machine")
        self._say(
            f"each step pauses about {self._plan.pace_ms} ms so that you can watch (`--pace 0` to `--pace {PACE_MS_MAX}`)"
        )
        self._say(f"doubtful mails are answered by: {reviewer.name}")

    def worker_started(self, pid: int, *, is_second: bool) -> None:
        """A worker process runs."""
        self._say(f"[green]started[/] {'a new worker' if is_second else 'the worker'}, process {pid}")

    def steps_recorded(self, count: int) -> None:
        """So many steps are in the journal."""
        self.progress.update(self._bar, completed=count)

    def worker_killed(self, pid: int, recorded: int) -> None:
        """The first worker is gone."""
        self._say(f"[red bold]kill -9 {pid}[/] with {recorded} of {self._steps} steps in the journal")

    def answered(self, question: dict[str, Any], answer: Answer) -> None:
        """A question was answered."""
        doubts = question.get("doubts") or [""]
        note = f" ({answer.note})" if answer.note else ""
        self._say(f"[yellow]?[/] {escape(str(question.get('file')))}: {escape(str(doubts[0]))}")
        self._say(f"  [cyan]{answer.decision}[/]{escape(note)}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)


def _show_outcome(console: Console, plan: Plan, outcome: Outcome, elapsed_ms: int) -> None:
    console.print(_ledger_table(plan))
    totals = ", ".join(f"{amount} {currency}" for currency, amount in outcome.result["totals"].items())
    counts = ", ".join(f"{outcome.result[name]} {name}" for name in ("booked", "rejected", "held"))
    console.print(
        f"{counts}, {outcome.result['other']} no invoices; totals: {totals or 'none'}", soft_wrap=True
    )
    console.print(_proof_table(outcome))
    console.print(
        "unrecorded: it ran, the kill came before its record, so it ran once more (at least once until recorded)",
        soft_wrap=True,
    )
    proof = outcome.proof
    kept = "unchanged" if proof.is_prefix_kept else "[red]CHANGED[/]"
    console.print(
        f"journal as of the kill ({proof.recorded_at_kill} recorded steps): {kept} in the journal at the end"
    )
    console.print(
        f"wall time {elapsed_ms} ms: first worker {outcome.first_worker_ms} ms, second {outcome.second_worker_ms} ms; "
        f"restart to takeover {outcome.restart_to_takeover_ms} ms, to the first recorded step "
        f"{outcome.restart_to_first_step_ms} ms (process start and pauses included)",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"kept in {plan.data.parent}: ledger.csv, ledger.md, {evidence.LOG_NAME}, data/", soft_wrap=True
    )
    if outcome.is_proved:
        console.print("[green bold]proved:[/] no step ran again after it was recorded, and none was lost")
    else:
        console.print("[red bold]NOT proved:[/] see the table")


def _ledger_table(plan: Plan) -> Table:
    shown = _ledger_rows(plan)
    more = f", {LEDGER_HEAD} of {len(shown)} rows" if len(shown) > LEDGER_HEAD else ""
    table = Table(title=f"ledger{more}", title_justify="left")
    for name in ("date", "supplier", "number", "currency", "total", "decided by"):
        table.add_column(
            name, justify="right" if name == "total" else "left", no_wrap=name in ("date", "total")
        )
    for row in shown[:LEDGER_HEAD]:
        table.add_row(*(escape(row[index]) for index in (0, 1, 2, 4, 5, 8)))
    return table


def _ledger_rows(plan: Plan) -> list[list[str]]:
    with plan.ledger.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _proof_table(outcome: Outcome) -> Table:
    table = Table(title="journal against the steps' own log", title_justify="left")
    table.add_column("step")
    for name in (
        "recorded",
        "executed",
        "ran again after record",
        "ran again, unrecorded",
        "lost",
    ):
        table.add_column(name, justify="right")
    for item in outcome.proof.kinds:
        counts = (item.recorded, item.executed, item.repeated_recorded, item.repeated_unrecorded, item.lost)
        table.add_row(item.kind, *(str(count) for count in counts))
    return table


def summary_of(plan: Plan, outcome: Outcome, reviewer: Reviewer, elapsed_ms: int) -> dict[str, Any]:
    """The whole outcome as plain data, for `--json`."""
    proof = outcome.proof
    return {
        "proved": outcome.is_proved,
        "run": outcome.run,
        "extraction": EXTRACTION,
        "reviewer": reviewer.name,
        "folder": str(plan.folder),
        "pace_ms": plan.pace_ms,
        "killed": {
            "pid": outcome.first_pid,
            "signal": outcome.kill_signal,
            "steps_recorded": proof.recorded_at_kill,
            "steps_total": outcome.steps_total,
        },
        "restarted": {
            "pid": outcome.second_pid,
            "to_takeover_ms": outcome.restart_to_takeover_ms,
            "to_first_step_ms": outcome.restart_to_first_step_ms,
        },
        "steps": {
            item.kind: {
                "recorded": item.recorded,
                "executed": item.executed,
                "repeated_recorded": item.repeated_recorded,
                "repeated_unrecorded": item.repeated_unrecorded,
                "lost": item.lost,
            }
            for item in proof.kinds
        },
        "journal": {
            "entries": outcome.entries,
            "kept_as_of_kill": proof.is_prefix_kept,
            "ended": proof.is_ended,
        },
        "questions": outcome.questions,
        "result": outcome.result,
        "ledger_head": _ledger_rows(plan)[:LEDGER_HEAD],
        "files": {
            "ledger": str(plan.ledger),
            "markdown": str(plan.ledger.with_suffix(".md")),
            "step_log": str(plan.ledger.with_name(evidence.LOG_NAME)),
            "data": str(plan.data),
        },
        "elapsed_ms": {
            "total": elapsed_ms,
            "first_worker": outcome.first_worker_ms,
            "second_worker": outcome.second_worker_ms,
        },
    }
