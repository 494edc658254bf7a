"""Makes chance and the time of day of a Python program the same on every attempt. Opt-in; put in front of the program's own path.

Chance comes from a seed of the run; the clock stands at the run's start and moves by a millisecond with each look, and with sleeps. No
cryptography may rely on this chance. Elapsed time (``time.monotonic``), OpenSSL and other processes are left alone.
"""

import builtins
import datetime
import hashlib
import importlib.machinery
import os
import sys
import time
from typing import Any

_seed = os.environ.get("PERDURE_SEED", "").encode()
_now_ns = int(os.environ.get("PERDURE_SEED_MS", "0")) * 1_000_000
_drawn = 0
_sleep = time.sleep
LOOK_NS = 1_000_000


def _urandom(size: int) -> bytes:
    global _drawn
    found = b""
    while len(found) < size:
        found += hashlib.sha256(_seed + b":" + str(_drawn).encode()).digest()
        _drawn += 1
    return found[:size]


def _time_ns() -> int:
    global _now_ns
    _now_ns += LOOK_NS
    return _now_ns


def _time() -> float:
    return _time_ns() / 1e9


def _slept(seconds: Any) -> None:
    global _now_ns
    _now_ns += int(seconds * 1e9)
    _sleep(seconds)


class _Kind(type):
    def __instancecheck__(cls, found: Any) -> bool:
        return isinstance(found, _datetime)

    def __subclasscheck__(cls, found: Any) -> bool:
        return issubclass(found, _datetime)


_datetime = datetime.datetime


class _Steady(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.fromtimestamp(_time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.fromtimestamp(_time(), datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return _datetime.fromtimestamp(_time())


def _install() -> None:
    os.urandom = _urandom
    time.time, time.time_ns, time.sleep = _time, _time_ns, _slept
    _Steady.__name__ = _Steady.__qualname__ = "datetime"
    datetime.datetime = _Steady  # type: ignore[misc]
    import random

    random._urandom = _urandom  # type: ignore[attr-defined]
    random.seed(int.from_bytes(_urandom(32), "big"))
    os.register_at_fork(after_in_child=lambda: random.seed(int.from_bytes(_urandom(32), "big")))


def _next() -> None:
    """The program's own ``sitecustomize``, which ours stands in front of."""
    own = os.path.dirname(os.path.abspath(__file__))
    path = [each for each in sys.path if os.path.abspath(each or ".") != own]
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if found is not None and found.origin is not None:
        with open(found.origin, encoding="utf-8") as file:
            exec(builtins.compile(file.read(), found.origin, "exec"), {"__name__": "sitecustomize"})


if _seed:
    _install()
_next()
