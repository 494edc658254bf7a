"""What a runtime does by itself while it is open: sign the head of the audit log, publish what it uses, look for drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.runtime.auditing import signing
from perdure.runtime.log_keys import LogKeys
from perdure.runtime.rulebook import Rules
from perdure.runtime.usage import Publisher

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime


@asynccontextmanager
async def keeping(runtime: Runtime, keys: LogKeys, rules: Rules, folder: Path) -> AsyncIterator[None]:
    """Do so while this is entered. What drift leads to is signed, too."""
    async with (
        signing(runtime.store, keys, runtime.now_ms, rules.witnesses),
        _task(Publisher(runtime, folder).work(), "perdure-usage"),
    ):
        if rules.drift is None:
            yield
            return
        from perdure.runtime.drift_watch import DriftWatch

        async with _task(DriftWatch(runtime, rules.drift).work(), "perdure-drift"):
            yield


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Work that ends with the block."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
