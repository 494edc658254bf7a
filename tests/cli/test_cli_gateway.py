"""``actions``, ``budgets``, ``tools``, ``models``, ``exec`` and the waterfall, as a person and a program use them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.cli import waterfall
from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState, Served, Spend

APP = '''
from perdure import Budget, Run, agent, tool

@tool(effect="read")
async def look(q: str) -> str:
    """Look something up."""
    return f"seen {q}"

@tool
async def shout(text: str) -> str:
    """Says it loudly."""
    return text.upper() * 200_000

@agent("looker", tools=[look, shout])
async def looker(run: Run, n: int) -> str:
    for index in range(n):
        await run.act("look", q=str(index))
    return await run.act("shout", text="a")

@agent("saver", tools=[look], budget=Budget(calls=1, exhausted="hold"))
async def saver(run: Run) -> str:
    await run.act("look", q="a")
    return await run.act("look", q="b")
'''


def perdure(folder: Path, *arguments: str, code: int = 0, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + (done.stderr if code else "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_the_ledger_of_a_run(folder: Path) -> None:
    perdure(folder, "run", "app.py:looker", "2")
    rows = [json.loads(line) for line in perdure(folder, "actions", "list", "--json").splitlines()]
    assert [(row["call"], row["name"], row["state"]) for row in rows] == [
        (3, "shout", "succeeded"), (2, "look", "succeeded"), (1, "look", "succeeded"),
    ]  # fmt: skip
    run = rows[0]["run"]
    assert "look" in perdure(
        folder, "actions", "list", "--run", run, "--name", "look", "--state", "succeeded"
    )
    shown = perdure(folder, "actions", "show", f"{run}/1")
    assert '{"q":"0"}' in shown
    assert "recovery pure, effect read" in shown
    perdure(folder, "actions", "show", f"{run}/3", "--output", "whole.json")
    assert json.loads((folder / "whole.json").read_text())["value"] == "A" * 200_000
    picture = perdure(folder, "runs", "show", run)
    assert picture.count("█") >= 3
    assert "3 actions, 0 tokens, 0.000000 USD" in picture
    assert "calls" in perdure(folder, "budgets", run)
    assert perdure(folder, "actions", "doubtful") == ""
    assert "action-unknown" in perdure(folder, "actions", "show", f"{run}/99", code=2)
    assert "action-unknown" in perdure(folder, "actions", "show", "nonsense", code=2)
    assert "action-unknown" in perdure(folder, "actions", "settle", f"{run}/1", "happened", code=2)


def test_a_held_action_is_listed_and_a_budget_sets_it_free(folder: Path) -> None:
    run = perdure(folder, "run", "app.py:saver", "--detach").strip()
    worker = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "work", "app.py"], cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            waiting = perdure(folder, "actions", "doubtful", "--json").splitlines()
            if waiting:
                break
        held = json.loads(waiting[0])
        assert (held["state"], held["code"], held["decisions"]) == (
            "held",
            "budget-exhausted",
            ["live", "retry", "fail"],
        )
        assert f"perdure actions settle {run}/2 live|retry|fail" in perdure(folder, "actions", "doubtful")
        assert "usage" in perdure(folder, "budgets", "set", run, code=2)
        assert "usage" in perdure(folder, "budgets", "set", run, "--usd", "a lot", code=2)
        perdure(folder, "budgets", "set", run, "--usd", "0.25", "--calls", "5")
        for _ in range(200):
            if json.loads(perdure(folder, "runs", "show", run, "--json"))["status"] == "completed":
                break
        found = [json.loads(line) for line in perdure(folder, "budgets", run, "--json").splitlines()]
        assert found[0]["budget"]["usd_micros"] == 250_000
        assert found[0]["spent"]["calls"] == 2
    finally:
        worker.terminate()
        worker.wait()


def test_tools_and_models(folder: Path) -> None:
    database = sqlite3.connect(folder / "orders.db")
    database.execute("CREATE TABLE orders (id INTEGER, item TEXT)")
    database.commit()
    database.close()
    (folder / "script.json").write_text('{"turns": [{"text": "ready"}]}')
    (folder / "perdure.toml").write_text(
        '[[upstreams]]\nname = "s"\nwire = "scripted"\npath = "script.json"\nmodels = ["m"]\n'
        '[toolsets.orders]\nkind = "sql"\nurl = "orders.db"\nwrite = true\n'
    )
    listed = [json.loads(line) for line in perdure(folder, "tools", "list", "--json").splitlines()]
    assert {row["name"] for row in listed} == {"orders_tables", "orders_query", "orders_execute"}
    assert "look" in perdure(folder, "tools", "list", "app.py:looker")
    assert json.loads(perdure(folder, "tools", "call", "orders_tables"))["orders"] == {
        "id": "INTEGER",
        "item": "TEXT",
    }
    assert "refused" in perdure(
        folder, "tools", "call", "orders_execute", '{"statement": "DELETE FROM orders"}', code=3
    )
    assert "arguments-invalid" in perdure(folder, "tools", "call", "orders_query", '{"no": 1}', code=2)
    assert json.loads(perdure(folder, "models", "list", "--json"))["name"] == "s"
    asked = json.loads(perdure(folder, "models", "test", "m", "--json"))
    assert (asked["status"], asked["complete"], asked["usd"]) == (200, True, "unknown")
    assert "model-unknown" in perdure(folder, "models", "test", "other", code=2)
    (folder / "perdure.toml").write_text("[nonsense]\n")
    assert "definition-invalid" in perdure(folder, "models", "list", code=2)


def test_exec_says_what_is_wrong(folder: Path) -> None:
    assert "usage" in perdure(folder, "exec", code=2)
    assert "there is no command `no-such-command`" in perdure(folder, "exec", "--", "no-such-command", code=1)
    assert "run-unknown" in perdure(folder, "exec", "--resume", "none", "--", "true", code=2)
    for amount in ("-1", "1e300", "1e9999999", "nan"):
        assert "usage" in perdure(folder, "exec", "--usd", amount, "--", "true", code=2)
    assert "usage" in perdure(folder, "exec", "--mcp", "nothing", "--", "true", code=2)
    assert "usage" in perdure(folder, "exec", "--env", "NOT_SET_ANYWHERE", "--", "true", code=2)


def test_exec_runs_a_program_and_shows_its_output(folder: Path) -> None:
    code = "import os, sys; print('key', os.environ['OPENAI_API_KEY'][:8]); print(sys.stdin.read().strip()[::-1])"
    out = perdure(folder, "exec", "--json", "--input", "abc", "--", sys.executable, "-c", code)
    last = json.loads(out.splitlines()[-1])
    assert last["result"] == "cba"
    assert {"stdout": "key prd-run-"} in [json.loads(line) for line in out.splitlines()]


def test_exec_goes_by_the_policies_of_the_configuration(folder: Path) -> None:
    (folder / "policies").mkdir()
    (folder / "policies" / "none.cedar").write_text("forbid (principal, action, resource);\n")
    (folder / "perdure.toml").write_text(
        '[governance]\npolicies = "policies"\n[[upstreams]]\nname = "u"\nbase_url = "http://127.0.0.1:9"\nmodels = ["m"]\n'
    )
    code = """
