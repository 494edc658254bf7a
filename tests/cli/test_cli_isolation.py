"""`--isolation` and `[workers]` on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cli.conftest import APP, Cli

WHERE = """
import os
from perdure import Run, agent, step

@step
def process(_: int) -> int:
    return os.getppid()

@agent("where")
async def where(run: Run) -> list[int]:
    return [os.getpid(), os.getppid(), await run.step(process, 1)]
"""


def test_run_in_worker_processes_by_flag_and_by_configuration(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    here = cli.lines("run", "where.py:where")[-1]["result"]
    assert here[1] == os.getpid()  # the command line's own process drove it
    there = cli.lines("run", "where.py:where", "--isolation", "process")[-1]["result"]
    assert there[1] != os.getpid()
    assert there[2] == there[1]
    (tmp_path / "perdure.toml").write_text('[workers]\nisolation = "process"\nmin = 1\nmax = 2\n')
    assert cli.lines("run", "where.py:where")[-1]["result"][1] != os.getpid()
    assert cli.lines("run", "where.py:where", "--isolation", "none")[-1]["result"][1] == os.getpid()
    assert cli.lines("run", f"{APP}:adder", "4")[-1]["result"] == {"number": 16}


def test_what_cannot_be_is_refused(cli: Cli, tmp_path: Path) -> None:
    refused = cli("run", f"{APP}:adder", "4", "--isolation", "walls")
    assert refused.returncode == 2
    for text, why in (
        ("[workers]\nmin = 3\nmax = 1\n", "min <= max"),
        ("[workers]\nthreads = 3\n", "threads"),
        ('[workers]\nisolation = "high"\n', "isolation"),
    ):
        (tmp_path / "perdure.toml").write_text(text)
        done = cli("run", f"{APP}:adder", "4")
        assert done.returncode == 2
        assert why in done.stderr
