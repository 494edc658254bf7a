"""What ``exec`` was asked for, and what is kept of it so that a run can be gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from perdure.agents.program import Divergence, Kind


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """What ``perdure exec`` was asked for."""

    command: Sequence[str]
    data: Path
    agent: str | None = None
    resume: str | None = None
    replay: str | None = None
    input: str | None = None
    config: Path | None = None
    mcp: Sequence[str] = ()
    upstream: str | None = None
    usd: str | None = None
    tokens: int | None = None
    calls: int | None = None
    hold: bool = False
    divergence: str = "ask"
    kind: str = "command"
    restarts: int = 3
    cwd: Path | None = None
    env: Sequence[str] = ()
    sandbox: Literal["namespace", "process"] | None = None
    steady: bool = False
    show: Sequence[Path] = ()
    write: Sequence[Path] = ()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How a run was started, so that it can be gone on with by its id alone."""

    agent: str
    command: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    kind: Kind
    divergence: Divergence
    restarts: int
    sandbox: Literal["namespace", "process"] | None = None
    steady: bool = False
    shows: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
