"""Documentation that cannot rot unnoticed: links, code blocks, error codes, entries, settings, the state diagram."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import perdure.governance.identity_errors  # noqa: F401 - its codes count, whatever else was imported
from perdure.core.entries import ENTRY_TYPES
from perdure.core.errors import PerdureError
from perdure.core.limits import Settings
from perdure.kernel import actions
from perdure.kernel.machine import diagram

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("bench/*.md"),
    ]
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(
    r"^```python\b([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE
)  # what follows `python`, the code
FENCED = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)
WARNINGS = {"loop-blocked"}  # codes that are logged, not raised


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def classes(kind: type[PerdureError]) -> set[type[PerdureError]]:
    found = {kind}
    for child in kind.__subclasses__():
        found |= classes(child)
    return found


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for match in LINK.finditer(FENCED.sub("", text)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    return dead


def compile_blocks(text: str, name: str) -> None:
    for _, block in BLOCK.findall(text):
        compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run_blocks(text: str, folder: Path) -> list[str]:
    """Run the blocks marked `python run`, each in a process of its own; give the errors."""
    script = "import ast, asyncio, inspect, sys; code = compile(sys.stdin.read(), 'block', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
    script += (
        "found = eval(code, {'__name__': '__main__'})\nif inspect.iscoroutine(found): asyncio.run(found)"
    )
    failed = []
    for mark, block in BLOCK.findall(text):
        if mark.split()[:1] == ["run"]:
            done = subprocess.run(
                [sys.executable, "-c", script],
                input=block,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
            if done.returncode:
                failed.append(done.stderr)
    return failed


def commands(app: object, name: str) -> Iterator[str]:
    for word in app:
        if not word.startswith("-"):
            nested = list(commands(app[word], f"{name} {word}"))
            yield from nested or [f"{name} {word}"]


def missing_commands(app: object, text: str) -> list[str]:
    return [
        name
        for name in commands(app, "perdure")
        if not re.search(rf"^### .*`{name}(?![\w-])", text, re.MULTILINE)
    ]


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n[a](#head) [b](#none) [c](nowhere.md) ![d](x.png) [e](https://example.org)\n")
    assert dead_links(page, page.read_text()) == ["#none", "nowhere.md", "x.png"]
    page.write_text("```sh\n# comment\n```\n[a](#comment)\n")
    assert dead_links(page, page.read_text()) == ["#comment"]
    with pytest.raises(SyntaxError):
        compile_blocks("```python run\nnot python ((\n```\n", "page.md")
    good = "```python run\nimport asyncio\nawait asyncio.sleep(0)\n```\n"
    assert run_blocks(good + "```python\n1 / 0\n```\n", tmp_path) == []
    assert "ZeroDivisionError" in run_blocks(good + "```python run\n1 / 0\n```\n", tmp_path)[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_is_dead(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    compile_blocks(page.read_text(encoding="utf-8"), name_of(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_marked_run_runs(page: Path, tmp_path: Path) -> None:
    assert run_blocks(page.read_text(encoding="utf-8"), tmp_path) == []


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
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert diagram() in page
    assert actions.diagram() in page


def test_every_command_is_documented() -> None:
    from perdure.cli.commands import app

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert len(list(commands(app, "perdure"))) > 5
    assert missing_commands(app, text) == []
    assert missing_commands(app, text.replace("### `perdure runs show", "### `perdure runs shown")) == [
        "perdure runs show"
    ]
