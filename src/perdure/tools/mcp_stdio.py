"""The pipe to an MCP server that runs as a process here: lines of JSON in both directions.

The server is someone else's program, so everything it does is bounded: long lines, lines that are no messages, what it
writes to stderr, and how long it may take to read and to end. Its whole process group is gone when the pipe is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

from perdure.core.errors import ToolUnreachableError

LINE_BYTES_MAX = 16 * 1024 * 1024  # one message: a large file in base64 fits, a flood does not
GARBAGE_LINES_MAX = (
    1_000  # lines that are no messages: banners are forgiven, a program that logs to stdout is not
)
CHUNK_BYTES = 64 * 1024
STDERR_LINES = 20  # kept for error messages
STDERR_LINE_LENGTH = 400  # characters of each
WRITE_S = 10  # a server that does not read for so long is broken
END_S = 2  # to end after its stdin was closed, and again after SIGTERM
LOOK_S = 0.02  # between looks whether a process has ended
PASSED_ON = ("PATH", "HOME", "LANG")  # what else is in our environment is none of its business

Messages = MemoryObjectReceiveStream[SessionMessage | Exception]
_logger = logging.getLogger(__name__)


class StdioPipe:
    """A server's process; entered, it gives the streams that the SDK's client speaks over.

    Args:
        name: the toolset, for messages.
        command: program and arguments.
        env: what it gets besides ``PATH``, ``HOME`` and ``LANG``.
        ours: our own environment.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], ours: Mapping[str, str]
    ) -> None:
        self._name = name
        self._command = list(command)
        self._env = {key: ours[key] for key in PASSED_ON if key in ours} | dict(env)
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.garbage_lines = 0
        self.fault = ""  # why it is of no use any more

    @property
    def is_broken(self) -> bool:
        """Whether nothing can be asked any more."""
        return bool(self.fault)

    def why(self) -> str:
        """What is wrong with it, with the last lines of its stderr."""
        said = " | ".join(self._stderr)
        fault = self.fault or "it does not answer"
        return f"{fault}; its last words: {said}" if said else fault

    async def __aenter__(self) -> tuple[Messages, _Writer]:
        """Start it.

        Raises:
            ToolUnreachableError: it cannot be started.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                start_new_session=True,
                limit=CHUNK_BYTES,
            )
        except (OSError, ValueError) as error:
            self.fault = f"`{self._command[0]}` cannot be started: {error}"
            raise ToolUnreachableError(f"server `{self._name}`: {self.fault}", toolset=self._name) from error
        self._process = process
        send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        loop = asyncio.get_running_loop()
        self._readers = [loop.create_task(self._read(process, send)), loop.create_task(self._listen(process))]
        return receive, _Writer(self, process)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and everything that it started."""
        process = self._process
        if process is None:
            return
        polite = () if self.is_broken else (None,)
        self.break_down("it was closed")
        if process.stdin is not None:
            process.stdin.close()
        for number in (*polite, signal.SIGTERM):
            if number is not None:
                self._kill(process, number)
            if await _exits(process):
                break
        # Also when it has ended: what it started may live on, and holds the pipes.
        self._kill(process, signal.SIGKILL)
        await process.wait()
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def break_down(self, fault: str) -> None:
        """Take note of the first thing that went wrong."""
        self.fault = self.fault or fault

    def _kill(self, process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    async def _read(
        self, process: asyncio.subprocess.Process, send: MemoryObjectSendStream[SessionMessage | Exception]
    ) -> None:
        """Pass on messages until the server is gone or has gone mad."""
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        buffer = bytearray()
        async with send:
            while not self.is_broken:
                chunk = await process.stdout.read(CHUNK_BYTES)
                if not chunk:
                    await self._ended(process)
                    return
                buffer += chunk
                lines: list[bytearray] = []
                if b"\n" in chunk:
                    *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    message = None if self.is_broken else self._message(bytes(line))
                    if message is not None:
                        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                            await send.send(message)
                if len(buffer) > LINE_BYTES_MAX:
                    self.break_down(f"it wrote a line of more than {LINE_BYTES_MAX} bytes")
        self._kill(process, signal.SIGKILL)

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        """Its stdout is closed: say how it ended, if it did."""
        await asyncio.wait({self._readers[1]}, timeout=END_S)  # its last words are still in the other pipe
        ended = await _exits(process)
        self.break_down(f"it ended with exit code {process.returncode}" if ended else "it closed its stdout")

    def _message(self, line: bytes) -> SessionMessage | None:
        """What a line says; ``None`` where it is no message."""
        if not line.strip():
            return None
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except (ValidationError, RecursionError):
            self.garbage_lines += 1
            if self.garbage_lines == 1:
                _logger.warning("server `%s` writes to stdout what is no message: %.200r", self._name, line)
            if self.garbage_lines > GARBAGE_LINES_MAX:
                self.break_down(
                    f"it wrote more than {GARBAGE_LINES_MAX} lines that are no messages to stdout"
                )
            return None

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the end of what it writes to stderr; never let it block on a full pipe."""
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        rest = ""
        while chunk := await process.stderr.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            self._stderr.extend(line[:STDERR_LINE_LENGTH] for line in lines if line.strip())
            rest = rest[:STDERR_LINE_LENGTH]
        if rest.strip():
            self._stderr.append(rest)


async def _exits(process: asyncio.subprocess.Process) -> bool:
    """Whether a process ends soon. ``Process.wait`` would also wait for whoever inherited its pipes, so this looks."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + END_S
    while process.returncode is None and loop.time() < until_s:
        await asyncio.sleep(LOOK_S)
    return process.returncode is not None


class _Writer:
    """The way in; shaped as the SDK's client wants it."""

    def __init__(self, pipe: StdioPipe, process: asyncio.subprocess.Process) -> None:
        self._pipe = pipe
        self._process = process

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message, and wait until the server has room for it."""
        stdin = self._process.stdin
        if stdin is None or self._pipe.is_broken:
            raise anyio.ClosedResourceError
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            stdin.write(line.encode() + b"\n")
            async with asyncio.timeout(WRITE_S):
                await stdin.drain()
        except TimeoutError:
            self._pipe.break_down(f"it did not read its stdin for {WRITE_S} seconds")
            raise anyio.ClosedResourceError from None
        except (OSError, RuntimeError) as error:
            self._pipe.break_down("it closed its stdin")
            raise anyio.ClosedResourceError from error

    async def aclose(self) -> None:
        """Nothing: the pipe is closed by whoever entered it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
