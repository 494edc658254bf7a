"""Executes Python code as ``__main__`` of an interpreter that is warm already. Runs behind the wall."""

from __future__ import annotations

import atexit
import random
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable

HELPERS = ("linux", "landlock", "root", "files", "sandbox", "execute")


def execute(code: str, met: Callable[[BaseException], int], place: str = "/workspace") -> int:
    """Do what an interpreter does with a script, from its first line to its exit code."""
    random.seed()  # its state was forked
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),
        open(1, "w", closefd=False),
        open(2, "w", closefd=False),
    )
    sys.argv = ["<action>"]
    sys.path[:] = [place, *(path for path in sys.path if not path.startswith("/proc/"))]
    for name in HELPERS:
        sys.modules.pop(name, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    result = _run(code, module, met)
    try:
        threading._shutdown()  # type: ignore[attr-defined] # what the interpreter itself does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        result = (
            result or met(error) or 120
        )  # as the interpreter itself does where its output cannot be written
    return result


def _run(code: str, module: types.ModuleType, met: Callable[[BaseException], int]) -> int:
    try:
        exec(compile(code, "<action>", "exec"), module.__dict__)
    except SystemExit as end:
        if end.code is None:
            return 0
        if isinstance(end.code, int):
            return end.code
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        return met(error) or 1
    return 0
