"""What is behind each of the services: sandboxes whose files stay between commands, and commands that are really executed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette

from perdure.core.sandbox import MIB, SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome
from perdure.sandboxes.namespace import NamespaceSandboxes

FOLDER = "/workspace"  # the one directory that is kept here
LIMITS = SandboxLimits(
    wall_ms=60_000, cpu_ms=60_000, memory_bytes=768 * MIB, processes=512, open_files=4_096, output_bytes=8 * MIB,
    disk_bytes=256 * MIB, files=300_000,
)  # fmt: skip


class Machines:
    """Sandboxes by name. Faults are put in by tests: each is a number of calls that go wrong."""

    def __init__(self) -> None:
        self.walls = NamespaceSandboxes(LIMITS, spare=1)
        self.files: dict[str, dict[str, SandboxFile]] = {}
        self.made: list[str] = []
        self.deleted: list[str] = []
        self.orders: list[dict] = []
        self.fail_deletes = 0
        self.create_delay_s = 0.0
        self.lose_commands = False
        self.calls = 0
        self._names = itertools.count(1)
        self._running: dict[str, set[asyncio.Task[SandboxOutcome]]] = {}

    def create(self, order: dict) -> str:
        name = f"box{next(self._names)}"
        self.files[name] = {}
        self._running[name] = set()
        self.made.append(name)
        self.orders.append(order)
        return name

    def delete(self, name: str) -> int:
        """The status of an answer."""
        if name not in self.files:
            return 404
        if self.fail_deletes:
            self.fail_deletes -= 1
            return 503
        for task in self._running.pop(name):
            task.cancel()
        del self.files[name]
        self.deleted.append(name)
        return 204

    @property
    def left(self) -> set[str]:
        return set(self.files)

    def write(self, name: str, path: str, data: bytes) -> None:
        inner = self.inner(path)
        self.files[name][inner] = SandboxFile(name=inner, data=data)

    def read(self, name: str, path: str) -> bytes | None:
        found = self.files.get(name, {}).get(self.inner(path))
        return None if found is None else found.data

    def inner(self, path: str) -> str:
        return path.removeprefix(FOLDER).lstrip("/")

    async def command(
        self, name: str, argv: tuple[str, ...], env: dict[str, str] | None = None
    ) -> SandboxOutcome:
        """Execute it; what it leaves stays. The whole ends when the sandbox is deleted."""
        job = SandboxJob(argv=argv, env=env or {}, files=tuple(self.files[name].values()), collects=True)
        task = asyncio.ensure_future(self.walls.run(job))
        self._running[name].add(task)
        try:
            found = await task
        finally:
            task.cancel()
            self._running.get(name, set()).discard(task)
        if name in self.files:
            self.files[name] = {file.name: file for file in found.files}
        return found


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """An application at a free port of loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        server = _Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
