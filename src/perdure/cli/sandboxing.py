"""What ``sandbox ...`` and ``workspace ...`` do."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from perdure.cli.output import Out
from perdure.core.errors import UsageError
from perdure.core.sandbox import SandboxJob, SandboxOutcome
from perdure.runtime.config import world_from
from perdure.runtime.examining import Examined, examine
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.walls import WORKSPACES, ConfiguredWalls, SandboxRules
from perdure.tools.workspaces import Manifest, Workspaces


def _rules(config: Path | None) -> SandboxRules:
    return world_from(config, {}, LocalSecrets.default(Path())).sandboxes


def doctor(out: Out, config: Path | None) -> int:
    """Try each tier; 1 if one that is configured cannot be had."""
    rules = _rules(config)
    found = asyncio.run(examine(rules))
    for each in found:
        _show(out, each, is_usual=each.tier in rules.tiers)
    missing = [each.tier for each in found if each.tier in rules.tiers and not each.is_available]
    return 1 if missing else 0


def _show(out: Out, found: Examined, *, is_usual: bool) -> None:
    if out.json:
        told: dict[str, Any] = {
            "tier": found.tier, "configured": is_usual, "available": found.is_available, "first_ms": found.first_ms,
            "warm_ms": found.warm_ms, "parts": dict(found.parts), "why": found.why,
        }  # fmt: skip
        out.emit(told)
        return
    mark = "yes" if found.is_available else "no"
    times = f"  first job {found.first_ms:.0f} ms, then {found.warm_ms:.1f} ms" if found.is_available else ""
    out.text(f"{found.tier:<10} {mark:<4}{'configured' if is_usual else '':<11}{times}".rstrip())
    for name, text in found.parts.items():
        out.text(f"           {name}: {text}")
    if found.why:
        out.text(f"           {found.why}")


def run(out: Out, file: str, tier: str, config: Path | None) -> int:
    """Execute a file; its exit code."""
    try:
        code = Path(file).read_text(encoding="utf-8") if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` cannot be read: {error}") from error
    found = asyncio.run(_executed(_rules(config), tier, code))
    if out.json:
        told = {
                "ending": found.ending,
                "exit_code": found.exit_code,
                "stdout": found.stdout.decode(errors="replace"),
                "stderr": found.stderr.decode(errors="replace"),
                "tier": found.tier,
                "detail": found.detail,
                "wall_ms": round(found.wall_ms, 1),
                "cpu_ms": round(found.cpu_ms, 1),
        }  # fmt: skip
        out.emit(told)
    else:
        sys.stdout.buffer.write(found.stdout)
        sys.stdout.flush()
        sys.stderr.buffer.write(found.stderr)
        sys.stderr.flush()
        if found.ending != "ended":
            out.note(f"stopped: {found.ending} (tier {found.tier})")
    return found.exit_code if found.ending == "ended" and found.exit_code is not None else 1


async def _executed(rules: SandboxRules, tier: str, code: str) -> SandboxOutcome:
    walls = ConfiguredWalls(rules)
    try:
        return await (await walls.at_least(tier)).run(SandboxJob(code=code))
    finally:
        await walls.close()


# -- files
def _state(data: Path, run: str, at: str) -> tuple[Workspaces, Manifest]:
    files = Workspaces(data / WORKSPACES)
    changes = files.history(run)
    if at:
        known = [change for change in changes if change.key == at]
        if not known:
            keys = ", ".join(change.key for change in changes[-20:]) or "none"
            raise UsageError(f"no action `{at}` has changed the workspace of run `{run}`; found {keys}")
        return files, files.manifest(known[-1].tip)
    return files, files.manifest(changes[-1].tip if changes else "")


def list_files(data: Path, out: Out, run: str, at: str) -> None:
    """List the files of a run."""
    _, manifest = _state(data, run, at)
    if out.json:
        for name, kept in sorted(manifest.items()):
            told = {"name": name, "size_bytes": kept.size_bytes, "sha256": kept.digest}
            out.emit(told | {"executable": kept.is_executable})
        return
    rows = [[name, str(kept.size_bytes), kept.digest[:16]] for name, kept in sorted(manifest.items())]
    out.table(("name", "bytes", "sha256"), rows)


def get(data: Path, run: str, name: str, to: Path | None, at: str) -> None:
    """Write one file somewhere."""
    files, manifest = _state(data, run, at)
    content = files.file(manifest, name)
    if to is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        made = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"`{to}` cannot be written: {error.strerror}") from error


def history(data: Path, out: Out, run: str) -> None:
    """List the changes of a run's files."""
    changes = Workspaces(data / WORKSPACES).history(run)
    if out.json:
        for change in changes:
            out.emit({"action": change.key, "before": change.base, "after": change.tip, "by": change.by})
        return
    rows = [
        [change.key, change.base[:16] or "empty", change.tip[:16] or "empty", change.by] for change in changes
    ]
    out.table(("action", "before", "after", "by"), rows)
