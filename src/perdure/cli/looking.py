"""``runs list|show|journal|tail|diff``, ``questions`` and ``schedules list``: what only looks."""

from __future__ import annotations

import time
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from perdure.cli import views, waterfall
from perdure.cli.opening import beside
from perdure.cli.output import Out, dumps
from perdure.core import entries as e
from perdure.core.records import RunRecord, Status
from perdure.core.values import decode
from perdure.kernel.quarantine import HELD, QUARANTINE
from perdure.runtime import RunHandle, Runtime

_IGNORED = ("at_ms", "seq", "worker", "fence")  # differ between any two runs


def runs(
    data: Path, out: Out, *, agent: str | None, status: str | None, session: str | None, limit: int
) -> None:
    """List runs."""
    wanted = cast(Literal["unfinished"] | None, status)

    async def work(runtime: Runtime) -> list[RunRecord]:
        return runtime.runs(agent=agent, status=wanted, session=session, limit=limit)

    found = beside(data, work)
    if out.json:
        for record in found:
            out.emit(views.record_json(record))
        return
    rows = [
        [
            record.id,
            record.agent,
            record.status.value,
            record.session or "",
            views.when(record.created_ms),
            views.span((record.ended_ms or _now_ms()) - record.created_ms),
            str(record.seq),
        ]
        for record in found
    ]
    out.table(("run", "agent", "status", "session", "created", "took", "entries"), rows, empty="no runs")


def show(data: Path, out: Out, run: str) -> None:
    """Everything about one run."""

    async def work(runtime: Runtime) -> dict[str, Any]:
        return {**describe(runtime, runtime.run(run)), **drawn(runtime, runtime.run(run))}

    found = beside(data, work)
    if out.json:
        out.emit(found)
        return
    out.facts(_facts(found))
    if found["waterfall"]:
        out.text()
        for line in (*found["waterfall"], *found["attempts"]):
            out.text(line)
    if found["waits"]:
        out.text("\nwaits for")
        for item in found["waits"]:
            what = f"{item['kind']} {item['name']}".strip()
            out.text(f"  {what} (call {item['call']}), {views.due(item['due_ms'])}")
    if found["questions"]:
        out.text("\nasks")
        for item in found["questions"]:
            out.text(f"  {views.shorten(views.question_text(item['question']), 200)}")
            out.text(f"    perdure answer {run} {item['call']} ANSWER")
    if found["children"]:
        out.text("\nchildren")
        for child in found["children"]:
            out.text(f"  {child['id']}  {child['agent']}  {child['status']}")


def drawn(runtime: Runtime, handle: RunHandle) -> dict[str, Any]:
    """The waterfall of a run, what it spent, and how the attempts of a hosted program were answered."""
    rows, served = runtime.actions.all_of(handle.id), runtime.actions.served(handle.id)
    lines = waterfall.lines_of(handle.journal(), rows, served)
    spent = runtime.actions.accounts(handle.id)[0].spent
    return {
        "spent": msgspec.to_builtins(spent),
        "waterfall": [*waterfall.draw(lines, _now_ms()), waterfall.totals(spent)] if rows else [],
        "attempts": waterfall.attempts(served, rows),
    }


def describe(runtime: Runtime, handle: RunHandle) -> dict[str, Any]:
    """The row of a run and what its journal says about it now."""
    record, journal = handle.record(), handle.journal()
    last, first = journal[-1], journal[0]
    parked = next((item for item in reversed(journal) if isinstance(item, e.RunParked)), None)
    waits = parked.waits if parked is not None and record.status is Status.WAITING else ()
    begun = first.version if isinstance(first, e.RunStarted) else ""
    found: dict[str, Any] = {
        **views.record_json(record),
        "version": next(
            (item.version for item in reversed(journal) if isinstance(item, e.RunMigrated)), begun
        ),
        "input": views.entry_json(first).get("input"),
        "goal": getattr(first, "goal", ""),
        "steps": sum(isinstance(item, e.StepCompleted) for item in journal),
        "retries": sum(isinstance(item, e.StepRetried) for item in journal),
        "recovered": sum(isinstance(item, e.RunRecovered) for item in journal),
        "took_ms": (record.ended_ms or _now_ms()) - record.created_ms,
        "waits": [
            {"call": item.call, "kind": item.kind, "name": item.name, "due_ms": item.due_ms} for item in waits
        ],
        "questions": [views.question_json(item) for item in handle.questions()],
        "children": [views.record_json(child) for child in runtime.runs(parent=handle.id)],
        "held": held(runtime, record),
        "error": None,
    }
    match last:
        case e.RunCompleted():
            found["result"] = decode(runtime.bytes_of(last.result))
        case e.RunFailed() | e.RunBlocked():
            found["error"] = views.entry_json(last)["error"]
            if isinstance(last, e.RunBlocked):
                found["error"] |= {"expected": last.expected, "found": last.found}
        case e.RunCancelled():
            found["error"] = {"code": record.cancel_code or "run-cancelled", "message": last.reason}
    return found


