"""Hosted programs as definitions: a command in any language, and how it is restarted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from perdure.core.errors import DefinitionError

Kind = Literal["command", "agentcore"]
Divergence = Literal["fail", "live", "ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An unmodified agent program.

    Attributes:
        command: the program and its arguments; run without a shell.
        env: variables that it gets beside those of the gateway; no secrets: the gateway puts them in where they are used.
        kind: ``command`` takes its input on stdin and gives its result on stdout; ``agentcore`` answers ``/invocations``.
        restarts_max: restarts in a row, without a new call in between, after which the run fails.
        backoff_ms: the wait before the first restart; doubles after each, up to 30 seconds.
        divergence: what to do when a restarted program asks for something else than before: ``fail``, send it
            ``live``, or ``ask`` a human.
        hold_ms: how long a program may do nothing but wait for a decision before it is stopped and its run parked.
        cwd: the folder that its files are in; its workspace is elsewhere, fresh for each attempt. ``None``: it starts in
            its workspace.
        sandbox: the wall that it runs behind: ``namespace``, or ``process`` for none; by default what the runtime says.
        steady: whether chance and the time of day are the same on every attempt (Python and Node.js).
        shows: files and folders that it may read behind a wall, beside its folder, its interpreter and what its command names.
        writes: folders that it may change behind a wall, beside its workspace.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = "command"
    restarts_max: int = 3
    backoff_ms: int = 500
    divergence: Divergence = "ask"
    hold_ms: int = 30_000
    cwd: str | None = None
    sandbox: Literal["namespace", "process"] | None = None
    steady: bool = False
    shows: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.command or not all(isinstance(item, str) and item for item in self.command):
            raise DefinitionError(
                f"a program's command must be a list of words, found `{self.command!r:.200}`"
            )
        if self.restarts_max < 0 or self.backoff_ms < 0 or self.hold_ms < 1:
            raise DefinitionError(
                "`restarts_max` and `backoff_ms` must not be negative, `hold_ms` must be 1 or more"
            )
        if self.sandbox not in (None, "namespace", "process"):
            raise DefinitionError(
                f"the `sandbox` of a program must be `namespace` or `process`, found `{self.sandbox}`"
            )
        if self.divergence not in ("fail", "live", "ask"):
            raise DefinitionError(f"`divergence` must be `fail`, `live` or `ask`, found `{self.divergence}`")

    @property
    def version(self) -> str:
        """A digest of what decides how it goes on."""
        parts = [list(self.command), sorted(self.env.items()), self.kind]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]
