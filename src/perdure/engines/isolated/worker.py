"""The worker process of Python apps: ``python -m perdure.engines.isolated.worker``; the runtime starts it.

It reads three variables: ``PERDURE_WORKER_SOCKET``, ``PERDURE_WORKER_TOKEN`` and ``PERDURE_WORKER_APP`` (JSON: the import path and the
modules with agents), and, where there is one, ``PERDURE_WORKER_MARK``: a file in which it keeps the number of the run whose code is
executing, so that the right run is blamed if that ends the process.
"""

from __future__ import annotations

import asyncio
import importlib
import mmap
import os
import struct
import sys
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import msgspec

from perdure.agents.agent import Agent
from perdure.core.errors import PerdureError, RequestInvalidError
from perdure.engines.isolated import wire
from perdure.engines.isolated.guest import OUT_OF_MEMORY, Guest

LOST = 70  # the exit code when the runtime is gone, or says what cannot be understood
_NUMBER = struct.Struct("<Q")


class App(msgspec.Struct, frozen=True):
    """Where the agents are.

    Attributes:
        path: the import path.
        modules: those that have agents.
    """

    path: tuple[str, ...]
    modules: tuple[str, ...]


class Mark:
    """Which run's code is executing, in memory that outlives the process."""

    def __init__(self, path: str | None) -> None:
        self.is_kept = path is not None
        self._memory: Any = bytearray(_NUMBER.size)
        if path is not None:
            with Path(path).open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _NUMBER.size)

    def set(self, number: int) -> None:
        """Code of this run begins to execute, or (0) has given the loop back."""
        _NUMBER.pack_into(self._memory, 0, number)

    async def around(self, work: Coroutine[Any, Any, None], number: int) -> None:
        """Await a piece of work, with its mark whenever it executes."""
        await _Marked(self, work, number)


class _Marked:
    def __init__(self, mark: Mark, work: Coroutine[Any, Any, None], number: int) -> None:
        self._mark, self._work, self._number = mark, work, number

    def __await__(self) -> Generator[Any, Any, None]:
        work = self._work
        send: Any = work.send
        value: Any = None
        while True:
            self._mark.set(self._number)
            try:
                waited = send(value)
            except StopIteration:
                return
            finally:
                self._mark.set(0)
            try:
                value = yield waited
                send = work.send
            except BaseException as error:  # noqa: BLE001 - it is passed on into the work
                value, send = error, work.throw


class Client(wire.FrameReader):
    """The worker's side of the connection."""

    def __init__(self, agents: dict[str, Agent], token: str, mark: Mark) -> None:
        super().__init__(wire.HELLO_BYTES_MAX)
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._agents = agents
        self._token = token
        self._mark = mark
        self._welcome: wire.Welcome | None = None
        self._guests: dict[int, Guest] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        super().connection_made(transport)
        versions = {name: agent.version for name, agent in self._agents.items()}
        self.send(wire.Hello(protocol=wire.PROTOCOL, token=self._token, agents=versions, language="python"))

    def take(self, data: bytes) -> None:
        """A frame from the runtime."""
        try:
            self._take(wire.read_downward(data))
        except RequestInvalidError as error:
            sys.stderr.write(f"perdure worker: {error}\n")
            self._end(LOST)

    def _take(self, frame: wire.Downward) -> None:
        match frame:
            case wire.Start():
                self._start(frame)
            case wire.Ping(id=number):
                self.send(wire.Pong(id=number))
            case wire.Welcome():
                self._welcome = frame
                self.bytes_max = frame.frame_bytes_max
            case wire.Stop():
                self._end(0)
            case _:
                guest = self._guests.get(frame.run)
                if guest is not None:  # one that was forgotten may still be told something
                    self._tell(guest, frame)

    def _tell(self, guest: Guest, frame: wire.Downward) -> None:
        match frame:
            case wire.Answer() | wire.Fired() | wire.Cancel() | wire.Forked():
                self._executing(guest, lambda: guest.take(frame))
            case wire.StepBegin():
                guest.begin_step(frame, self._mark.around)
            case wire.StepCancel():
                guest.cancel_step(frame)
            case wire.Drop():
                del self._guests[frame.run]
                self._executing(guest, guest.close)

    def _start(self, frame: wire.Start) -> None:
        agent = self._agents.get(frame.agent)
        if agent is None or self._welcome is None:
            raise RequestInvalidError(f"agent `{frame.agent:.200}` is not here")
        guest = self._guests[frame.run] = Guest(frame, agent, self.send, self._welcome)
        try:
            self._executing(guest, guest.begin)
        except PerdureError as error:  # the runtime has read the same input with the same hints
            problem = wire.Problem(error.code, error.message)
            self.send(wire.Ran(run=frame.run, seq=frame.seq, do=(wire.Error(error=problem),)))

    def _executing(self, guest: Guest, work: Any) -> None:
        self._mark.set(guest.number)
        try:
            work()
        finally:
            self._mark.set(0)

    def lose(self, why: str) -> None:
        """The runtime is gone."""
        sys.stderr.write(f"perdure worker: {why}\n")
        self._end(LOST)

    def _end(self, code: int) -> None:
        if not self.over.done():
            self.over.set_result(code)


def agents_of(app: App) -> dict[str, Agent]:
    """The agents of an app, by name."""
    sys.path[:] = [*app.path, *(item for item in sys.path if item not in app.path)]
    found: dict[str, Agent] = {}
    for name in app.modules:
        for item in vars(importlib.import_module(name)).values():
            if isinstance(item, Agent) and item.handler is not None:
                found[item.name] = item
    return found


async def serve(path: str, token: str, app: App, mark: Mark) -> int:
    """Work until the runtime says stop or is gone; the exit code."""
    agents = agents_of(app)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_unix_connection(lambda: Client(agents, token, mark), path)
    return await client.over


def main() -> None:
    """Read the variables, forget them, and work."""
    variables = os.environ
    path, token = variables.pop("PERDURE_WORKER_SOCKET"), variables.pop("PERDURE_WORKER_TOKEN")
    app = msgspec.json.decode(variables.pop("PERDURE_WORKER_APP"), type=App)
    mark = Mark(variables.pop("PERDURE_WORKER_MARK", None))
    try:
        code = asyncio.run(serve(path, token, app, mark))
    except MemoryError:
        code = OUT_OF_MEMORY
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of steps may never end


if __name__ == "__main__":
    main()
