"""The lock fits the project file, and names only the public package index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NAME = re.compile(r"^([A-Za-z0-9._-]+)\s*([^;]*)")


def wanted(requirement: str) -> tuple[str, frozenset[str]]:
    name, versions = NAME.match(requirement).groups()
    return name.lower(), frozenset(part.strip() for part in versions.split(",") if part.strip())


def locked(item: dict[str, str]) -> tuple[str, frozenset[str]]:
    return wanted(item["name"] + item.get("specifier", ""))


def other_hosts(text: str) -> set[str]:
    return set(re.findall(r"\b(?:https?|file)://[^/\"]*", text)) - {
        "https://pypi.org",
        "https://files.pythonhosted.org",
    }


def test_the_lock_fits_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    (own,) = [package["metadata"] for package in lock["package"] if package["name"] == "perdure"]
    extras = project["project"]["optional-dependencies"].values()
    needed = project["project"]["dependencies"] + [item for extra in extras for item in extra]
    assert {wanted(item) for item in needed} == {locked(item) for item in own["requires-dist"]}, (
        "run `uv lock`"
    )
    for group, items in project["dependency-groups"].items():
        assert {wanted(item) for item in items} == {locked(item) for item in own["requires-dev"][group]}, (
            "run `uv lock`"
        )


def test_the_lock_names_only_the_public_index() -> None:
    assert other_hosts((ROOT / "uv.lock").read_text(encoding="utf-8")) == set()
    assert other_hosts('url = "http://localhost:8080/x" "file:///wheels"') == {
        "http://localhost:8080",
        "file://",
    }
