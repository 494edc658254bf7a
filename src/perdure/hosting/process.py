"""One attempt of a program as a process group: started, watched, stopped, and found again after our own crash.

Without a wall it can reach what this user can.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from perdure.core.errors import DefinitionError, UnavailableError
from perdure.hosting.descendants import KILL_MS, MARK, boot_id, kill_marked, signal_group, started_at
from perdure.ports import WalledProgram

LINE_BYTES_MAX = 64 * 1024  # a longer line is shown in pieces
LAST_LINE_BYTES_MAX = (
    16 * 1024 * 1024
)  # of the last line, which may be the result; a larger one belongs in a file
TAIL_CHARACTERS = 16 * 1024  # of the last output, for error messages
TAIL_LINES = 200  # of which it is made; a trace of a deep stack has fewer
LOG_BYTES_MAX = (
    16 * 1024 * 1024
)  # of output kept on disk for one attempt; a run's log holds at most two of them
READ_BYTES = 64 * 1024
LINGER_MS = 1_000  # how long output is still read when the program has ended and others hold its pipes
RECORD = "attempt.json"
LAUNCHER = Path(__file__).with_name("launch.py")
PASSING = (
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
)  # the machine is short of something for now
Show = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. ``log`` takes its output; its folder also holds the record by which the process is found again."""

    command: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    stdin: bytes = b""
    wall: WalledProgram | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        code: its exit code; the negative number of the signal that ended it.
        reason: the same in words.
        output_tail: the last of its output, both streams, up to ``TAIL_CHARACTERS``.
        last_line: the last line of stdout that is not blank. One over ``LAST_LINE_BYTES_MAX`` is cut behind that, so
            that its size tells.
    """

    code: int
    reason: str
    output_tail: str
    last_line: str


@dataclass(slots=True)
class _Output:
    """What is kept of the output: bounded in memory and on disk."""

    log: IO[bytes]
    size_bytes: int = 0
    is_logged: bool = True
    last_line: bytes = b""
    _line: bytearray = field(default_factory=bytearray)
    _tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def keep(self, stream: str, piece: bytes, *, is_end: bool) -> str:
        """Take a line, or a piece of a long one; give its text."""
        if self.is_logged:
            self._write(piece)
        if stream == "stdout" and is_end and not self._line:  # nearly all lines
            if piece.strip():
                self.last_line = piece[: LAST_LINE_BYTES_MAX + 1]
        elif stream == "stdout":
            self._line += piece[: LAST_LINE_BYTES_MAX + 1 - len(self._line)]
            if is_end:
                if self._line.strip():
                    self.last_line = bytes(self._line)
                self._line.clear()
        text = piece.decode(errors="replace").rstrip("\r\n")
        self._tail.append(text if len(text) <= TAIL_CHARACTERS else text[-TAIL_CHARACTERS:])
        return text

    def _write(self, piece: bytes) -> None:
        self.size_bytes += len(piece) + 1
        if self.size_bytes > LOG_BYTES_MAX:
            piece = f"[cut: more than {LOG_BYTES_MAX} bytes of output]".encode()
            self.is_logged = False
        try:
            self.log.write(piece + b"\n")
            self.log.flush()
        except OSError:  # a full disk: the program's output matters less than that it goes on
            self.is_logged = False

    def tail(self) -> str:
        """The last of the output."""
        return "\n".join(self._tail)[-TAIL_CHARACTERS:]

    def close(self) -> None:
        """Close the log."""
        with contextlib.suppress(OSError):
            self.log.close()


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Says when the process itself has ended; asyncio's ``wait`` also waits for whoever inherited its pipes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=READ_BYTES, loop=loop)
        self.ended = asyncio.Event()

    def process_exited(self) -> None:
        """Called by the loop."""
        super().process_exited()
        self.ended.set()


class Process:
    """A running attempt. Made by :meth:`start`."""

    def __init__(
        self,
        launch: Launch,
        mark: str,
        transport: asyncio.SubprocessTransport,
        protocol: _Protocol,
        output: _Output,
    ) -> None:
        self.launch = launch
        self.pid: int = transport.get_pid()
        self._mark = mark
        self._transport = transport
        self._protocol = protocol
        self._output = output
        self._watching: asyncio.Task[Exit] | None = None

    @classmethod
    async def start(cls, launch: Launch, *, show: Show) -> Process:
        """Start a process in a group of its own that ends with us, also when we are killed (on Linux).

        Args:
            launch: what to start.
            show: takes each line of output (``stdout`` or ``stderr``, text). It must not raise.

        Raises:
            DefinitionError: there is no such command, or it or its folder cannot be used.
            UnavailableError: the machine has no room for it now.
        """
        _check(launch)
        loop = asyncio.get_running_loop()
        mark = f"{boot_id()}.{os.getpid()}.{time.monotonic_ns()}"
        if launch.wall is None:
            launcher: tuple[str, ...] = (sys.executable, "-I", "-S", str(LAUNCHER))
        else:
            launcher = launch.wall.launcher
        command = (*launcher, str(os.getpid()), launch.env.get("LC_CTYPE", ""))
        try:
            # Written before the start: a crash between these lines must not leave a process that no one looks for.
            _write_record(launch, {"boot": boot_id(), "mark": mark})
            log = _open_log(launch.log)
        except OSError as error:
            folder = launch.log.parent
            raise UnavailableError(
                f"`{folder}` cannot be written: {error.strerror}; make room there"
            ) from error
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(loop), *command, *launch.command, cwd=launch.cwd,
                env={**launch.env, MARK: mark}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True,
                pass_fds=() if launch.wall is None else launch.wall.descriptors,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the command or the environment
            log.close()
            raise _not_started(launch, error) from error
        except BaseException:  # cancelled: asyncio has killed what it had started
            log.close()
            raise
        started = cls(launch, mark, transport, protocol, _Output(log))
        record = {"boot": boot_id(), "mark": mark, "pid": started.pid, "since": started_at(started.pid)}
        with contextlib.suppress(OSError):  # the mark alone finds it too
            _write_record(launch, record)
        started._watching = loop.create_task(started._watch(show), name=f"perdure-process-{started.pid}")
        return started

    async def _watch(self, show: Show) -> Exit:
        protocol = self._protocol
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(self._feed()),
                    group.create_task(self._read("stdout", protocol.stdout, show)),
                    group.create_task(self._read("stderr", protocol.stderr, show)),
                ]
                await protocol.ended.wait()
                await asyncio.wait(parts, timeout=LINGER_MS / 1000)
                self._let_go()
        finally:
            self._let_go()
            self._output.close()
        code = self._transport.get_returncode() or 0
        last_line = self._output.last_line.decode(errors="replace").rstrip("\r\n")
        return Exit(code, _reason(code), self._output.tail(), last_line)

    def _let_go(self) -> None:
        """Close our ends of the pipes, whoever still holds the others; input that no one took is dropped."""
        stdin = self._protocol.stdin
        if stdin is not None and stdin.transport.get_write_buffer_size():
            stdin.transport.abort()
        self._transport.close()

    async def _feed(self) -> None:
        stdin = self._protocol.stdin
        if stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may not want its input
            stdin.write(self.launch.stdin)
            await stdin.drain()
        stdin.close()

    async def _read(self, name: str, stream: asyncio.StreamReader | None, show: Show) -> None:
        """Line by line; a line that does not end is shown in pieces, so that nothing grows without bound."""
        rest = b""
        while stream is not None and (data := await stream.read(READ_BYTES)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                show(name, self._output.keep(name, line, is_end=True))
            if len(rest) > LINE_BYTES_MAX:
                piece, rest = _cut(rest)
                show(name, self._output.keep(name, piece, is_end=False))
        if rest:
            show(name, self._output.keep(name, rest, is_end=True))

    async def wait(self) -> Exit:
        """Until it has ended and its output was read; what it started may live on until :meth:`stop`."""
        if self._watching is None:
            raise DefinitionError("the process was not started")
        return await asyncio.shield(self._watching)

    async def stop(self, within_ms: int) -> None:
        """Ask the whole group to end, and kill what is left after ``within_ms``, also what left the group."""
        if not self._protocol.ended.is_set():
            signal_group(self.pid, signal.SIGTERM)
            await self._gone(within_ms)
        signal_group(self.pid, signal.SIGKILL)
        await asyncio.to_thread(kill_marked, self._mark)
        await self._gone(KILL_MS)
        if self._watching is not None:
            await asyncio.wait((self._watching,), timeout=2 * LINGER_MS / 1000)
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _gone(self, within_ms: int) -> None:
        """Until the process has ended, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_ms / 1000):
                await self._protocol.ended.wait()


