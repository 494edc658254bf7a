"""Each test that the page names is there: a claim whose test was renamed is a claim without a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_row_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "owasp.md").read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert len(named) > 20
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in found, f"{file} has no {name}"


def test_a_row_that_says_yes_names_a_test() -> None:
    text = (ROOT / "docs" / "owasp.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.endswith("| yes |")]
    assert rows
    assert all(NAMED.search(row) for row in rows)


def test_every_requirement_of_the_chapter_has_a_row_and_the_sums_are_right() -> None:
    text = (ROOT / "docs" / "owasp.md").read_text(encoding="utf-8")
    chapter = text[text.index("## AISVS") :]
    rows = re.findall(r"^\| (9\.\d\.\d+) .*\| (yes|partly|no)[^|]*\|$", chapter, re.MULTILINE)
    counts = {1: 3, 2: 11, 3: 9, 4: 4, 5: 7, 6: 3}
    assert [number for number, _ in rows] == [
        f"9.{section}.{number}" for section, last in counts.items() for number in range(1, last + 1)
    ]
    said = re.search(r"Now (\d+) yes, (\d+) partly, (\d+) no", " ".join(chapter.split()))
    assert said is not None
    assert said.groups() == tuple(
        str([word for _, word in rows].count(word)) for word in ("yes", "partly", "no")
    )
