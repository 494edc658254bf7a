"""Documentation that cannot rot unnoticed: links, code blocks, error codes, entries, settings, the state diagram."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from perdure.core.entries import ENTRY_TYPES
from perdure.core.errors import PerdureError
from perdure.core.limits import Settings
from perdure.kernel.machine import diagram

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("bench/*.md")]
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WARNINGS = {"loop-blocked"}  # codes that are logged, not raised


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def classes(kind: type[PerdureError]) -> set[type[PerdureError]]:
    found = {kind}
    for child in kind.__subclasses__():
        found |= classes(child)
    return found


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for match in LINK.finditer(text):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    return dead


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n[a](#head) [b](#none) [c](nowhere.md) ![d](x.png) [e](https://example.org)\n")
    assert dead_links(page, page.read_text()) == ["#none", "nowhere.md", "x.png"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_is_dead(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        compile(block, name_of(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_table_of_errors_is_complete() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    codes = {kind.code for kind in classes(PerdureError) if kind.__module__.startswith("perdure")} | WARNINGS
    assert rows == codes


def test_every_entry_setting_and_word_is_documented() -> None:
    journal = (ROOT / "docs" / "journal.md").read_text(encoding="utf-8")
    missing = [kind.__name__ for kind in ENTRY_TYPES if f"`{kind.__name__}`" not in journal]
    assert missing == []
    settings = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert [item.name for item in fields(Settings) if f"`{item.name}`" not in settings] == []


def test_the_state_diagram_is_drawn_from_the_table() -> None:
    assert diagram() in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_command_is_documented() -> None:
    from perdure.cli.commands import app

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    names = [name for name in app if not name.startswith("-")]
    assert len(names) > 5
    assert [name for name in names if f"`perdure {name}" not in text and f"perdure {name}" not in text] == []
