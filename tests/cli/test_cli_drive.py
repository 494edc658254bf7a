"""The commands that drive runs, and those that act beside a process that does."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cli.conftest import APP, Cli

SCHEDULER = """
import asyncio, sys
from perdure import Runtime
sys.path.insert(0, {folder!r})
import app
async def main():
    async with Runtime.open(sys.argv[1], agents=[app.adder], beside=True) as runtime:
        await runtime.schedule("nightly", "0 3 * * *", "adder", 4, timezone="Europe/Berlin")
asyncio.run(main())
"""


def start(cli: Cli, agent: str, *value: str, **env: str) -> str:
    """Start a run without driving it; its id."""
    found: str = cli.lines("run", f"{APP}:{agent}", *value, "--detach", **env)[0]["run"]
    return found


def words(path: Path) -> list[str]:
    """What the steps have noted."""
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    """Signal and wait; exit code and output."""
    process.send_signal(number)
    output, errors = process.communicate(timeout=15)
    return process.returncode, output, errors


def waits(cli: Cli, run: str) -> None:
    """Until a run waits."""
    cli.until(lambda: cli.status(run) == "waiting")


def test_run_prints_the_result(cli: Cli) -> None:
    done = cli("run", f"{APP}:adder", "3")
    assert (done.returncode, done.stdout) == (0, '{"number":12}\n')
    assert done.stderr.startswith("run ")
    assert cli("run", f"{APP}:greeter", "42").stdout == '"hello 42"\n'
    assert cli("run", f"{APP}:greeter", "-", stdin="Ada Lovelace\n").stdout == '"hello Ada Lovelace"\n'


def test_run_as_json(cli: Cli) -> None:
    *entries, last = cli.lines("run", f"{APP}:adder", "3", "--key", "once")
    assert [item["entry"]["seq"] for item in entries] == [1, 2, 3, 4]
    assert last == {"run": entries[0]["run"], "result": {"number": 12}}
    assert cli.lines("run", f"{APP}:adder", "3", "--key", "once")[-1] == last


def test_a_failed_run_and_a_deadline(cli: Cli) -> None:
    done = cli("run", f"{APP}:failing", "--json")
    assert done.returncode == 1
    assert done.stderr.startswith("error[")
    assert json.loads(done.stdout.splitlines()[-1])["error"]["message"].endswith("the service is down")
    late = cli("run", f"{APP}:waiting", "never.txt", "--deadline", "0.2")
    assert late.returncode == 1
    assert "error[deadline-exceeded]" in late.stderr


def test_killed_then_finished_by_work(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    value = json.dumps({"path": str(path), "count": 12, "seconds": 0.05})
    process = cli.begin("run", f"{APP}:stepping", value, "--json")
    assert process.stdout is not None
    run = json.loads(process.stdout.readline())["run"]
    cli.until(lambda: len(words(path)) >= 3)
    process.kill()
    process.wait()
    assert len(words(path)) < 12
    worker = cli.working()
    assert cli.lines("runs", "tail", run)[-1]["entry"]["type"] == "RunCompleted"
    found: dict[str, Any] = cli.lines("runs", "show", run)[0]
    assert (found["result"], found["recovered"]) == (12, 1)
    seen = words(path)
    assert sorted(set(seen), key=int) == [str(number) for number in range(12)]
    assert len(seen) <= 13  # only the step in flight may have run twice
    assert stop(worker)[0] == 0


def test_sigterm_drains_run(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    value = json.dumps({"path": str(path), "count": 5, "seconds": 0.4})
    process = cli.begin("run", f"{APP}:stepping", value)
    cli.until(lambda: words(path))
    time.sleep(0.15)  # well into the second step
    code, output, errors = stop(process)
    assert (code, output) == (130, "")
    assert f"it goes on with `perdure work {APP}" in errors
    found = cli.lines("runs", "list")[0]
    assert found["status"] == "queued"
    journal = cli.lines("runs", "journal", found["id"])
    assert journal[-1]["entry"]["name"] == "slow"  # the step that ran was recorded, not thrown away


def test_work_drains_and_takes_new_runs(cli: Cli, tmp_path: Path) -> None:
    worker = cli.working()
    path = tmp_path / "words.txt"
    run = start(cli, "stepping", json.dumps({"path": str(path), "count": 30, "seconds": 0.3}))
    cli.until(lambda: words(path))
    locked = cli("run", f"{APP}:adder", "3")
    assert locked.returncode == 2
    assert f"process {worker.pid}" in locked.stderr
    assert cli.lines("doctor")[0]["owner"]["pid"] == worker.pid
    code, output, errors = stop(worker)
    assert code == 0
    assert json.loads(output.splitlines()[-1])["unfinished"] == 1
    assert "unfinished runs: 1; they are kept" in errors
    assert cli.status(run) == "queued"
    assert stop(cli.working(), signal.SIGINT)[0] == 130


def test_send_and_cancel_beside_a_worker(cli: Cli, tmp_path: Path) -> None:
    worker = cli.working()
    run, other = start(cli, "waiting", str(tmp_path / "1")), start(cli, "parent", str(tmp_path / "2"))
    assert cli.lines("send", other, "hint", "1", "--key", "k")[0]["dropped"] is False
    assert cli.lines("send", other, "hint", "1", "--key", "k")[0]["dropped"] is True
    waits(cli, run)
    shown = cli.ok("runs", "show", run)
    assert "receive go" in shown
    assert cli.lines("send", run, "go", '{"n": 1}')[0]["message"] > 0
    assert cli.lines("runs", "tail", run)[-1]["entry"]["result"] == {"n": 1}
    waits(cli, other)
    assert f"process {worker.pid} takes it up" in cli.ok("runs", "cancel", other, "no longer needed")
    assert cli.lines("runs", "tail", other)[-1]["entry"]["type"] == "RunCancelled"
    found = cli.lines("runs", "show", other)[0]
    assert found["error"] == {"code": "run-cancelled", "message": "no longer needed"}
    assert [child["status"] for child in found["children"]] == ["cancelled"]
    assert "is cancelled already" in cli.ok("runs", "cancel", other)


def test_questions_and_answers(cli: Cli) -> None:
    worker = cli.working()
    run = start(cli, "asking", "v2")
    asked = cli.until(lambda: cli.lines("questions"))
    assert (asked[0]["run"], asked[0]["question"]) == (run, "Release v2?")
    assert "Release v2?" in cli.ok("questions", run)
    assert f"perdure answer {run} {asked[0]['call']}" in cli.ok("runs", "show", run)
    cli.ok("answer", run, str(asked[0]["call"]), "yes, now")
    ended = cli.lines("runs", "tail", run)
    assert ended[-1]["entry"]["result"] == "v2: yes, now"
    assert any(item["entry"].get("sender") == "tester" for item in ended)
    assert stop(worker)[0] == 0
    assert cli("questions").stderr == "no open questions\n"


def test_a_question_is_asked_at_the_terminal(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "run", f"{APP}:asking", "v3"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, env=cli.environment(), cwd=cli.folder,
    )  # fmt: skip
    os.close(theirs)
    cli.processes.append(process)
    seen = ""
    while "Release v3?" not in seen or not seen.rstrip(" ").endswith(">"):
        seen += os.read(ours, 4096).decode()
    os.write(ours, b"of course\n")
    output, _ = process.communicate(timeout=15)
    os.close(ours)
    assert output == '"v3: of course"\n'
    assert process.returncode == 0


def test_refused(cli: Cli) -> None:
    start(cli, "solo", "--session", "s")
    done = cli("run", f"{APP}:solo", "--session", "s", "--detach")
    assert done.returncode == 3
    assert done.stderr.startswith("error[session-busy]: ")


def test_fork_and_diff(cli: Cli) -> None:
    first = cli.lines("run", f"{APP}:adder", "3")[-1]["run"]
    forked = cli.ok("runs", "fork", first, "--at", "2", "--change", "2=10").strip()
    worker = cli.working()
    assert cli.lines("runs", "tail", forked)[-1]["entry"]["result"] == {"number": 20}
    assert cli.lines("runs", "diff", first, forked)[0]["same"] == 1
    assert stop(worker)[0] == 0


def test_changed_code_blocks_and_is_migrated(cli: Cli) -> None:
    worker = cli.working()
    run = start(cli, "changing", "3")
    waits(cli, run)
    stop(worker)
    cli.ok("send", run, "go")
    worker = cli.working(APP_VERSION="2")
    cli.until(lambda: cli.status(run) == "blocked")
    text = cli.ok("runs", "show", run)
    assert "agent-changed" in text
    assert "expected" in text
    doctor = cli("doctor")
    assert doctor.returncode == 1
    assert "1 runs are blocked" in doctor.stdout
    assert cli("run", f"{APP}:changing", "3", "--key", "x").returncode == 2  # locked
    stop(worker)
    cli.ok("runs", "resume", run)
    worker = cli.working()  # the old code again
    assert cli.lines("runs", "tail", run)[-1]["entry"]["result"] == 7
    stop(worker)


def test_migrate_that_does_not_replay_exits_5(cli: Cli) -> None:
    process = cli.begin("run", f"{APP}:changing", "3", "--key", "once", "--json")
    assert process.stdout is not None
    run = json.loads(process.stdout.readline())["run"]
    waits(cli, run)
    stop(process)
    cli.ok("send", run, "go")
    blocked = cli("run", f"{APP}:changing", "3", "--key", "once", APP_VERSION="2")
    assert blocked.returncode == 5
    assert "error[agent-changed]" in blocked.stderr
    cli.ok("runs", "resume", run, "--migrate", "--app", APP, APP_VERSION="2")
    mismatch = cli("run", f"{APP}:changing", "3", "--key", "once", APP_VERSION="2")
    assert mismatch.returncode == 5
    assert "error[replay-mismatch]" in mismatch.stderr
    assert "expected:" in mismatch.stderr


def test_schedules(cli: Cli) -> None:
    code = SCHEDULER.format(folder=str(Path(APP).parent))
    subprocess.run([sys.executable, "-c", code, str(cli.data)], env=cli.environment(), check=True, timeout=15)
    found = cli.lines("schedules", "list")[0]
    assert (found["name"], found["cron"], found["timezone"], found["input"]) == (
        "nightly", "0 3 * * *", "Europe/Berlin", 4,
    )  # fmt: skip
    assert "nightly" in cli.ok("schedules", "list")
