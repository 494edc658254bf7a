"""One worker process: started, connected, watched, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perdure.core.errors import BlockedError, PerdureError, RequestInvalidError, UnavailableError
from perdure.core.workers import WorkerRules
from perdure.engines.isolated import wire
from perdure.engines.isolated.host import RemoteHost
from perdure.engines.isolated.link import Link

log = logging.getLogger("perdure.workers")
LAUNCHER = Path(__file__).with_name("launch.py")
PING_MS = 500  # between signs of life
OUTPUT_BYTES_MAX = 4 * 1024 * 1024  # of a worker's output that goes to the log; what follows is thrown away
OUTPUT_TAIL_BYTES = 2_000  # for the reason of its end
READ_BYTES = 64 * 1024
READ_PAUSE_S = 0.01  # between two reads of a flood: a worker that floods waits, not the runtime
BUFFER_BYTES = 4 * 1024 * 1024  # on the way to a worker, before recorded events wait for their turn
STOP_S = 2.0  # for a worker to end by itself
State = Literal["starting", "ready", "draining", "gone"]
_NUMBER = struct.Struct("<Q")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class WorkerApp:
    """What a worker process is started as.

    Attributes:
        name: for logs.
        command: the program and its arguments.
        agents: the versions that it must have, by the names of the agents.
        env: all of its environment, but for socket, token and mark.
        has_mark: whether it keeps the number of the run that executes.
        prefix: what is put before the command, such as a wall.
    """

    name: str
    command: tuple[str, ...]
    agents: Mapping[str, str]
    env: Mapping[str, str] = field(default_factory=dict)
    has_mark: bool = False
    prefix: tuple[str, ...] = ()


class WorkerProcess:
    """A worker process and the runs in it.

    Args:
        app: what to start.
        rules: its limits.
        token: by which it proves that it is the one that was started.
        folder: private to this user; has the socket, and its mark.
        owner: the user that it is.
        on_change: it is ready, or gone.
    """

    def __init__(
        self,
        app: WorkerApp,
        rules: WorkerRules,
        token: str,
        folder: Path,
        owner: int,
        on_change: Callable[[WorkerProcess], None],
    ) -> None:
        self.app = app
        self.rules = rules
        self.token = token
        self.state: State = "starting"
        self.hosts: dict[int, RemoteHost] = {}
        self.reserved = False  # for a run that is tried alone
        self.idle_since = 0.0
        self.drain_by = 0.0
        self.why = ""
        self.has_worked = False  # something new came of it: its end is no sign of a crash loop
        self.peak_bytes = 0
        self.peer = 0  # the process at the other end: behind a wall, another one than was started
        self._folder = folder
        self._mark = folder / f"mark-{token[:12]}"
        self._on_change = on_change
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = 0
        self._asked: deque[tuple[int, float]] = deque()
        self._pings = 0
        self._blamed: set[RemoteHost] = set()
        self._tail = bytearray()
        self._heard_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    # -- life
    def start(self) -> None:
        """Start the process; it says hello when its app is imported.

        Raises:
            OSError: it cannot be started.
        """
        env = {
            **self.app.env,
            "PERDURE_WORKER_SOCKET": str(self._folder / "socket"),
            "PERDURE_WORKER_TOKEN": self.token,
        }
        if self.app.has_mark:
            self._mark.write_bytes(bytes(_NUMBER.size))
            if self._owner != os.getuid():
                os.chown(self._mark, self._owner, self._owner)
            env["PERDURE_WORKER_MARK"] = str(self._mark)
        command = [
            sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(self.rules.memory_bytes),
            *self.app.prefix, *self.app.command,
        ]  # fmt: skip
        self._process = subprocess.Popen(  # noqa: S603 - what the operator configured
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, close_fds=True,
        )  # fmt: skip
        self._tasks = [
            self._loop.create_task(self._hear(), name="perdure-worker-output"),
            self._loop.create_task(self._watch(), name="perdure-worker-watch"),
        ]

    @property
    def pid(self) -> int:
        """Of the process that was started; 0 before."""
        return 0 if self._process is None else self._process.pid

    def accept(self, link: Link) -> None:
        """It has said hello."""
        self._link, link.worker = link, self
        self.state = "ready"
        self.idle_since = self._loop.time()
        self._on_change(self)

    @property
    def active(self) -> int:
        """How many of its runs are not just waiting."""
        return sum(not host.is_parked for host in self.hosts.values())

    @property
    def is_full(self) -> bool:
        """Whether much of what was sent is still on its way."""
        transport = None if self._link is None else self._link.transport
        return transport is None or transport.get_write_buffer_size() > BUFFER_BYTES

    def send(self, frame: object) -> None:
        """Send a frame."""
        if self._link is not None:
            self._link.send(frame)  # type: ignore[arg-type]

    def adopt(self, host: RemoteHost) -> None:
        """Let a run begin here."""
        self._numbers += 1
        self.hosts[self._numbers] = host
        try:
            host.attach(self, self._numbers)
        except BlockedError as error:
            host.trouble(error)
        except UnavailableError as error:
            host.lose(error)

    def release(self, host: RemoteHost) -> None:
        """A run has left."""
        if self.hosts.get(host.number) is host:
            del self.hosts[host.number]

    # -- frames
    def take(self, frame: wire.Upward) -> None:
        """A frame from it.

        Raises:
            RequestInvalidError: it breaks the protocol.
        """
        if isinstance(frame, wire.Pong):
            self._answered(frame.id)
            return
        if isinstance(frame, wire.Hello):
            raise RequestInvalidError("a second `hello`")
        host = self.hosts.get(frame.run)
        if host is None or host.is_closed:
            if not 0 < frame.run <= self._numbers:
                raise RequestInvalidError(f"run {frame.run} was never here")
            return  # it was dropped while this was on its way
        self.has_worked = self.has_worked or host.is_live
        try:
            _hand_over(frame, host)
        except BlockedError as error:
            host.trouble(error)
        except UnavailableError as error:
            host.lose(error)
        except RequestInvalidError:
            raise
        except PerdureError as error:
            raise RequestInvalidError(str(error)) from error

    # -- signs of life
    async def _watch(self) -> None:
        """Ask for signs of life and look at its memory; a worker that does not start, or is silent or too large, is killed."""
        until = self._loop.time() + self.rules.start_ms / 1000
        while self.state != "gone":
            await asyncio.sleep(PING_MS / 1000)
            if self.state == "starting":
                if self._loop.time() > until:
                    self.kill(f"it did not say hello within {self.rules.start_ms} ms")
                continue
            if self._asked and self._loop.time() - self._asked[0][1] > self.rules.silence_ms / 1000:
                self.kill(f"its loop gave no sign of life for {self.rules.silence_ms} ms")
                return
            resident = _resident_bytes(self.peer or self.pid)
            self.peak_bytes = max(self.peak_bytes, resident)
            if resident > self.rules.memory_bytes:
                self.kill(f"it has {resident} bytes in memory, at most {self.rules.memory_bytes}")
                return
            if not self._asked:
                self._pings += 1
                self._asked.append((self._pings, self._loop.time()))
                self.send(wire.Ping(id=self._pings))

    def _answered(self, number: int) -> None:
        if not self._asked or self._asked[0][0] != number:
            raise RequestInvalidError(f"nobody asked with ping {number}")
        self._asked.popleft()

    async def _hear(self) -> None:
        """Take its output: a bounded part of it into the log, at a bounded speed."""
        process = self._process
        if process is None or process.stdout is None:
            return
        reader = asyncio.StreamReader(limit=READ_BYTES)
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
        try:
            while data := await reader.read(READ_BYTES):
                self._tail = (self._tail + data)[-OUTPUT_TAIL_BYTES:]
                self._heard_bytes += len(data)
                if self._heard_bytes <= OUTPUT_BYTES_MAX:
                    for line in data.decode(errors="replace").splitlines():
                        log.info("worker %d of `%s`: %s", self.pid, self.app.name, line)
                if len(data) > READ_BYTES // 4:
                    await asyncio.sleep(READ_PAUSE_S)
        finally:
            transport.close()
        if self.state == "starting":
            self.kill("it ended before it said hello")

    def said(self) -> str:
        """The last line of its output."""
        return self._tail.decode(errors="replace").strip().rsplit("\n", 1)[-1][-500:]

    # -- the end
    def blame(self, run: int | None) -> None:
        """This run ends the worker."""
        host = None if run is None else self.hosts.get(run)
        if host is not None:
            self._blamed.add(host)

    def suspects(self) -> set[RemoteHost]:
        """The runs that may have ended it: what executed, by its mark, and plain functions in threads; else all that was under way."""
        if self._blamed:
            return self._blamed
        found = {host for host in self.hosts.values() if host.is_trying_in_thread}
        if self.app.has_mark:
            marked = self.hosts.get(_marked(self._mark))
            if marked is not None:
                found.add(marked)
        if found:
            return found
        waiting = [host for host in self.hosts.values() if host.awaited]
        return {*waiting[:1], *(host for host in self.hosts.values() if host.is_trying)}

    def kill(self, why: str) -> None:
        """End it, now."""
        if self.state == "gone":
            return
        self.why = why
        self.state = "gone"
        if self._link is not None and self._link.transport is not None:
            self._link.worker = None
            self._link.transport.abort()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._on_change(self)

    def stop(self) -> None:
        """Let it end by itself: no run is left in it."""
        self.send(wire.Stop())
        if self._link is not None:
            self._link.worker = None
        self.state = "gone"
        self._on_change(self)

    async def gone(self) -> int | None:
        """Wait until the process is gone; its exit code."""
        process = self._process
        if process is None:
            return None
        try:
            code: int | None = await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await asyncio.to_thread(process.wait)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what its steps have left behind
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._mark.unlink(missing_ok=True)
        return code


def _hand_over(frame: wire.Ran | wire.Do | wire.StepEnd | wire.Unreadable, host: RemoteHost) -> None:
    match frame:
        case wire.Ran():
            host.ran(frame)
        case wire.Do(do=done):
            host.did(done)
        case wire.StepEnd():
            host.step_ended(frame)
        case wire.Unreadable():
            raise host.unreadable(frame)


def is_descendant(pid: int, of: int, depth: int = 3) -> bool:
    """Whether a process is another one, or was started by it (behind a wall it is a child)."""
    for _ in range(depth):
        if pid == of:
            return True
        try:
            text = Path(f"/proc/{pid}/stat").read_bytes()
            pid = int(text.rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
    return False


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _marked(path: Path) -> int:
    try:
        found: int = _NUMBER.unpack(path.read_bytes())[0]
    except (OSError, struct.error):
        return 0
    return found
