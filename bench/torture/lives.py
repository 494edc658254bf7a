"""Lives of workers: a warm process forks one after the other and kills each with SIGKILL, when it is told to.

A real process each time, on the real file, with nothing left of the one before but what is on disk; only the imports are
done beforehand. Commands come as lines of JSON on stdin, answers go to stdout:

- ``{"folder": ..., "after_ms": 12.5, "from": "fork" | "ready"}``: fork, wait, kill; what was seen of the life.
- ``{"folder": ..., "rest": true}``: fork, let live until the next line comes, then end it in peace.

``python -m bench.torture.lives PORT RULES``
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.torture import world

# Places on the board: in a transaction, driving, commits of this life (8 bytes).
INSIDE, READY, COMMITS = 0, 1, 8
READY_S_MAX = 30.0  # longer is a hang, and counts as a life that never began
BOARD_BYTES = mmap.PAGESIZE


class Board:
    """A page of memory that outlives the worker: what it was doing when it died."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, BOARD_BYTES)

    def clear(self) -> None:
        self._page[:16] = bytes(16)

    def set(self, place: int, value: int) -> None:
        self._page[place] = value

    def get(self, place: int) -> int:
        return self._page[place]

    def count_commit(self) -> None:
        value = int.from_bytes(self._page[COMMITS : COMMITS + 8], "little") + 1
        self._page[COMMITS : COMMITS + 8] = value.to_bytes(8, "little")

    @property
    def commits(self) -> int:
        return int.from_bytes(self._page[COMMITS : COMMITS + 8], "little")


def _watch(board: Board) -> None:
    """Let the store of this process say on the board whether it is in a transaction."""
    from perdure.runtime import opening
    from perdure.stores.sqlite import SqliteStore

    class Watched(SqliteStore):
        def _commit(self, works: Any) -> Any:
            board.set(INSIDE, 1)
            try:
                return super()._commit(works)
            finally:
                board.set(INSIDE, 0)
                board.count_commit()

    opening.SqliteStore = Watched  # type: ignore[misc]


async def drive(folder: Path, port: int, rules: Path, board: Board) -> None:
    """A life: until SIGTERM, or until it is killed."""
    from perdure import Runtime

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    rulebook, tools = world.rules(rules), [world.shop(port)]
    async with Runtime.open(
        folder, agents=world.AGENTS, settings=world.SETTINGS, toolsets=tools, rules=rulebook
    ):
        board.set(READY, 1)
        await ended.wait()


def _fork(folder: Path, port: int, rules: Path, board: Board) -> int:
    board.clear()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)  # the answers are the parent's
        _watch(board)
        asyncio.run(drive(folder, port, rules, board))
        code = 0
    except BaseException:  # noqa: BLE001 - told, and the exit code says so: nothing of the parent may run here
        traceback.print_exc()
    finally:
        os._exit(code)


def _await_ready(child: int, board: Board) -> int | None:
    """Wait until it drives; its status if it ended before."""
    end = time.monotonic() + READY_S_MAX
    while not board.get(READY) and time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return None


def _killed(told: dict[str, Any], port: int, rules: Path, board: Board) -> dict[str, Any]:
    began = time.monotonic()
    child = _fork(Path(told["folder"]), port, rules, board)
    code = _await_ready(child, board) if told["from"] == "ready" else None
    if code is None:
        time.sleep(told["after_ms"] / 1000)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {
        "killed": code == -signal.SIGKILL,
        "code": code,
        "inside": bool(board.get(INSIDE)),
        "ready": bool(board.get(READY)),
        "commits": board.commits,
        "lived_ms": (time.monotonic() - began) * 1000,
    }


def _rested(told: dict[str, Any], port: int, rules: Path, board: Board) -> dict[str, Any]:
    child = _fork(Path(told["folder"]), port, rules, board)
    code = _await_ready(child, board)
    _tell({"ready": code is None})
    sys.stdin.readline()
    if code is None:
        os.kill(child, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code}


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _warm(port: int, rules: Path) -> None:
    """Import beforehand whatever a life imports: a worker says what that is, in a first life on nothing."""
    names = rules / "modules.txt"
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            asyncio.run(_imports(rules / "warm", port, rules, names))
        os._exit(0)
    os.waitpid(child, 0)
    for name in names.read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # what cannot be imported by its name is not needed by it
            importlib.import_module(name)


async def _imports(folder: Path, port: int, rules: Path, names: Path) -> None:
    from perdure import Runtime
    from perdure.core.errors import PerdureError

    async with Runtime.open(
        folder, agents=world.AGENTS, toolsets=[world.shop(port)], rules=world.rules(rules)
    ) as runtime:
        handle = await runtime.start("buyer")
        with contextlib.suppress(PerdureError, TimeoutError):
            await handle.result(1)
        names.write_text("\n".join(sorted(sys.modules)), encoding="utf-8")


def main(port: int, rules: Path) -> None:
    """Live and let die until stdin ends."""
    _warm(port, rules)
    gc.collect()
    gc.freeze()
    board = Board()
    _tell({"warm": True})
    for line in sys.stdin:
        told = json.loads(line)
        _tell((_rested if told.get("rest") else _killed)(told, port, rules, board))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
