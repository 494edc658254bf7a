"""The fifteen attempts, and what counts as refused. Stands alone: it runs in environments without Perdure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ATTEMPTS = {
    1: "arguments changed after the approval",
    2: "tool changed after the approval",
    3: "the same approval used again",
    4: "two workers use one approval at once",
    5: "approval used a year later",
    6: "process killed while it waits",
    7: "process killed after the effect, before it is recorded",
    8: "two decisions from two channels",
    9: "who asked for it approves it",
    10: "an identical second action",
    11: "the person answers after the client is gone",
    12: "the action is a sub-agent's",
    13: "an approval made without any key",
    14: "approved after it was rejected",
    15: "the model says that it is approved",
}
YEAR_S = 366 * 86_400
REFUSED, ACCEPTED, NOT_APPLICABLE = "refused", "accepted", "not applicable"


class Effects:
    """What was really done, in a file that a killed process leaves behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, what: str) -> None:
        with self._path.open("a") as file:
            file.write(what + "\n")

    def all(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


def killed(work: Callable[[], object]) -> None:
    """Do it in a process that ends without any clean-up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(9)
    os.waitpid(child, 0)


@contextmanager
def a_year_later() -> Iterator[None]:
    """The clock says that a year has passed."""
    before, before_ns = time.time, time.time_ns
    time.time = lambda: before() + YEAR_S
    time.time_ns = lambda: before_ns() + YEAR_S * 10**9
    try:
        yield
    finally:
        time.time, time.time_ns = before, before_ns


def verdict(is_refused: bool, seen: object) -> dict[str, str]:
    return {"verdict": REFUSED if is_refused else ACCEPTED, "seen": str(seen)[:160]}


def run_all(attempts: dict[int, Callable[[], dict[str, str]]]) -> None:
    """Run each and write a JSON object; an error of the library is a refusal, and is shown."""
    found = {}
    for number in ATTEMPTS:
        try:
            found[number] = attempts[number]()
        except Exception as error:
            found[number] = verdict(True, f"{type(error).__name__}: {error}")
    print(json.dumps(found))
