"""The code's own shape, checked like any other behaviour."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "perdure"
MODULE_LINES_MAX = 400
# Handed to auditors as one file without dependencies: a seam would make it two, and one of them would be forgotten.
ONE_FILE, ONE_FILE_LINES_MAX = "governance/verify_file.py", 460
FUNCTION_LINES_MAX = 60  # without the docstring: what fits on one screen
MODULES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists())


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def long_functions(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{node.name} ({lines} lines)")
    return found


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 40
    assert long_functions("def f():\n" + "    x = 1\n" * 61) == ["f (61 lines)"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.count("\n")
    most = ONE_FILE_LINES_MAX if name_of(path) == ONE_FILE else MODULE_LINES_MAX
    assert lines <= most, f"{lines} lines; find the seam"
    assert ast.get_docstring(ast.parse(source)), "no docstring opens the module"
    assert long_functions(source) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_room_is_in_the_architecture_page(room: Path) -> None:
    assert f"`{room.name}/`" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