def held(runtime: Runtime, record: RunRecord) -> dict[str, str] | None:
    """Why a run stays in the queue, if its agent is quarantined."""
    if record.status is not Status.QUEUED:
        return None
    found = [item for item in runtime.containment.quarantined() if item.scope == QUARANTINE + record.agent]
    return {"code": HELD, "message": f"quarantined by `{found[0].by}`: {found[0].reason}"} if found else None


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [
        ("run", found["id"]),
        ("agent", f"{found['agent']} (version {found['version']})"),
        ("status", found["status"]),
        ("input", views.shorten(dumps(found["input"]), 200)),
        ("goal", found["goal"]),
        ("session", found["session"] or ""),
        ("key", found["idempotency_key"] or ""),
        ("parent", found["parent"] or ""),
        ("created", views.when(found["created_ms"])),
        ("ended", views.when(found["ended_ms"]) if found["ended_ms"] else ""),
        ("took", views.span(found["took_ms"])),
        ("deadline", views.due(found["deadline_ms"]) if found["deadline_ms"] else ""),
        ("steps", f"{found['steps']} ({found['retries']} retries), {found['seq']} entries"),
        ("recovered", f"{found['recovered']} times" if found["recovered"] else ""),
        ("worker", found["worker"] or ""),
    ]
    if "result" in found:
        pairs.append(("result", views.shorten(dumps(found["result"]), 500)))
    if found["held"]:
        pairs.append(("held", f"{found['held']['code']}: {found['held']['message']}"))
    if found["error"]:
        pairs.append(("error", f"{found['error']['code']}: {found['error']['message']}"))
        pairs += [(name, str(found["error"].get(name) or "")) for name in ("expected", "found")]
    return [pair for pair in pairs if pair[1]]


def journal(data: Path, out: Out, run: str, *, after: int, limit: int | None) -> None:
    """The entries of a run."""

    async def work(runtime: Runtime) -> tuple[int, list[e.AnyEntry]]:
        handle = runtime.run(run)
        return handle.record().created_ms, handle.journal(after, limit)

    begin_ms, found = beside(data, work)
    if out.json:
        for entry in found:
            out.emit({"run": run, "entry": views.entry_json(entry)})
        return
    out.table(views.ENTRY_COLUMNS, [views.entry_row(entry, begin_ms) for entry in found], empty="no entries")


def tail(data: Path, out: Out, run: str, *, after: int) -> None:
    """Follow a run until it ends or is blocked."""

    async def work(runtime: Runtime) -> None:
        handle = runtime.run(run)
        begin_ms = handle.record().created_ms
        async for entry in handle.entries(after):
            if out.json:
                out.emit({"run": run, "entry": views.entry_json(entry)})
            else:
                seq, at, kind, call, name, text = views.entry_row(entry, begin_ms)
                out.text(f"{seq:>5}  {at:>10}  {kind:<16}  {call:>4}  {name:<12}  {text}".rstrip())

    beside(data, work)


def diff(data: Path, out: Out, left: str, right: str) -> None:
    """Two journals side by side, from their first difference."""

    async def work(runtime: Runtime) -> tuple[list[e.AnyEntry], list[e.AnyEntry]]:
        return runtime.run(left).journal(), runtime.run(right).journal()

    ours, theirs = beside(data, work)
    pairs = list(zip_longest(ours, theirs))
    first = next((index for index, pair in enumerate(pairs) if _essence(pair[0]) != _essence(pair[1])), None)
    if out.json:
        rest = [] if first is None else pairs[first:]
        out.emit(
            {
                "runs": [left, right],
                "same": len(pairs) if first is None else first,
                "pairs": [[item and views.entry_json(item) for item in pair] for pair in rest],
            }
        )
        return
    if first is None:
        out.text(f"the journals say the same ({len(pairs)} entries)")
        return
    out.note(f"the first {first} entries say the same")
    rows = [
        [str(index + 1), "" if _essence(one) == _essence(two) else "*", _cell(one), _cell(two)]
        for index, (one, two) in enumerate(pairs[first:], first)
    ]
    out.table(("seq", "", left, right), rows)


def _essence(entry: e.Entry | None) -> dict[str, Any] | None:
    """An entry without what differs between any two runs."""
    if entry is None:
        return None
    return {name: value for name, value in views.entry_json(entry).items() if name not in _IGNORED}


def _cell(entry: e.Entry | None) -> str:
    if entry is None:
        return ""
    name = getattr(entry, "name", "")
    return views.shorten(f"{type(entry).__name__} {name} {views.detail(entry, 48)}", 64)


def questions(data: Path, out: Out, run: str | None) -> None:
    """Open questions."""

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        return [views.question_json(item) for item in runtime.questions(run)]

    found = beside(data, work)
    if out.json:
        for item in found:
            out.emit(item)
        return
    rows = [
        [
            item["run"],
            str(item["call"]),
            item["agent"],
            views.when(item["asked_ms"]),
            views.due(item["due_ms"]),
            views.shorten(views.question_text(item["question"])),
        ]
        for item in found
    ]
    out.table(("run", "call", "agent", "asked", "due", "question"), rows, empty="no open questions")


def schedules(data: Path, out: Out) -> None:
    """All schedules."""

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        return [
            {
                "name": item.name,
                "agent": item.agent,
                "cron": item.cron,
                "timezone": item.timezone,
                "input": decode(runtime.bytes_of(item.input)),
                "next_ms": item.next_ms,
            }
            for item in runtime.schedules()
        ]

    found = beside(data, work)
    if out.json:
        for item in found:
            out.emit(item)
        return
    rows = [
        [
            item["name"], item["agent"], item["cron"], item["timezone"], views.when(item["next_ms"]),
            views.due(item["next_ms"]), views.shorten(dumps(item["input"]), 40),
        ]
        for item in found
    ]  # fmt: skip
    columns = ("schedule", "agent", "cron", "time zone", "next", "due", "input")
    out.table(columns, rows, empty="no schedules")


def _now_ms() -> int:
    return round(time.time() * 1000)
