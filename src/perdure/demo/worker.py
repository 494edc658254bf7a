"""The worker process of the demo: drives the invoice desk on a data directory until its run has ended.

``python -m perdure.demo.worker DATA FOLDER LEDGER PACE_MS``. Started a second time on the same data directory it goes on
with the same run: the idempotency key finds it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from perdure import Runtime
from perdure.demo.desk import AGENT, invoice_desk

START_KEY = "invoice-desk-demo"
PARENT_CHECK_S = 1.0  # how soon a worker whose demo is gone stops


async def work(data: Path, folder: str, ledger: str, pace_ms: int) -> int:
    """Start the run or go on with it; returns the exit code."""
    parent = os.getppid()
    async with Runtime.open(data, agents=[invoice_desk]) as runtime:
        handle = await runtime.start(AGENT, [folder, ledger, pace_ms], idempotency_key=START_KEY)
        while os.getppid() == parent:
            try:
                await handle.result(timeout=PARENT_CHECK_S)
            except TimeoutError:
                continue
            return 0
    return 1


if __name__ == "__main__":
    data_text, folder_text, ledger_text, pace_text = sys.argv[1:]
    sys.exit(asyncio.run(work(Path(data_text), folder_text, ledger_text, int(pace_text))))
