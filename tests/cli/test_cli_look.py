"""Help, errors, and the commands that only look."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest

import perdure
from perdure.cli import main as entry
from perdure.cli.commands import app, runs, schedules
from tests.cli.conftest import APP, Cli


@pytest.fixture(scope="module")
def ended(shared: Cli) -> dict[str, str]:
    """Ids of runs that have ended, by agent; `adder` has run twice."""
    found = {}
    for name, value in (("adder", "3"), ("other", "4"), ("failing", "null"), ("greeter", "Ada")):
        agent = "adder" if name == "other" else name
        done = shared("run", f"{APP}:{agent}", value, "--json", "--session", name)
        found[name] = json.loads(done.stdout.splitlines()[0])["run"]
    return found


def test_help_names_every_command_and_is_quick(shared: Cli) -> None:
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = shared.ok("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert text == entry.HELP
    names = [name for name in app if not name.startswith("-") and name not in ("runs", "schedules")]
    names += [f"runs {name}" for name in runs if not name.startswith("-")]
    names += [f"schedules {name}" for name in schedules if not name.startswith("-")]
    listed = {" ".join(line.split()[: name.count(" ") + 1]) for name in names for line in text.splitlines()}
    assert set(names) <= listed
    assert min(took) < 0.25  # seconds of the processor, so that other work on the machine does not count


def test_every_command_explains_its_options(shared: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run"], ["runs"], ["runs", "fork"], ["send"], ["answer"], ["bench"]):
        app([*command, "--help"])
        assert f"Usage: perdure {' '.join(command)}" in capsys.readouterr().out
    assert "--data" in shared.ok("backup", "--help")


def test_version(shared: Cli) -> None:
    assert shared.ok("--version").strip() == perdure.__version__


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["bogus"], "usage", 2),
        (["runs", "list", "--status", "sleepy"], "usage", 2),
        (["runs", "show", "nobody"], "run-unknown", 2),
        (["run", "no.such.module:agent"], "definition-invalid", 2),
        (["run", "nofile.py:agent"], "definition-invalid", 2),
        (["run", f"{APP}:nobody"], "agent-unknown", 2),
        (["run", APP], "agent-unknown", 2),
        (["run", f"{APP}:adder", "many"], "input-invalid", 2),
        (["answer", "RUN", "1", "yes"], "question-unknown", 2),
        (["send", "RUN", "go"], "run-ended", 2),
        (["runs", "fork", "RUN", "--at", "99"], "fork-invalid", 2),
        (["runs", "fork", "RUN", "--at", "2", "--change", "two"], "fork-invalid", 2),
        (["runs", "resume", "RUN"], "usage", 2),
        (["runs", "resume", "RUN", "--migrate"], "usage", 2),
    ],
)
def test_errors_have_codes(
    shared: Cli,
    ended: dict[str, str],
    arguments: list[str],
    code: str,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERDURE_DATA", str(shared.data))
    with pytest.raises(SystemExit) as exited:  # in this process, which is quicker
        entry.main([*(ended["adder"] if item == "RUN" else item for item in arguments), "--json"])
    output, errors = capsys.readouterr()
    assert exited.value.code == exit_code
    assert errors.startswith(f"error[{code}]: ")
    assert json.loads(output)["error"]["code"] == code


def test_looking_needs_a_database(cli: Cli) -> None:
    for command in (["runs", "list"], ["questions"], ["schedules", "list"], ["backup", "copy"]):
        done = cli(*command)
        assert done.returncode == 2
        assert done.stderr.startswith("error[data-dir-invalid]: ")
    assert not cli.data.exists()


def test_a_wrong_setting_is_refused(shared: Cli, ended: dict[str, str]) -> None:
    done = shared("runs", "show", ended["adder"], PERDURE_SETTING_CONCURENCY="3")
    assert done.returncode == 2
    assert "error[definition-invalid]: unknown setting `concurency`" in done.stderr


def test_list(shared: Cli, ended: dict[str, str]) -> None:
    text = shared.ok("runs", "list").splitlines()
    assert text[0].split() == ["RUN", "AGENT", "STATUS", "SESSION", "CREATED", "TOOK", "ENTRIES"]
    assert [line.split()[0] for line in text[1:]] == sorted(ended.values(), reverse=True)
    assert [row["id"] for row in shared.lines("runs", "list", "--status", "failed")] == [ended["failing"]]
    assert [row["id"] for row in shared.lines("runs", "list", "--agent", "adder", "--limit", "1")] == [
        ended["other"]
    ]
    assert [row["id"] for row in shared.lines("runs", "list", "--session", "greeter")] == [ended["greeter"]]
    empty = shared("runs", "list", "--status", "unfinished")
    assert (empty.stdout, empty.stderr) == ("", "no runs\n")


def test_show(shared: Cli, ended: dict[str, str]) -> None:
    text = shared.ok("runs", "show", ended["failing"])
    assert "the service is down" in text
    found: dict[str, Any] = shared.lines("runs", "show", ended["adder"])[0]
    assert (found["result"], found["input"], found["steps"]) == ({"number": 12}, 3, 2)
    assert found["waits"] == found["questions"] == found["children"] == []
    assert found["error"] is None


def test_journal_and_tail(shared: Cli, ended: dict[str, str]) -> None:
    found = shared.lines("runs", "journal", ended["adder"])
    assert [item["entry"]["type"] for item in found] == [
        "RunStarted", "StepCompleted", "StepCompleted", "RunCompleted",
    ]  # fmt: skip
    assert found[1]["entry"]["result"] == 6
    assert shared.lines("runs", "tail", ended["adder"]) == found
    assert shared.lines("runs", "journal", ended["adder"], "--after", "3") == found[3:]
    assert "StepFailed" in shared.ok("runs", "journal", ended["failing"])
    assert "RunFailed" in shared.ok("runs", "tail", ended["failing"])


def test_diff(shared: Cli, ended: dict[str, str]) -> None:
    found = shared.lines("runs", "diff", ended["adder"], ended["other"])[0]
    assert found["same"] == 0
    assert len(found["pairs"]) == 4
    assert "say the same" in shared.ok("runs", "diff", ended["adder"], ended["adder"])
    assert ended["other"].upper() in shared.ok("runs", "diff", ended["adder"], ended["other"])


def test_doctor(shared: Cli, cli: Cli, ended: dict[str, str]) -> None:
    found = shared.lines("doctor")[0]
    assert found["problems"] == []
    assert found["runs"] == {"completed": 3, "failed": 1}
    assert found["settings"]["concurrency"] == 1000
    assert "intact" in shared.ok("doctor")
    missing = cli("doctor")
    assert missing.returncode == 1
    assert "PROBLEM" in missing.stdout


def test_doctor_finds_damage(cli: Cli) -> None:
    cli.ok("run", f"{APP}:adder", "3")
    path = cli.data / "perdure.db"
    body = bytearray(path.read_bytes())
    place = body.find(b'"inline":6')
    assert place > 0
    body[place + 9] = ord("7")
    path.write_bytes(body)
    done = cli("doctor", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"]
    run = cli.lines("runs", "list")[0]["id"]
    assert cli("runs", "journal", run).returncode == 5


def test_backup_is_a_data_directory(shared: Cli, cli: Cli, ended: dict[str, str]) -> None:
    cli.data.mkdir()
    found = json.loads(cli("backup", str(cli.data), "--data", str(shared.data), "--json").stdout)
    assert (found["runs"], found["backup"]) == (4, str(cli.data / "perdure.db"))
    assert cli.lines("runs", "show", ended["adder"])[0]["result"] == {"number": 12}
    again = cli("backup", str(cli.data), "--data", str(shared.data))
    assert again.returncode == 2
    assert "exists" in again.stderr


def test_bench(cli: Cli) -> None:
    found = cli.lines("bench", "--seconds", "0.2")[0]
    assert found["bare"]["per_s"] > 0
    assert found["perdure"]["alone"]["p50_ms"] > 0
    assert found["perdure"]["together"]["per_s"] > 0
    assert list(cli.data.iterdir()) == []
