"""A runtime that gets killed: starts a program in FOLDER, says its process number, and waits for its end."""

import asyncio
import os
import sys
from pathlib import Path

from perdure.hosting.process import Launch, Process


async def main(folder: Path, program: str) -> None:
    launch = Launch(
        command=(sys.executable, "-c", program), cwd=folder, env=dict(os.environ), log=folder / "output.log"
    )
    process = await Process.start(launch, show=lambda _, line: print(line, flush=True))
    print(process.pid, flush=True)
    await process.wait()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
