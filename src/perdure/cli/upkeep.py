"""``backup`` and ``doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from perdure.cli.opening import existing
from perdure.cli.output import Out, dumps
from perdure.core.errors import PerdureError, StoreReadOnlyError, UsageError
from perdure.runtime.config import settings_from
from perdure.runtime.datadir import database_of, owner_of
from perdure.stores.sqlite.maintenance import backup as copy
from perdure.stores.sqlite.maintenance import integrity, sizes, statuses

FREE_BYTES_MIN = 256 * 1024 * 1024  # less free space than this is a problem soon
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")  # no safe locks for SQLite's WAL


def backup(data: Path, out: Out, target: Path) -> None:
    """Copy the database to a file, or into a directory that can be used as a data directory."""
    source = existing(data)
    path = database_of(target) if target.is_dir() else target
    if path.exists():
        raise UsageError(f"`{path}` exists; give a new file or an empty directory", target=str(path))
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        copy(source, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise StoreReadOnlyError(f"`{path}` cannot be written: {error.strerror}", target=str(path)) from error
    found = sizes(path)
    if out.json:
        out.emit({"backup": str(path), **found})
    else:
        out.text(
            f"{path}: {found['bytes']:,} bytes, {found['runs']} runs, {found['journal']} entries, intact"
        )


def doctor(data: Path, out: Out) -> int:
    """Check everything; 1 if there is a problem."""
    problems: list[str] = []
    found: dict[str, Any] = {"versions": _versions(), "data": str(data)}
    found["settings"] = _settings(problems)
    if database_of(data).is_file():
        _examine(data, found, problems)
    else:
        problems.append(
            f"`{data}` has no Perdure database (start a run, or give its directory with `--data`)"
        )
    found["problems"] = problems
    if out.json:
        out.emit(found)
    else:
        out.facts(list(_lines(found)))
    return 1 if problems else 0


def _versions() -> dict[str, str]:
    from perdure import __version__

    found = {
        "perdure": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in ("msgspec", "pydantic-ai-slim", "opentelemetry-api"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _settings(problems: list[str]) -> dict[str, Any]:
    try:
        return asdict(settings_from(os.environ))
    except PerdureError as error:
        problems.append(error.message)
        return {}


def _examine(data: Path, found: dict[str, Any], problems: list[str]) -> None:
    path = database_of(data)
    found["owner"] = owner_of(data)
    found["integrity"] = integrity(path)
    problems.extend(found["integrity"])
    if not found["integrity"]:
        found["sizes"] = sizes(path)
        found["runs"] = statuses(path)
        wal = path.with_name(path.name + "-wal")
        found["sizes"]["wal_bytes"] = wal.stat().st_size if wal.exists() else 0
    found["free_bytes"] = shutil.disk_usage(data).free
    if found["free_bytes"] < FREE_BYTES_MIN:
        problems.append(f"only {found['free_bytes'] // 2**20} MiB are free on the file system of `{data}`")
    found["file_system"] = _file_system(data)
    if found["file_system"] in NETWORK:
        problems.append(
            f"`{data}` is on `{found['file_system']}`: SQLite's locks are not safe there; use a local disk"
        )
    if not os.access(data, os.W_OK):
        problems.append(f"`{data}` cannot be written by this user")
    if found.get("runs", {}).get("blocked"):
        problems.append(
            f"{found['runs']['blocked']} runs are blocked; `perdure runs list --status blocked` shows them"
        )


def _file_system(data: Path) -> str:
    """The type of the file system that holds ``data``; empty where the system does not say."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    folder = data.resolve()
    best, kind = "", ""
    for line in lines:
        _, point, name = line.split(" ")[:3]
        if len(point) >= len(best) and folder.is_relative_to(point):
            best, kind = point, name
    return kind


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    yield "data", found["data"]
    if "owner" in found:
        owner = found["owner"]
        yield (
            "in use by",
            "nobody" if owner is None else f"process {owner.get('pid', '?')} ({owner.get('command', '?')})",
        )
    if "integrity" in found:
        yield "integrity", "intact" if not found["integrity"] else f"{len(found['integrity'])} problems"
    if "runs" in found:
        yield "runs", ", ".join(f"{count} {name}" for name, count in found["runs"].items()) or "none"
        yield "sizes", ", ".join(f"{name} {count:,}" for name, count in found["sizes"].items())
    if "free_bytes" in found:
        kind = f" ({found['file_system']})" if found["file_system"] else ""
        yield "free", f"{found['free_bytes'] // 2**20:,} MiB{kind}"
    yield "settings", ", ".join(f"{name}={dumps(value)}" for name, value in found["settings"].items())
    for problem in found["problems"]:
        yield "PROBLEM", problem
    if not found["problems"]:
        yield "problems", "none"


def demo(arguments: list[str]) -> int:
    """Replace this process by the demo, so that signals go to it."""
    command = [sys.executable, "-m", "perdure.demo", *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
