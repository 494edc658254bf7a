"""What the package exports is there, and importing the package alone imports nothing else of it."""

from __future__ import annotations

import subprocess
import sys

import perdure


def test_every_exported_name_is_there_and_nothing_else() -> None:
    names = [name for listed in perdure._WHERE.values() for name in listed]
    assert sorted([*names, "__version__"]) == sorted(perdure.__all__)
    for name in perdure.__all__:
        assert getattr(perdure, name) is not None
    assert dir(perdure) == sorted(perdure.__all__)


def test_the_package_alone_imports_nothing_of_itself() -> None:
    code = "import perdure, sys; print([name for name in sys.modules if name.startswith('perdure.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
