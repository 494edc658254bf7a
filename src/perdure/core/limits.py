"""Limits and settings: everything that can grow has a bound here, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

from perdure.core.errors import DefinitionError

BLOB_BYTES_MIN = 64 * 1024  # larger payloads leave the journal: a row stays within a few SQLite pages
ERROR_TEXT_MAX = 4_000  # characters of a foreign error message kept in the journal
NAME_LENGTH_MAX = 200  # characters of an agent, step, topic, session or idempotency key
CALLS_OPEN_MAX = 10_000  # durable calls one run may have open at once: a gather over more is a bug
TOOL_TIMEOUT_MS = 60_000  # a tool that has not answered by then is in doubt
TOOL_OUTPUT_BYTES_MAX = 256 * 1024  # more than this fills a model's context; the rest becomes an artifact
BATCH_WORKS_MAX = 1_024  # works that share one commit: bounds the latency of the first of them


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may set; durations in milliseconds, sizes in bytes.

    Attributes:
        durability: ``full`` makes each commit survive power loss (``synchronous=FULL``); ``relaxed`` survives a
            crash of the process, but a power loss may take the last commits.
        concurrency: runs that execute at once in this process; waiting runs do not count.
        resident_runs_max: waiting runs that stay in memory, so that they wake without a replay.
        payload_bytes_max: largest single input, result or message.
        lease_ms: how long a worker may be silent before others take over its runs.
        poll_ms: how often a worker looks for work of other processes.
        recoveries_max: crashes in a row, without progress, after which a run is quarantined.
        drain_ms: how long a stopping runtime lets running steps finish.
        block_ms: how long agent code may block the loop before the watchdog names it.
        migrate: resume runs of another code version and check them by replay, instead of blocking them.
    """

    durability: Literal["full", "relaxed"] = "full"
    concurrency: int = 1_000
    resident_runs_max: int = 256
    payload_bytes_max: int = 16 * 1024 * 1024
    lease_ms: int = 10_000
    poll_ms: int = 250
    recoveries_max: int = 5
    drain_ms: int = 10_000
    block_ms: int = 1_000
    migrate: bool = False

    def __post_init__(self) -> None:
        if self.durability not in ("full", "relaxed"):
            message = f"setting `durability` must be `full` or `relaxed`, found `{self.durability}`"
            raise DefinitionError(message, setting="durability")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if value < (0 if item.name in ("resident_runs_max", "drain_ms") else 1):
                raise DefinitionError(
                    f"setting `{item.name}` must be positive, found `{value}`", setting=item.name
                )

    @classmethod
    def of(cls, values: dict[str, str]) -> Self:
        """Settings from text, as an environment gives them; unknown names are refused."""
        known = {item.name: item for item in fields(cls)}
        parsed: dict[str, object] = {}
        for name, text in values.items():
            if name not in known:
                expected = ", ".join(sorted(known))
                raise DefinitionError(f"unknown setting `{name}`; expected one of {expected}", setting=name)
            default = known[name].default
            try:
                parsed[name] = _parse(text, default)
            except ValueError as error:
                message = f"setting `{name}` must be like `{default}`, found `{text}`"
                raise DefinitionError(message, setting=name) from error
        return cls(**parsed)  # type: ignore[arg-type]


def _parse(text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("1", "0", "true", "false"):
            raise ValueError(text)
        return text.lower() in ("1", "true")
    return int(text) if isinstance(default, int) else text