def reap(folder: Path) -> None:
    """Kill what is left of an attempt whose runtime died, and wait until it is gone; never another process. Blocks.

    Where there is no ``/proc`` (outside Linux) nothing is found.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        boot, mark = str(record["boot"]), str(record["mark"])
        pid, since = record.get("pid"), record.get("since")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if not boot or boot != boot_id():  # process numbers and start times begin anew with the machine
        return
    if isinstance(pid, int) and since is not None and started_at(pid) == since:
        signal_group(pid, signal.SIGKILL)
    kill_marked(mark)


def _check(launch: Launch) -> None:
    name = launch.command[0]
    if not launch.cwd.is_dir():
        raise DefinitionError(
            f"there is no folder `{launch.cwd}` to start the program in; make it or name another"
        )
    found = launch.cwd / name if os.sep in name else shutil.which(name, path=launch.env.get("PATH"))
    if found is None or not Path(found).is_file():
        raise DefinitionError(f"there is no command `{name}`; give its path, or put its folder on PATH")
    if not os.access(found, os.X_OK):
        raise DefinitionError(f"`{name}` is not executable; `chmod +x` it, or start it with its interpreter")


def _not_started(launch: Launch, error: OSError | ValueError) -> DefinitionError | UnavailableError:
    name = launch.command[0]
    if isinstance(error, OSError) and error.errno in PASSING:
        return UnavailableError(f"`{name}` cannot be started now: {error.strerror}")
    what = error.strerror if isinstance(error, OSError) else str(error)
    return DefinitionError(f"`{name}` cannot be started: {what}; check its arguments and variables")


def _write_record(launch: Launch, record: Mapping[str, object]) -> None:
    path = launch.log.parent / RECORD
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(record), encoding="utf-8")
    unfinished.replace(path)  # whole or not at all, also after a crash


def _open_log(path: Path) -> IO[bytes]:
    """The log of a run's attempts; a full one is begun anew."""
    is_full = path.exists() and path.stat().st_size >= LOG_BYTES_MAX
    return path.open("wb" if is_full else "ab")


def _cut(line: bytes) -> tuple[bytes, bytes]:
    """A long line in two, not within a character of UTF-8."""
    for back in range(1, 4):
        if line[-back] >= 0xC0:  # the first byte of a character that may not be whole
            return line[:-back], line[-back:]
    return line, b""


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"signal {-code}"
