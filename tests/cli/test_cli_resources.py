"""``perdure agents ...`` and ``perdure top`` beside a process that drives runs."""

from __future__ import annotations

import json
import time

from tests.cli.conftest import APP, Cli


def until(cli: Cli, *arguments: str, has: str) -> str:
    """Repeat a command until its output has something."""
    end = time.monotonic() + 15
    while has not in (text := cli.ok(*arguments)):
        assert time.monotonic() < end, text
        time.sleep(0.1)
    return text


def test_an_agent_is_held_and_released_beside_its_process(cli: Cli) -> None:
    cli.working()
    run = json.loads(cli.ok("run", f"{APP}:adder", "1", "--detach", "--json").splitlines()[-1])["run"]
    until(cli, "runs", "show", run, has="completed")
    until(cli, "top", "--once", has="runtime")
    said = cli.ok("agents", "quarantine", "adder", "--reason", "odd")
    assert "perdure agents release adder" in said
    held = json.loads(cli.ok("run", f"{APP}:adder", "2", "--detach", "--json").splitlines()[-1])["run"]
    until(cli, "top", "--once", has="agent-quarantined")
    shown = json.loads(cli.ok("runs", "show", held, "--json"))
    assert shown["status"] == "queued"
    assert shown["held"]["code"] == "agent-quarantined"
    (row,) = cli.lines("agents", "quarantined")
    assert (row["agent"], row["reason"]) == ("adder", "odd")
    found = json.loads(cli.ok("top", "--once", "--json"))
    assert found["quarantined"] == ["adder"]
    assert cli.lines("agents", "release", "adder") == [{"agent": "adder", "released": True}]
    until(cli, "runs", "show", held, has="completed")
    assert "was not quarantined" in cli.ok("agents", "release", "adder")


def test_top_says_that_nobody_drives_the_directory(cli: Cli) -> None:
    cli.ok("run", f"{APP}:adder", "1")
    done = cli("top", "--once")
    assert done.returncode == 4
    assert "perdure work" in done.stderr
