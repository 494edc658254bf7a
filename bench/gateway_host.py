"""The runtime of the gateway's measures: ``python -m bench.gateway_host FOLDER UPSTREAM``.

Each line of its input is the input of a run of the load; each line of its output the result of one. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from perdure import Runtime, Upstream, process

LOAD = Path(__file__).with_name("gateway_load.py")
KEY = "bench"  # of the run that is killed: the next runtime goes on with it
ANSWER_S = 600.0


async def main(folder: Path, upstream: str) -> None:
    """Serve."""
    command = [sys.executable, "-I", "-S", str(LOAD)]
    agent = process("load", command, restarts_max=5, backoff=0.01)
    model = Upstream(name="fake", base_url=upstream, models=("gpt-4o-mini",), concurrency=256)
    async with Runtime.open(folder, agents=[agent], upstreams=[model]) as runtime:
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            given = json.loads(line)
            handle = await runtime.start("load", line.strip(), idempotency_key=given["name"])
            print(await handle.result(ANSWER_S), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
