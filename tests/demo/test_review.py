"""From records to the ledger: duplicates, answers, files; and folders that cannot be used."""

from __future__ import annotations

import csv
import os

import pytest

from perdure.demo.desk import FolderError, mails_in
from perdure.demo.extract import Invoice
from perdure.demo.ledger import as_csv, as_markdown, replace_file, totals_of
from perdure.demo.review import Answer, Settled, compare, question_for, settle, settle_all
from perdure.demo.reviewer import SHIPPED_MAILS, PersonReviewer, ScriptedReviewer


def invoice(source="a.eml", number="1", total=100, **rest):
    rest = {"supplier": "Acme", "currency": "EUR", "date": "2025-03-01", **rest}
    return Invoice(source=source, number=number, total_minor=total, **rest)


def test_an_exact_duplicate_is_rejected_and_a_changed_one_is_doubtful():
    first, same = invoice(), invoice("b.eml", supplier=" ACME ")
    changed, other = invoice("c.eml", total=200), invoice("d.eml", supplier="Other")
    stay, duplicates = compare([first, same, changed, other])
    assert [item.source for item in stay] == ["a.eml", "c.eml", "d.eml"]
    assert "`a.eml`, with 1.00 EUR" in stay[1].doubts[0]
    assert [(item.invoice.source, item.verdict) for item in duplicates] == [("b.eml", "rejected")]


def test_mails_of_which_little_is_known_are_no_duplicates():
    stay, duplicates = compare([invoice(number=""), invoice("b.eml", number="")])
    assert len(stay) == 2
    assert not duplicates


@pytest.mark.parametrize(
    ("body", "verdict", "says"),
    [
        (None, "held", "nobody answered"),
        ("yes", "held", "not understood"),
        ({"decision": "perhaps"}, "held", "not understood"),
        ({"decision": "accept", "colour": "red"}, "held", "not understood"),
        ({"decision": "reject", "note": "fraud"}, "rejected", "fraud"),
        ({"decision": "hold"}, "held", "held"),
        ({"decision": "accept"}, "held", "lacks a currency and a total"),
        ({"decision": "accept", "total": "1.234", "currency": "EUR"}, "held", "was not understood"),
        ({"decision": "accept", "total": "12.00", "currency": "XXX"}, "held", "unknown currency"),
        ({"decision": "accept", "total": "12.00", "currency": "eur"}, "booked", "accepted"),
    ],
)
def test_an_answer_settles_or_holds_but_is_never_guessed(body, verdict, says):
    found = settle(invoice(total=None, currency=""), body)
    assert found.verdict == verdict
    assert says in found.reason
    if verdict == "booked":
        assert (found.invoice.total_minor, found.invoice.currency) == (1200, "EUR")


def test_one_number_of_a_supplier_is_booked_once_whatever_a_person_says():
    doubtful = invoice("0.eml", total=999, doubts=("twice",))
    settled = settle_all([invoice()], [doubtful], [{"decision": "accept"}], [])
    assert [(item.invoice.source, item.verdict) for item in settled] == [
        ("0.eml", "rejected"),
        ("a.eml", "booked"),
    ]


def test_the_ledger_is_sorted_summed_and_safe_to_open(tmp_path):
    evil = invoice("z.eml", "2", 250, supplier="=cmd|' /C calc'!A1", date="2025-01-01")
    credit = invoice("y.eml", "3", -50, date="2025-02-01", kind="credit-note")
    held = Settled(invoice("h.eml", "4"), "held", "later")
    settled = [Settled(invoice(), "booked"), Settled(evil, "booked"), Settled(credit, "booked"), held]
    rows = list(csv.DictReader(as_csv(settled).splitlines()))
    assert [row["source"] for row in rows] == ["z.eml", "y.eml", "a.eml"]
    assert rows[0]["supplier"].startswith("'=")
    assert rows[1]["total"] == "-0.50"
    assert totals_of(settled) == {"EUR": "3.00"}
    markdown = as_markdown(settled)
    assert "- h.eml: later (rules)" in markdown
    assert "cmd\\|" in markdown
    replace_file(tmp_path / "ledger.csv", "old")
    replace_file(tmp_path / "ledger.csv", "new")
    assert [item.name for item in tmp_path.iterdir()] == ["ledger.csv"]
    assert (tmp_path / "ledger.csv").read_text() == "new"


def test_the_scripted_reviewer_knows_the_shipped_mails_only(tmp_path):
    question = question_for(invoice("26-es-contradiction.eml", doubts=("two totals",)))
    assert ScriptedReviewer(SHIPPED_MAILS).answer(question).decision == "accept"
    assert ScriptedReviewer(tmp_path).answer(question).decision == "hold"


def test_a_person_corrects_rejects_and_leaves(tmp_path):
    typed = iter(["what?", "a", "", "usd", "5.00", "r", "q"])
    said: list[str] = []
    person = PersonReviewer(ScriptedReviewer(tmp_path), ask=lambda _: next(typed), say=said.append)
    question = question_for(invoice(doubts=("why",)))
    assert person.answer(question) == Answer("accept", "5.00", "usd", "1", "accepted at the terminal")
    assert "  ? why" in said
    assert person.answer(question).decision == "reject"
    assert person.answer(question).decision == "hold"
    assert person.name == "scripted reviewer"
    assert person.answer(question).decision == "hold"


def test_a_person_who_closes_the_terminal_has_left(tmp_path):
    def closed(_: str) -> str:
        raise EOFError

    person = PersonReviewer(ScriptedReviewer(tmp_path), ask=closed, say=lambda _: None)
    assert person.answer(question_for(invoice())).decision == "hold"


def test_folders_that_cannot_be_used_say_what_to_do(tmp_path):
    with pytest.raises(FolderError, match=r"does not exist; give a folder with \.eml files"):
        mails_in(tmp_path / "gone")
    with pytest.raises(FolderError, match=r"has no \.eml file"):
        mails_in(tmp_path)
    file = tmp_path / "a.txt"
    file.touch()
    with pytest.raises(FolderError, match="is not a folder"):
        mails_in(file)
    (tmp_path / "B.EML").touch()
    (tmp_path / "c.eml").symlink_to("nowhere")
    (tmp_path / "d.eml").mkdir()
    assert mails_in(tmp_path) == ["B.EML", "c.eml"]
    (tmp_path / os.fsdecode(b"\xff.eml")).touch()
    with pytest.raises(FolderError, match="rename the file"):
        mails_in(tmp_path)
