"""The whole demo with real processes and a real kill, by its summary; and its errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.demo import main
from perdure.demo.reviewer import SHIPPED_MAILS

pytest.importorskip("perdure.runtime")

TIMEOUT_S = 110


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perdure.demo", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )


def test_the_shipped_mails_killed_half_way(tmp_path):
    done = run_demo("--json", "--fast", "--data", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    mails = len(list(SHIPPED_MAILS.glob("*.eml")))
    assert summary["proved"] is True
    trip = summary["trip"]
    assert trip["proved"] is True
    assert (trip["model_calls"], trip["bookings"], trip["doubtful"]) == (5, {"flight": 1, "hotel": 1}, 0)
    assert trip["served"] >= 10
    refund = summary["refund"]
    assert (refund["proved"], refund["forged"], refund["problems"]) == (True, "grant-action-mismatch", [])
    assert sorted(refund["paid"]) == [["A1", 900], ["A2", 90_000]]
    assert refund["tampered"]
    assert summary["extraction"] == "rules, no model"
    assert summary["reviewer"] == "scripted reviewer"
    assert summary["killed"]["signal"] == 9
    assert 1 < summary["killed"]["steps_recorded"] < summary["killed"]["steps_total"] == 2 * mails + 2
    assert summary["killed"]["pid"] != summary["restarted"]["pid"]
    assert {kind: item["recorded"] for kind, item in summary["steps"].items()} == {
        "list_mails": 1, "read_mail": mails, "extract_mail": mails, "write_ledger": 1,
    }  # fmt: skip
    for item in summary["steps"].values():
        assert (item["repeated_recorded"], item["lost"]) == (0, 0)
        assert item["executed"] == item["recorded"] + item["repeated_unrecorded"]
    assert summary["journal"]["kept_as_of_kill"] is True
    result = summary["result"]
    assert (result["booked"], result["rejected"], result["held"], result["other"]) == (28, 4, 2, 2)
    assert summary["questions"] == result["asked"] == 11
    assert result["totals"]["JPY"] == "183700"
    with Path(summary["files"]["ledger"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28
    assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)
    cents = sum(round(float(row["total"]) * 100) for row in rows if row["currency"] == "EUR")
    assert cents == round(float(result["totals"]["EUR"]) * 100)


def test_a_folder_of_ones_own_with_an_unreadable_mail(tmp_path):
    folder = tmp_path / "mails"
    folder.mkdir()
    for name in ("01-en-plain.eml", "10-pl-latin2.eml", "26-es-contradiction.eml"):
        shutil.copy(SHIPPED_MAILS / name, folder)
    (folder / "gone.eml").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.eml")
    done = run_demo(str(folder), "--json", "--pace", "60")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["proved"] is True
    assert summary["result"]["booked"] == 2
    assert summary["result"]["held"] == 3  # the script knows only the shipped mails
    shutil.rmtree(Path(summary["files"]["data"]).parent)


def test_what_a_person_reads_says_that_no_model_is_used_and_who_answers(tmp_path):
    folder = tmp_path / "mails"
    folder.mkdir()
    shutil.copy(SHIPPED_MAILS / "34-en-wrong-sum.eml", folder)
    done = run_demo(str(folder), "--pace", "100", "--data", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    for text in ("rules, no model", "scripted reviewer", "pauses about 100 ms", "kill -9", "proved:"):
        assert text in done.stdout


def test_usage_errors(tmp_path, capsys):
    assert main([str(tmp_path / "gone")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "has no .eml file" in capsys.readouterr().err
    (tmp_path / "kept").write_text("x")
    assert main(["--data", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--pace", "fast"])
