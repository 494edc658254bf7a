"""What the tests of these tiers need of the machine: fetched once from Debian's archive, or found missing with the reason."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".setup" / "sandboxes"
FETCH_S = 240


@cache
def _problem() -> str:
    done = subprocess.run(
        ["sh", "scripts/sandboxes"], cwd=ROOT, capture_output=True, text=True, timeout=FETCH_S,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": sys.executable, "HOME": str(Path.home())},
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def tools() -> Path:
    """The folder that ``scripts/sandboxes`` has filled; skips where it cannot."""
    if problem := _problem():
        pytest.skip(f"scripts/sandboxes cannot get what is needed here: {problem}")
    return TOOLS
