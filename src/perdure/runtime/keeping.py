"""What a runtime does by itself while it is open, beside its runs: sign the head of the audit log, look for drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from perdure.runtime.auditing import signing
from perdure.runtime.log_keys import LogKeys
from perdure.runtime.rulebook import Rules

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime


@asynccontextmanager
async def keeping(runtime: Runtime, keys: LogKeys, rules: Rules) -> AsyncIterator[None]:
    """Do so while this is entered. What drift leads to is signed, too."""
    async with signing(runtime.store, keys, runtime.now_ms, rules.witnesses):
        if rules.drift is None:
            yield
            return
        from perdure.runtime.drift_watch import DriftWatch

        task = asyncio.create_task(DriftWatch(runtime, rules.drift).work(), name="perdure-drift")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
