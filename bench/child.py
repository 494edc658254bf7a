"""One measurement in a process of its own: ``python -m bench.child SUBJECT MEASURE OPTIONS``.

The last line of the output is the result as JSON. Rivals are imported here and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import speed
from bench.subjects import TABLE, load

TEARDOWN_S_MAX = 15
ERROR_CHARACTERS = 500  # of a message that are kept


async def main(name: str, measure: str, options: dict[str, Any]) -> dict[str, Any]:
    """The result of one measure on one subject."""
    directory = Path(options.pop("directory"))
    if measure != "speed":
        # The other measures need more of a subject than runs: the module of the measure knows how.
        module = importlib.import_module(f"bench.{measure}")
        result: dict[str, Any] = await module.measure(name, directory, **options)
        return result
    subject = load(name)
    gc.collect()
    try:
        await subject.setup(directory)
        result = await speed.measure(subject, **options)
    finally:
        # A rival that cannot stop in time has been measured all the same; the caller ends the process group.
        with suppress(Exception):
            async with asyncio.timeout(TEARDOWN_S_MAX):
                await subject.teardown()
    package = TABLE[name].package
    if package:
        with suppress(importlib.metadata.PackageNotFoundError):
            result["version"] = importlib.metadata.version(package)
    return result


async def tell(name: str, measure: str, options: dict[str, Any]) -> None:
    """Print the result and end at once: loops of rivals may wait for ever for what they have begun."""
    # What cannot be imported or started is a finding to be reported, not a traceback to be lost.
    try:
        outcome = await main(name, measure, options)
    except Exception as error:  # noqa: BLE001
        outcome = {"error": f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]}
    print(json.dumps(outcome), flush=True)
    os._exit(0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    asyncio.run(tell(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
