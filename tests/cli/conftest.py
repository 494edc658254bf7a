"""The command line as a process."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import perdure
from perdure.cli.main import main

APP = str(Path(__file__).parent / "app.py")
SOURCE = str(Path(perdure.__file__).parent.parent)
WAIT_S = 15


class Cli:
    """Runs `perdure` on one data directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.processes: list[subprocess.Popen[str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        """Ours, with the sources on the path and the data directory."""
        return {**os.environ, "PYTHONPATH": SOURCE, "PERDURE_DATA": str(self.data), "USER": "tester", **more}

    def __call__(
        self, *arguments: str, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "perdure.cli", *arguments],
            capture_output=True, text=True, timeout=WAIT_S, env=self.environment(**env), cwd=self.folder,
            input=stdin if stdin is not None else "", check=False,
        )  # fmt: skip

    def ok(self, *arguments: str, **env: str) -> str:
        """One command that must succeed; its output."""
        done = self(*arguments, **env)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def lines(self, *arguments: str, **env: str) -> list[Any]:
        """One command that must succeed, with `--json`; its objects. What only looks runs here, which is quicker."""
        if (arguments[0] == "run" and "--detach" not in arguments) or env:
            text = self.ok(*arguments, "--json", **env)
        else:
            text = self._inside(*arguments, "--json")
        return [json.loads(line) for line in text.splitlines()]

    def _inside(self, *arguments: str) -> str:
        output = io.StringIO()
        with mock.patch.dict(os.environ, self.environment()), redirect_stdout(output):
            try:
                main(arguments)
            except SystemExit as exited:
                assert exited.code == 0, output.getvalue()
        return output.getvalue()

    def begin(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.environment(**env), cwd=self.folder,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def working(self, **env: str) -> subprocess.Popen[str]:
        """`perdure work`, once it works."""
        process = self.begin("work", APP, "--json", **env)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["working"] == str(self.data)
        return process

    def status(self, run: str) -> str:
        """The status of a run; straight from the database, which is quicker than a process."""
        connection = sqlite3.connect(f"file:{self.data / 'perdure.db'}?mode=ro", uri=True)
        try:
            found: str = connection.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()[0]
            return found
        finally:
            connection.close()

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until something is true."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError("it did not become true in time")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """A command line on a directory of its own."""
    made = Cli(tmp_path)
    yield made
    _stop(made)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A command line on a directory that the tests of a module share; they only look."""
    made = Cli(tmp_path_factory.mktemp("shared"))
    yield made
    _stop(made)


def _stop(made: Cli) -> None:
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
