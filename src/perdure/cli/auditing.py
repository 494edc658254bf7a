"""``audit verify`` and ``audit status``: whether the log is whole, and who says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec

from perdure.cli import views
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.errors import UsageError
from perdure.runtime import Runtime
from perdure.runtime.auditing import LogStatus
from perdure.runtime.verifying import Verified


def verify(
    data: Path,
    out: Out,
    *,
    key: str | None,
    checkpoint: Path | None,
    witnesses: Sequence[str],
    quorum: int | None,
    ask: Sequence[str],
) -> int:
    """Verify the log; the exit code."""
    kept = [] if checkpoint is None else [_read(checkpoint)]
    keys = [_read(Path(item)).strip() if Path(item).is_file() else item for item in witnesses]

    async def work(runtime: Runtime) -> Verified:
        latest = {url: await runtime.audit.ask(url) for url in ask}
        known = [*kept, *filter(None, latest.values())]
        found = runtime.audit.verify(key=key, known=known, witnesses=keys, quorum=quorum)
        found.problems += [
            f"the witness at `{url}` has cosigned nothing of this log" for url in ask if not latest[url]
        ]
        return found

    found = beside(data, work)
    if out.json:
        out.emit({**dataclasses.asdict(found), "whole": found.is_whole})
        return 0 if found.is_whole else 1
    for problem in found.problems:
        out.text(f"FOUND: {problem}")
    for name, size in found.witnesses.items():
        out.text(f"witness {name} has cosigned {size} records")
    if found.is_whole:
        out.text(f"nothing found: {found.size} records, {found.signed} of them under the newest signed head")
        if key is None:
            out.text(
                "The key is that of the data directory; keep `perdure audit key` elsewhere and give it with `--key`."
            )
    return 0 if found.is_whole else 1


def status(data: Path, out: Out) -> int:
    """Show how far the log is signed; the exit code."""

    async def work(runtime: Runtime) -> LogStatus:
        return runtime.audit.status()

    found = beside(data, work)
    has_refused = any(item.state == "refused" for item in found.witnesses)
    if out.json:
        out.emit(msgspec.to_builtins(found))
        return 1 if has_refused else 0
    at = "" if found.signed_ms is None else f", signed {views.when(found.signed_ms)}"
    out.text(f"{found.size} records, {found.signed} of them under the newest signed head{at}")
    rows = [
        [item.name, item.state, str(item.size), views.when(item.at_ms) if item.at_ms else "", item.why]
        for item in found.witnesses
    ]
    out.table(("witness", "state", "records", "since", "why"), rows, empty="no witness is configured")
    return 1 if has_refused else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}") from error
