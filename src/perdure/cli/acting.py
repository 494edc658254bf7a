"""``send``, ``answer``, ``runs cancel|resume|fork``: what changes a run from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from perdure.cli.apps import load, value_of
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.errors import ForkInvalidError, UsageError
from perdure.runtime import Runtime
from perdure.runtime.datadir import owner_of


def send(data: Path, out: Out, run: str, topic: str, body: str | None, key: str | None, sender: str) -> None:
    """Put a message into a mailbox."""
    value = value_of(body)

    async def work(runtime: Runtime) -> int:
        return await runtime.send(run, topic, value, key=key, sender=sender)

    message = beside(data, work)
    if out.json:
        out.emit({"run": run, "topic": topic, "message": message or None, "dropped": message == 0})
    elif message:
        out.text(f"message {message} is in the mailbox of {run}, topic `{topic}`")
    else:
        out.text(f"dropped: {run} already has a message with the key `{key}`")


def answer(data: Path, out: Out, run: str, call: int, body: str | None, sender: str) -> None:
    """Answer a question."""
    value = value_of(body)

    async def work(runtime: Runtime) -> None:
        await runtime.run(run).answer(call, value, sender=sender)

    beside(data, work)
    if out.json:
        out.emit({"run": run, "call": call, "answered": True})
    else:
        out.text(f"answered call {call} of {run}")


def cancel(data: Path, out: Out, run: str, reason: str) -> None:
    """Ask a run to stop."""

    async def work(runtime: Runtime) -> str:
        before = runtime.run(run).status
        if not before.is_ended:
            await runtime.cancel(run, reason)
        return before.value

    before = beside(data, work)
    ended = before in ("completed", "failed", "cancelled")
    if out.json:
        out.emit({"run": run, "requested": not ended, "status": before})
    elif ended:
        out.text(f"{run} is {before} already")
    else:
        out.text(f"asked {run} and its children to stop" + _driver(data))


def resume(data: Path, out: Out, run: str, *, migrate: bool, app: str | None) -> None:
    """Let a blocked run go on."""
    if migrate and app is None:
        raise UsageError("`--migrate` needs the agent's new code: give it with `--app APP`")

    async def work(runtime: Runtime) -> None:
        await runtime.resume(run, migrate=migrate)

    beside(data, work, agents=load(app) if app else ())
    if out.json:
        out.emit({"run": run, "resumed": True, "migrated": migrate})
    else:
        out.text(
            f"{run} is queued" + (" under the new version of its agent" if migrate else "") + _driver(data)
        )


def fork(data: Path, out: Out, run: str, at: int, changes: Sequence[str]) -> None:
    """Start a new run from a point of another."""
    parsed = dict(_change(item) for item in changes)

    async def work(runtime: Runtime) -> str:
        return (await runtime.fork(run, at=at, changes=parsed)).id

    made = beside(data, work)
    if out.json:
        out.emit({"run": made, "origin": run, "at": at, "changed": sorted(parsed)})
    else:
        out.text(made)
        out.note(f"forked from {run} at entry {at}" + _driver(data))


def _change(text: str) -> tuple[int, object]:
    seq, equals, value = text.partition("=")
    if not equals or not seq.strip().isdigit():
        raise ForkInvalidError(f"`--change {text}` must be SEQ=JSON, such as `--change 4='\"yes\"'`")
    try:
        return int(seq), msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return int(seq), value


def _driver(data: Path) -> str:
    """Who will act on it."""
    owner = owner_of(data)
    if owner is None:
        return "; nothing works on it now: start `perdure work APP`"
    return f"; process {owner.get('pid', '?')} takes it up"
