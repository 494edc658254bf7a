"""The recorder's log, read as it grows: what really happened, by idempotency key."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


class Log:
    """What reached the world since the last :meth:`forget`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.lines: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def read(self) -> None:
        """Take in what is new."""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in whole:
            found = json.loads(line)
            self.lines[found["key"]].append(found)

    def forget(self) -> None:
        """Begin anew."""
        self.read()
        self.lines.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def count(self, key: str) -> int:
        """How often it was done."""
        return len(self.lines.get(key, ()))
