"""How worker processes of isolated agents are run, as values."""

from __future__ import annotations

from typing import Literal

import msgspec

from perdure.core.errors import DefinitionError

Isolation = Literal["none", "process", "namespace"]
MIB = 1024 * 1024


class WorkerRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where agent code runs, and within which bounds.

    Attributes:
        isolation: ``none``: in the runtime's own process; ``process``: in worker processes without database, keys and secrets;
            ``namespace``: in such processes behind a wall: they do not see the runtime's files and processes either.
        min: worker processes that are kept.
        max: worker processes at most; one more may try a run that is blamed for the end of a worker.
        concurrency: runs that execute at once in one worker; waiting ones do not count. With 1 no two runs share memory at a time.
        memory_bytes: of one worker: what it may allocate, and what it may have resident.
        silence_ms: how long a worker's loop may give no sign of life, because agent code blocks it, before it is killed.
        start_ms: how long a worker may take to start: the import of its app.
        idle_ms: how long a worker above ``min`` stays without runs.
        grow_ms: how long a run waits for room before another worker is started for it.
        shows: further directories of the host that are seen behind the wall, for reading.
    """

    isolation: Isolation = "none"
    min: int = 1
    max: int = 2
    concurrency: int = 100
    memory_bytes: int = 1024 * MIB
    silence_ms: int = 10_000
    start_ms: int = 30_000
    idle_ms: int = 60_000
    grow_ms: int = 100
    shows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max or self.max < 1:
            raise DefinitionError(
                f"`min` and `max` of the workers must be 0 <= min <= max and max >= 1, found {self.min} and {self.max}"
            )
        for name in ("concurrency", "memory_bytes", "silence_ms", "start_ms", "idle_ms", "grow_ms"):
            if getattr(self, name) < 1:
                raise DefinitionError(
                    f"`{name}` of the workers must be positive, found {getattr(self, name)}"
                )
