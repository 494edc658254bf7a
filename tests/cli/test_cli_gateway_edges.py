"""What the commands of the gateway say when something is wrong or doubtful: an exit code and a code, never a traceback."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from perdure import Budget, Run, Runtime, agent, tool
from perdure.cli.main import main

APP = '''
import os
from perdure import Run, agent, tool

@tool(effect="read")
async def bad(q: str) -> str:
    """Fails."""
    raise ValueError("boom " + q)

@tool
async def charge(amount: int) -> str:
    """Charges, and may take the process with it."""
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
    return "charged"

@agent("payer", version="1", tools=[bad, charge])
async def payer(run: Run) -> str:
    return await run.act("charge", amount=5)
'''
LONG = 400_000  # characters: above `output_bytes_max`, so that the agent gets the beginning only


@tool(effect="read")
async def look(q: str) -> str:
    """Looks."""
    return f"seen {q}"


@tool(effect="read")
async def big() -> str:
    """A long output."""
    return "A" * LONG


@agent("looker", version="1", tools=[look, big])
async def looker(run: Run) -> int:
    """Looks at something long."""
    return len(await run.act("big"))


@agent("waller", version="1", budget=Budget(wall_ms=60_000))
async def waller(run: Run) -> str:
    """Has a limit of time only."""
    return "done"


@agent(
    "saver", version="1", tools=[look], budget=Budget(calls=1, tokens=9, exhausted="hold", unpriced="allow")
)
async def saver(run: Run) -> str:
    """Reaches its limit."""
    await run.act("look", q="a")
    return await run.act("look", q="b")


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command printed, on both streams if it failed."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        out, err = self.capsys.readouterr()
        assert exited.value.code == code, (out, err)
        return out + (err if code else "")

    def json(self, *arguments: str, code: int = 0) -> list[Any]:
        """Its objects."""
        return [
            json.loads(line) for line in self(*arguments, "--json", code=code).splitlines() if line[0] == "{"
        ]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Commands in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_DATA", str(tmp_path / "data"))
    return Shell(capsys)


def lived(name: str, *, ends: bool = True) -> str:
    """A run of an agent, driven by a runtime that is closed again; its id."""
    import asyncio

    async def live() -> str:
        async with Runtime.open("data", agents=[looker, waller, saver]) as runtime:
            handle = await runtime.start(name)
            if ends:
                await handle.result(10)
            async with asyncio.timeout(10):
                while not ends and not runtime.actions.waiting():
                    await asyncio.sleep(0.01)
            return handle.id

    return asyncio.run(live())


def test_a_long_output_is_written_whole_or_said_not_to_be(shell: Shell, tmp_path: Path) -> None:
    run = lived("looker")
    assert shell.json("actions", "show", f"{run}/1")[0]["result"]["artifact"]["size_bytes"] > LONG
    shell("actions", "show", f"{run}/1", "--output", "whole.json")
    assert json.loads((tmp_path / "whole.json").read_text())["value"] == "A" * LONG
    text = shell("actions", "show", f"{run}/1", "--output", "missing/whole.json", code=2)
    assert "error[usage]: `missing/whole.json` cannot be written" in text


def test_a_limit_of_time_alone_is_shown(shell: Shell) -> None:
    run = lived("waller")
    (line,) = [line for line in shell("budgets", run).splitlines() if run in line]
    assert line.split() == [run, "wall", "1", "min", "0", "s"]


@pytest.mark.parametrize(
    ("option", "amount"),
    [("--wall", "nan"), ("--wall", "inf"), ("--wall", "-1"), ("--tokens", "-5"), ("--calls", "-1"), ("--usd", "1e400")],
)  # fmt: skip
def test_a_budget_that_cannot_be_is_refused_and_changes_nothing(
    shell: Shell, option: str, amount: str
) -> None:
    run = lived("waller")
    before = shell.json("budgets", run)
    assert "error[usage]" in shell("budgets", "set", run, option, amount, code=2)
    assert shell.json("budgets", run) == before


def test_raising_one_limit_leaves_the_others_and_what_is_held_at_them(shell: Shell) -> None:
    run = lived("saver", ends=False)
    shell("budgets", "set", run, "--usd", "5")
    first = {"usd_micros": 5_000_000, "calls": 1, "tokens": 9, "exhausted": "hold", "unpriced": "allow"}
    assert shell.json("budgets", run)[0]["budget"] == first
    shell("budgets", "set", run, "--fail")
    assert shell.json("budgets", run)[0]["budget"] == {
        name: first[name] for name in first if name != "exhausted"
    }
    assert "error[usage]" in shell("budgets", "set", run, "--hold", "--fail", code=2)
    shell("budgets", "set", run, "--none")
    assert shell.json("budgets", run)[0]["budget"] is None


def test_a_user_without_a_name_may_decide(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    run = lived("saver", ends=False)
    assert shell.json("actions", "settle", f"{run}/2", "fail")[0]["by"] == "command-line"
    shell("budgets", "set", run, "--calls", "3")


def test_an_action_whose_process_was_killed_is_listed_and_settled(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "perdure.cli", "run", "app.py:payer"]
    killed = subprocess.run(
        command, env={**os.environ, "DIE": "1"}, capture_output=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    worker = subprocess.Popen(
        [*command[:3], "work", "app.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found: list[Any] = []
        while not found:
            assert worker.poll() is None
            found = shell.json("actions", "doubtful")
        action = found[0]["action"]
        assert (found[0]["state"], found[0]["request"]) == ("unknown", {"amount": 5})
        assert f"perdure actions settle {action} happened|did-not-happen|retry" in shell(
            "actions", "doubtful"
        )
        assert "expected `happened`" in shell("actions", "settle", action, "live", code=2)
        shell("actions", "settle", action, "happened", "--result", '"late"', "--by", "ann")
        while (row := shell.json("runs", "show", found[0]["run"])[0])["status"] != "completed":
            assert row["status"] != "failed", row
        assert row["result"] == "late"
        assert shell.json("actions", "doubtful") == []
    finally:
        worker.terminate()
        worker.wait()


def test_a_tool_that_raises_and_an_agent_that_is_not_there(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    text = shell("tools", "call", "bad", '{"q": "x"}', "--app", "app.py", code=1)
    assert "tool `bad` failed: ValueError: boom x" in text
    assert "error[agent-unknown]" in shell("tools", "list", "app.py:nobody", code=2)


class Refuses(BaseHTTPRequestHandler):
    """An upstream that does not know the key."""

    def do_POST(self) -> None:
        """Always 401."""
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"error": {"message": "no such key"}}'
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def refusing() -> Iterator[int]:
    """Its port."""
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_key_is_a_failure_and_a_password_in_an_address_is_not_shown(
    shell: Shell, tmp_path: Path, refusing: int
) -> None:
    (tmp_path / "perdure.toml").write_text(
        f'[[upstreams]]\nname = "u"\nbase_url = "http://127.0.0.1:{refusing}/v1"\nmodels = ["m"]\n'
        '[[upstreams]]\nname = "v"\nbase_url = "http://ann:hunter2@127.0.0.1:9/v1"\nmodels = ["n"]\n'
    )
    assert shell.json("models", "test", "m", code=1)[0]["status"] == 401
    assert "hunter2" not in shell("models", "list") + shell("models", "list", "--json")
