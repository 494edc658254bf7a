"""One attempt of a program as a process group: started, watched, stopped, and found again after our own crash."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from perdure.core.errors import DefinitionError

LINE_BYTES_MAX = 64 * 1024  # a longer line is shown in pieces
TAIL_CHARACTERS = 16 * 1024  # of the last output, for error messages
LOG_BYTES_MAX = 16 * 1024 * 1024  # of output kept on disk for one attempt
READ_BYTES = 64 * 1024
KILL_MS = 2_000  # the kernel needs no longer to end what was killed
LOOK_S = 0.01
RECORD = "attempt.json"
LAUNCHER = Path(__file__).with_name("launch.py")
Show = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. ``log`` takes its output; its folder also holds the record by which the process is found again."""

    command: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``reason`` says it in words; ``output_tail`` is the last of its output."""

    code: int
    reason: str
    output_tail: str
    last_line: str


@dataclass(slots=True)
class _Output:
    """What is kept of the output."""

    log: IO[bytes]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    last_line: str = ""
    size_bytes: int = 0

    def keep(self, stream: str, line: bytes) -> str:
        text = line.decode(errors="replace").rstrip("\r\n")
        if self.size_bytes < LOG_BYTES_MAX:
            self.log.write(line if line.endswith(b"\n") else line + b"\n")
            self.log.flush()
        elif self.size_bytes - len(line) < LOG_BYTES_MAX:
            self.log.write(f"[cut: more than {LOG_BYTES_MAX} bytes of output]\n".encode())
            self.log.flush()
        self.size_bytes += len(line)
        self.tail.append(text)
        if stream == "stdout" and text.strip():
            self.last_line = text
        return text


class Process:
    """A running attempt. Made by :meth:`start`."""

    def __init__(self, launch: Launch, process: asyncio.subprocess.Process, output: _Output) -> None:
        self.launch = launch
        self.pid = process.pid
        self._process = process
        self._output = output
        self._watching: asyncio.Task[Exit] | None = None

    @classmethod
    async def start(cls, launch: Launch, *, show: Show) -> Process:
        """Start a process in a group of its own that ends with us, also when we are killed (on Linux).

        Raises:
            DefinitionError: there is no such command, or it or its folder cannot be used.
        """
        _check(launch)
        log = launch.log.open("ab")
        command = (sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *launch.command)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=launch.cwd, env=dict(launch.env), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            log.close()
            raise DefinitionError(f"`{launch.command[0]}` cannot be started: {error.strerror}") from error
        started = cls(launch, process, _Output(log))
        started._write_record()
        started._watching = asyncio.get_running_loop().create_task(
            started._watch(show), name=f"perdure-process-{process.pid}"
        )
        return started

    def _write_record(self) -> None:
        record = {"pid": self.pid, "since": _started_at(self.pid)}
        (self.launch.log.parent / RECORD).write_text(json.dumps(record), encoding="utf-8")

    async def _watch(self, show: Show) -> Exit:
        process = self._process
        try:
            await asyncio.gather(
                self._feed(),
                self._read("stdout", process.stdout, show),
                self._read("stderr", process.stderr, show),
            )
            code = await process.wait()
        finally:
            self._output.log.close()
        tail = "\n".join(self._output.tail)[-TAIL_CHARACTERS:]
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Exit(code, reason, tail, self._output.last_line)

    async def _feed(self) -> None:
        stdin = self._process.stdin
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
                show(name, self._output.keep(name, line + b"\n"))
            if len(rest) > LINE_BYTES_MAX:
                show(name, self._output.keep(name, rest))
                rest = b""
        if rest:
            show(name, self._output.keep(name, rest))

    async def wait(self) -> Exit:
        """Until it has ended and all of its output was read."""
        if self._watching is None:
            raise DefinitionError("the process was not started")
        return await asyncio.shield(self._watching)

    async def stop(self, within_ms: int) -> None:
        """Ask the whole group to end, and kill what is left after ``within_ms``. Nothing of the group survives."""
        if self._process.returncode is None:
            _signal_group(self.pid, signal.SIGTERM)
            await self._gone(within_ms)
        _signal_group(self.pid, signal.SIGKILL)
        await self._gone(KILL_MS)
        if self._watching is not None:
            try:
                async with asyncio.timeout(1.0):  # a grandchild in another group may hold the pipes open
                    await asyncio.shield(self._watching)
            except TimeoutError:
                self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _gone(self, within_ms: int) -> None:
        """Until the process has ended. Looked at rather than awaited: asyncio also waits for whoever inherited the pipes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_ms / 1000
        while self._process.returncode is None and loop.time() < until:
            await asyncio.sleep(LOOK_S)


def reap(folder: Path) -> None:
    """Kill what is left of a process group whose runtime died; only if it is really that process (by its start time)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        pid, since = int(record["pid"]), record["since"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if since is not None and _started_at(pid) == since:
        _signal_group(pid, signal.SIGKILL)


def _check(launch: Launch) -> None:
    name = launch.command[0]
    if not launch.cwd.is_dir():
        raise DefinitionError(f"there is no folder `{launch.cwd}` to start the program in")
    found = launch.cwd / name if os.sep in name else shutil.which(name, path=launch.env.get("PATH"))
    if found is None or not Path(found).is_file():
        raise DefinitionError(f"there is no command `{name}`; give its path, or put its folder on PATH")
    if not os.access(found, os.X_OK):
        raise DefinitionError(f"`{name}` is not executable; `chmod +x` it, or start it with its interpreter")


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _started_at(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; ``None`` where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
