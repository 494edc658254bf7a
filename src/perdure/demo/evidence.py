"""The step's own log: one durable line for each execution, written by the step itself and not by the runtime.

The proof at the end of the demo compares it with the journal, so it must not depend on anything of the runtime.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec

LOG_NAME = "steps.log"


class Line(msgspec.Struct, frozen=True):
    """One execution: of which step, about which file, in which process, when, and what came out."""

    step: str
    file: str
    pid: int
    at_ns: int
    digest: str


def digest_of(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256 of a result as JSON."""
    return hashlib.sha256(data).hexdigest()[:16]


def label_of(file: str) -> str:
    """A file's name as a log line can hold it."""
    return "".join(character if character.isprintable() else "?" for character in file) or "-"


def append(log: Path, step: str, file: str, result: Any) -> None:
    """Note an execution; on disk on return. Appends of one short line do not mix, also between processes."""
    digest = digest_of(msgspec.json.encode(result, order="sorted"))
    line = f"{step}\t{label_of(file)}\t{os.getpid()}\t{time.time_ns()}\t{digest}\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(log: Path) -> list[Line]:
    """Every line, in order; a last one that was cut off by a crash is left out."""
    if not log.exists():
        return []
    lines = []
    for text in log.read_text(encoding="utf-8").splitlines():
        fields = text.split("\t")
        if len(fields) == 5 and fields[4]:
            lines.append(Line(fields[0], fields[1], int(fields[2]), int(fields[3]), fields[4]))
    return lines
