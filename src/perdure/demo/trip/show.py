"""Runs the trip: starts its runtime, kills the program and then the runtime, starts it again, and counts what was done."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from perdure import ActionState, Runtime

KILL_PROGRAM_AT = 3  # recorded calls: in the middle of the look-ups
KILL_RUNTIME_AT = 7  # right after the flight was booked
WAIT_S_MAX = 60.0
LOOK_S = 0.002
MODEL_CALLS, BOOKINGS = 5, 2  # what the trip needs when nothing goes wrong


class TripError(Exception):
    """The trip could not be brought to its end; the text says what happened."""


class Trip(msgspec.Struct, frozen=True):
    """What happened; times in milliseconds."""

    run: str
    answer: str
    model_calls: int
    lost_model_calls: int
    tool_calls: int
    bookings: dict[str, int]
    served: int
    attempts: int
    doubtful: int
    took_ms: int
    picture: list[str]
    walls: list[str] = []
    why_no_wall: str = ""

    @property
    def is_proved(self) -> bool:
        """Whether every answer was paid for once, but for those under way at the kill, and every booking made once."""
        once = all(count == 1 for count in self.bookings.values()) and len(self.bookings) == BOOKINGS
        return self.model_calls == MODEL_CALLS and once and self.doubtful == 0 and self.served > 0


Say = Callable[[str], None]


async def run_trip(folder: Path, say: Say) -> Trip:
    """Run it in an empty folder.

    Raises:
        TripError: it did not come to its end.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    host = _start(folder)
    try:
        say(
            f"started an agent program that knows nothing of Perdure, under `process(...)` (runtime {host.pid})"
        )
        await _until(folder, host, KILL_PROGRAM_AT)
        program = _program(folder)
        os.killpg(program, signal.SIGKILL)
        say(f"kill -9 {program}, the program, after {KILL_PROGRAM_AT} recorded calls; it is started again")
        await _until(folder, host, KILL_RUNTIME_AT)
        host.kill()
        host.wait()
        say(
            f"kill -9 {host.pid}, the runtime, and the program with it, after {KILL_RUNTIME_AT} recorded calls"
        )
        host = _start(folder)
        say(f"started a new runtime, process {host.pid}")
        output, _ = await asyncio.to_thread(host.communicate, timeout=WAIT_S_MAX)
        if host.returncode != 0:
            raise TripError(f"the second runtime ended with {host.returncode}")
    except subprocess.TimeoutExpired as error:
        raise TripError(f"the trip did not end within {WAIT_S_MAX:g} s; its folder is {folder}") from error
    finally:
        if host.poll() is None:
            host.kill()
            host.wait()
        if host.stdout is not None:
            host.stdout.close()
    return await _counted(folder, output.strip(), round((time.monotonic() - began) * 1000))


def _start(folder: Path) -> subprocess.Popen[str]:
    with (folder / "host.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "perdure.demo.trip.host", str(folder)], stdout=subprocess.PIPE, stderr=log, text=True
        )  # fmt: skip


async def _until(folder: Path, host: subprocess.Popen[str], calls: int) -> None:
    """Until so many calls are recorded."""
    end = time.monotonic() + WAIT_S_MAX
    while not (folder / "data" / "perdure.db").is_file():
        _check(folder, host, end)
        await asyncio.sleep(LOOK_S)
    async with Runtime.open(folder / "data", beside=True) as runtime:
        while True:
            rows = runtime.actions.rows(state=ActionState.SUCCEEDED)
            if len(rows) >= calls:
                return
            _check(folder, host, end)
            await asyncio.sleep(LOOK_S)


def _check(folder: Path, host: subprocess.Popen[str], end: float) -> None:
    if host.poll() is not None or time.monotonic() > end:
        tail = (folder / "host.log").read_text(encoding="utf-8")[-1_000:]
        raise TripError(f"the runtime ended, or nothing happened for {WAIT_S_MAX:g} s: {tail}")


def _program(folder: Path) -> int:
    """The process group of the program, as its runtime noted it down."""
    [record] = (folder / "data" / "programs").glob("*/attempt.json")
    pid: int = msgspec.json.decode(record.read_bytes())["pid"]
    return pid


async def _counted(folder: Path, answer: str, took_ms: int) -> Trip:
    log = (folder / "world.log").read_text(encoding="utf-8").splitlines()
    bookings = Counter(line.split()[1] for line in log if line.startswith("book "))
    async with Runtime.open(folder / "data", beside=True) as runtime:
        [record] = runtime.runs(agent="trip")
        rows, served = runtime.actions.all_of(record.id), runtime.actions.served(record.id)
        states = Counter((row.what, row.state) for row in rows)
        return Trip(
            run=record.id,
            answer=answer,
            model_calls=states["model", ActionState.SUCCEEDED],
            lost_model_calls=states["model", ActionState.LOST],
            tool_calls=states["tool", ActionState.SUCCEEDED],
            bookings=dict(bookings),
            served=len(served),
            attempts=1 + max((item.attempt for item in served), default=0),
            doubtful=states["tool", ActionState.UNKNOWN],
            took_ms=took_ms,
            picture=await asyncio.to_thread(_picture, folder, record.id),
            walls=[
                leaf.record.tier
                for leaf in runtime.audit.records(run=record.id)
                if leaf.record.kind == "sandbox"
            ],
            why_no_wall=_said(folder / "no-wall"),
        )


def _said(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _picture(folder: Path, run: str) -> list[str]:
    """The waterfall, as the command line draws it."""
    command = [sys.executable, "-m", "perdure.cli", "runs", "show", run, "--data", str(folder / "data")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S_MAX)
    lines = shown.stdout.splitlines()
    first = next((index for index, line in enumerate(lines) if line.lstrip().startswith("call ")), len(lines))
    return lines[first:]
