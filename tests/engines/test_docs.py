"""The documentation tells what the engine suite checks, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.testing.conformance import engine

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"


def test_the_table_of_conformance_is_the_suite() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)` \| yes \| yes \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [case.__name__ for case in engine.BASIC]


def test_the_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("temporalio")
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(next(block for block in blocks if "dev_server" in block), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "sunny in Lisbon\n", done.stderr
