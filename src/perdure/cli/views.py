"""Rows, entries and times as people and programs see them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from perdure.cli.output import dumps
from perdure.core import entries as e
from perdure.core.records import RunRecord
from perdure.core.values import Payload
from perdure.runtime import Answerable, Runtime

PREVIEW = 72  # characters of a payload in a table
_PAYLOADS = ("input", "result", "body", "question", "value")
_HEAD = ("type", "seq", "at_ms", "call", "name", "digest", "chance", "journal")


def when(ms: int | None) -> str:
    """A time in UTC, or ``-``."""
    if ms is None:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(ms: int) -> str:
    """A duration."""
    seconds = ms / 1000
    if seconds < 1:
        return f"{ms} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def due(ms: int | None) -> str:
    """How far away a time is."""
    if ms is None:
        return "no limit"
    left = ms - round(time.time() * 1000)
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def shorten(text: str, limit: int = PREVIEW) -> str:
    """One line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def record_json(record: RunRecord) -> dict[str, Any]:
    """The row of a run for programs."""
    found: dict[str, Any] = msgspec.to_builtins(record)
    return found


def entry_json(entry: e.Entry) -> dict[str, Any]:
    """An entry for programs: payloads as their values, large ones as ``{"$blob": sha256, "size": bytes}``."""
    found: dict[str, Any] = msgspec.json.decode(e.encode_entry(entry))
    for name in _PAYLOADS:
        if isinstance(getattr(entry, name, None), Payload) and name in found:
            found[name] = _value(found[name])
    return found


def _value(payload: dict[str, Any]) -> Any:
    if "blob" in payload:
        return {"$blob": payload["blob"], "size": payload.get("size", 0)}
    return payload.get("inline")


def detail(entry: e.Entry, limit: int = PREVIEW) -> str:
    """What an entry says, in one line."""
    found = {name: value for name, value in entry_json(entry).items() if name not in _HEAD}
    match entry:
        case e.StepCompleted() | e.MessageReceived() | e.QuestionAnswered() | e.RunCompleted():
            value = found.pop("result", found.pop("body", None))
            rest = ", ".join(f"{name}={dumps(item)}" for name, item in found.items() if name != "sent_ms")
            text = dumps(value) + (f"  ({rest})" if rest else "")
        case e.QuestionAsked():
            text = f"{dumps(found['question'])}  (due {when(entry.due_ms)})"
        case e.RunParked():
            text = ", ".join(wait(item) for item in entry.waits)
        case e.StepRetried() | e.StepFailed() | e.RunFailed():
            text = f"{entry.error.type or entry.error.code}: {entry.error.message}"
            if not isinstance(entry, e.RunFailed):
                text += f"  (attempt {entry.attempt})"
        case e.RunBlocked():
            text = f"{entry.error.code}: {entry.error.message}"
        case e.RunStarted():
            text = f"{entry.agent} {dumps(found.get('input'))}"
        case _:
            text = ", ".join(f"{name}={dumps(item)}" for name, item in found.items())
    return shorten(text, limit)


def wait(item: e.Wait) -> str:
    """What a parked call waits for."""
    what = f"{item.kind} {item.name}".strip()
    until = "" if item.due_ms is None else f" until {when(item.due_ms)}"
    return f"{what} (call {item.call}){until}"


def entry_row(entry: e.Entry, begin_ms: int) -> list[str]:
    """An entry as a row of a table; times count from ``begin_ms``."""
    return [
        str(entry.seq),
        f"+{span(entry.at_ms - begin_ms)}",
        type(entry).__name__,
        str(getattr(entry, "call", "")),
        getattr(entry, "name", ""),
        detail(entry),
    ]


ENTRY_COLUMNS = ("seq", "at", "entry", "call", "name", "detail")


def question_json(item: Answerable) -> dict[str, Any]:
    """An open question for programs."""
    return {
        "run": item.run,
        "call": item.call,
        "agent": item.agent,
        "question": item.question,
        "asked_ms": item.asked_ms,
        "due_ms": item.due_ms,
    }


def question_text(question: Any) -> str:
    """A question for people."""
    return question if isinstance(question, str) else dumps(question)


def family(runtime: Runtime, run: str) -> list[str]:
    """A run and its children, and theirs."""
    found = [run]
    for name in found:
        found += [child.id for child in runtime.runs(parent=name, limit=1_000)]
    return found