import os, urllib.error, urllib.request
asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", b'{"model": "m", "messages": []}',
    {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json"})
try: urllib.request.urlopen(asked)
except urllib.error.HTTPError as error: print(error.headers["x-perdure-code"])
"""
    out = perdure(folder, "exec", "--json", "--", sys.executable, "-S", "-c", code)
    assert json.loads(out.splitlines()[-1])["result"] == "action-denied"


# -- the drawing
def row(call: int, state: ActionState, *, unpriced: int = 0) -> ActionRecord:
    return ActionRecord(
        run="r", call=call, agent="a", what="model", name="gpt", state=state, recovery="pure", effect="read", intended_ms=0,
        intent_seq=1, attempt=1, spent=Spend(tokens=7, usd_micros=1_500_000, unpriced=unpriced),
    )  # fmt: skip


def test_the_waterfall_is_placed_in_time_and_unknown_cost_is_no_zero() -> None:
    started = e.RunStarted(seq=1, at_ms=0, agent="a", version="1", input=e.NULL, chance=1)
    common = {
        "name": "gpt",
        "digest": "",
        "what": "model",
        "request": e.NULL,
        "recovery": "pure",
        "effect": "read",
    }
    journal = [
        started,
        e.ActionIntended(seq=2, at_ms=0, call=1, **common),
        e.ActionEnded(seq=3, at_ms=500, call=1, name="gpt", state="succeeded"),
        e.ActionIntended(seq=4, at_ms=500, call=2, **common),
        e.ActionEnded(seq=5, at_ms=1000, call=2, name="gpt", state="succeeded"),
    ]
    rows = [row(1, ActionState.SUCCEEDED), row(2, ActionState.SUCCEEDED, unpriced=1)]
    served = [Served(run="r", attempt=2, call=1, level="causal", at_ms=5)]
    _, first, second = waterfall.draw(waterfall.lines_of(journal, rows, served), 1000)
    assert first.count("█") == second.count("█") == waterfall.BAR // 2
    assert first.index("█") < second.index("█")
    assert "1.500000" in first
    assert first.endswith("<- causal")
    assert "?" in second
    assert "1.5" not in second
    assert waterfall.attempts(served, rows) == ["attempt 1: live 2", "attempt 2: causal 1"]


def test_a_long_waterfall_is_cut_in_the_middle() -> None:
    lines = [waterfall.Line(n, "tool", "t", n, n + 1, "") for n in range(1, 500)]
    drawn = waterfall.draw(lines, 500)
    assert len(drawn) == waterfall.LINES_MAX + 2
    assert any("439 more calls" in line for line in drawn)


def test_another_command_leaves_an_interrupted_run_alone(folder: Path) -> None:
    wait = "import time, sys; print('begun', flush=True); time.sleep(60 if len(sys.argv) > 1 else 0)"
    (folder / "first.py").write_text(wait)
    command = [
        sys.executable,
        "-m",
        "perdure.cli",
        "exec",
        "--json",
        "--env",
        "X=1",
        "--",
        sys.executable,
        "first.py",
        "long",
    ]
    first = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert first.stdout is not None
    run = next(json.loads(line)["run"] for line in first.stdout if '"run"' in line)
    first.kill()
    first.communicate()
    last = perdure(folder, "exec", "--json", "--", sys.executable, "-c", "print(2)").splitlines()[-1]
    assert json.loads(last)["result"] == "2"
    assert json.loads(perdure(folder, "runs", "show", run, "--json"))["status"] in ("queued", "running")
    refused = perdure(folder, "exec", "--resume", run, "--", "other", code=2)
    assert "first.py long" in refused
    kept = folder / "data" / "programs" / run / "started.json"
    assert kept.stat().st_mode & 0o077 == 0
    again = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "exec", "--json", "--resume", run],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert again.stdout is not None
    assert any('"begun"' in line for line in again.stdout)
    again.kill()
    again.communicate()


@pytest.mark.parametrize("name", ["../../pwned", "a b", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    assert "usage" in perdure(folder, "exec", "--agent", name, "--", "true", code=2)
    assert not list(folder.parent.glob("pwned*"))
