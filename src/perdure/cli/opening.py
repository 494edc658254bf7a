"""Opening a data directory for a command that looks or sends beside the process that drives the runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from perdure.core.errors import DataDirInvalidError
from perdure.runtime import Runtime
from perdure.runtime.datadir import database_of

T = TypeVar("T")


def existing(data: Path) -> Path:
    """The database of a data directory.

    Raises:
        DataDirInvalidError: there is none.
    """
    path = database_of(data)
    if not path.is_file():
        message = f"`{data}` has no Perdure database; give its directory with `--data` (or PERDURE_DATA), or start a run"
        raise DataDirInvalidError(message, data=str(data))
    return path


def beside(
    data: Path,
    work: Callable[[Runtime], Awaitable[T]],
    *,
    agents: Sequence[Any] = (),
    may_create: bool = False,
) -> T:
    """Do something with a data directory, without driving its runs; it must be there, unless it may be made."""
    if not may_create:
        existing(data)

    async def go() -> T:
        async with Runtime.open(data, agents=agents, beside=True) as runtime:
            return await work(runtime)

    return asyncio.run(go())
