"""Examples run as their pages say, and so do the twenty lines of the README, killed and started again."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/README.md"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(folder: Path, tmp_path: Path) -> None:
    (program,) = folder.glob("*.py")
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_twenty_lines_survive_a_kill(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "app.py").write_text(block)
    command = [sys.executable, "app.py"]
    first = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / "data" / "perdure.db").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    first.kill()
    first.wait()
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert done.stdout == "{'note': {'by': 'bob'}, 'pages': ['<the page at https://example.org>']}\n", (
            done.stderr
        )
