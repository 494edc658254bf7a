"""Where the code of an engine's agents runs: the socket on which workers are heard, and a pool for each app."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from perdure.agents.agent import Agent
from perdure.core.errors import RequestInvalidError, SandboxUnavailableError
from perdure.core.limits import CALLS_OPEN_MAX, Settings
from perdure.core.records import RunRecord
from perdure.core.workers import WorkerRules
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.worker import Worker
from perdure.engines.isolated import wire
from perdure.engines.isolated.host import RemoteHost
from perdure.engines.isolated.link import Link
from perdure.engines.isolated.pool import Pool
from perdure.engines.isolated.process import WorkerApp, WorkerProcess, is_descendant

TOKEN_BITS = 256
SOCKET = "socket"
FAREWELL_S = 1.0


class WorkerPlaces:
    """Implements ``Places``: runs of the agents of these apps have their code in worker processes."""

    def __init__(
        self,
        apps: Sequence[WorkerApp],
        rules: WorkerRules,
        settings: Settings,
        folder: Path,
        bits: Callable[[int], int],
        owner: int,
    ) -> None:
        self._settings = settings
        self._owner = owner

        def token() -> str:
            return f"{bits(TOKEN_BITS):064x}"

        self.pools = [
            Pool(app, rules, folder, token, drain_ms=settings.drain_ms, owner=owner) for app in apps
        ]
        self._by_agent: Mapping[str, Pool] = {name: pool for pool in self.pools for name in pool.app.agents}

    def host(self, worker: Worker, run: RunRecord, agent: Agent) -> Host | None:
        """A host for a run of one of these agents."""
        pool = self._by_agent.get(agent.name)
        return None if pool is None else RemoteHost(worker, run, agent, pool)

    def greet(self, link: Link, hello: wire.Hello) -> wire.Welcome:
        """Let a worker in that was started here, once, if it is what it should be.

        Raises:
            RequestInvalidError: it is not.
        """
        found: tuple[Pool, WorkerProcess] | None = None
        for pool in self.pools:
            for worker in pool.workers:
                if worker.state == "starting" and hmac.compare_digest(
                    worker.token.encode(), hello.token.encode()
                ):
                    found = pool, worker
        if found is None:
            raise RequestInvalidError("the token of that `hello` is unknown, or was used")
        pool, worker = found
        pid, uid = link.peer()
        if uid != self._owner or not is_descendant(pid, worker.pid):
            raise RequestInvalidError(f"process {pid} of user {uid} is not the worker that was started")
        if hello.protocol != wire.PROTOCOL:
            worker.kill(f"it speaks protocol {hello.protocol}, this runtime speaks {wire.PROTOCOL}")
            raise RequestInvalidError(worker.why)
        for name, version in pool.app.agents.items():
            if hello.agents.get(name) != version:
                there = hello.agents.get(name)
                is_there = "not there" if there is None else f"there in version `{there:.80}`"
                worker.kill(
                    f"agent `{name}` is {is_there}; expected version `{version}`, at the top of its module"
                )
                raise RequestInvalidError(worker.why)
        worker.peer = pid
        asyncio.get_running_loop().call_soon(worker.accept, link)
        link.worker = worker
        limit = self._settings.payload_bytes_max
        return wire.Welcome(
            protocol=wire.PROTOCOL,
            frame_bytes_max=2 * limit + wire.FRAME_EXTRA_BYTES + wire.BATCH_BYTES,
            payload_bytes_max=limit,
            calls_open_max=CALLS_OPEN_MAX,
        )


@asynccontextmanager
async def places(
    apps: Sequence[WorkerApp],
    rules: WorkerRules,
    settings: Settings,
    bits: Callable[[int], int],
    *,
    owner: int | None = None,
) -> AsyncIterator[WorkerPlaces]:
    """Workers for apps; ended on leaving.

    Args:
        apps: what to start.
        rules: bounds, for each app.
        settings: of the runtime.
        bits: chance, for tokens.
        owner: the user that workers are; by default this one.

    Raises:
        SandboxUnavailableError: workers cannot be had here.
    """
    if sys.platform != "linux":
        message = f"worker processes are checked with what only Linux has, this is {sys.platform}"
        raise SandboxUnavailableError(f'{message}; set `isolation = "none"`, or run on Linux')
    folder = Path(tempfile.mkdtemp(prefix="perdure-"))  # of mode 0700
    uid = os.getuid() if owner is None else owner
    made = WorkerPlaces(apps, rules, settings, folder, bits, uid)
    loop = asyncio.get_running_loop()
    old = os.umask(0o177)
    try:
        server = await loop.create_unix_server(lambda: Link(made.greet), str(folder / SOCKET))
    finally:
        os.umask(old)
    if uid != os.getuid():
        for path in (folder / SOCKET, folder):
            os.chown(path, uid, uid)
    opened: list[Pool] = []
    try:
        for pool in made.pools:
            opened.append(pool)
            await pool.open()
        yield made
    finally:
        server.close()
        await asyncio.gather(*(pool.close() for pool in opened), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await server.wait_closed()
        shutil.rmtree(folder, ignore_errors=True)
