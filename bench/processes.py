"""Runs one measurement in a process group of its own and ends everything that it started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.plan import CHILD_S_MAX
from bench.servers import cache

ERROR_CHARACTERS = 400  # of a child's complaint that are kept

Result = dict[str, Any]


@contextmanager
def folder() -> Iterator[Path]:
    """A new directory for the data of one measurement, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="data-", dir=cache()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def measure(subject: str, measure_name: str, options: Result, *, timeout_s: float = CHILD_S_MAX) -> Result:
    """The child's result, or ``{"error": why}``; ``{"killed": True}`` if it died by SIGKILL, as one measure wants."""
    command = [sys.executable, "-m", "bench.child", subject, measure_name, json.dumps(options)]
    environment = {**os.environ, "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {"error": f"no result after {timeout_s:.0f} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.returncode == -signal.SIGKILL:
            return {"killed": True}
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if not lines:
            complaints.seek(0)
            last = complaints.read()[-ERROR_CHARACTERS:].strip().replace("\n", " ")
            return {"error": f"the process ended with {child.returncode}: {last}"}
        result: Result = json.loads(lines[-1])
        return result
