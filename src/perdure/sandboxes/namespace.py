"""Sandboxes of Linux namespaces: a pool of single-use ones, forked by a zygote and filled up in the background."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import Ending, SandboxJob, SandboxLimits, SandboxOutcome, Tier
from perdure.ports import Door
from perdure.sandboxes.cgroups import Cgroups, Group, group_name
from perdure.sandboxes.seccomp import program

INSIDE = Path(__file__).parent / "inside" / "zygote.py"
READY_MS = (
    10_000  # for a sandbox to be made: they take a few milliseconds; a machine that needs this long is stuck
)
AFTER_MS = 2_000  # for the kernel to end a sandbox that was killed
READ_BYTES = 65_536
ADDRESS_BYTES = (
    4 << 30
)  # of each process, over what it may use: interpreters reserve much that they never touch
UNPRIVILEGED = 65_534  # who a zygote is that root starts


class _Spare:
    """One sandbox that waits for its job."""

    def __init__(self, channel: socket.socket, handle: int, group: Group | None) -> None:
        self.channel = channel
        self.group = group
        self.handle = handle  # a pid descriptor of its first process: killing that ends all of it

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def close(self) -> None:
        """End it and let go of it."""
        self.kill()
        self.channel.close()
        os.close(self.handle)


class NamespaceSandboxes:
    """Implements ``Sandboxes`` with namespaces, a seccomp filter and resource limits.

    Args:
        limits: of every sandbox; a job may ask for a shorter time and less output.
        spare: how many are kept ready.
        python: the interpreter inside; by default the system's.
    """

    tier: Tier = "namespace"
    parts: Mapping[str, str] = {}

    def __init__(
        self, limits: SandboxLimits | None = None, *, spare: int = 4, python: str | None = None
    ) -> None:
        self._limits = limits or SandboxLimits()
        self._wanted = spare
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asked = 0
        self._arrived = asyncio.Event()
        self._problem = ""
        self._groups: Cgroups | None = None
        self._spare: deque[_Spare] = deque()
        self._entering = asyncio.Lock()
        self._admitting: set[asyncio.Task[None]] = set()

    # -- the pool
    async def open(self) -> None:
        """Start the zygote, and prove with a real job that its sandboxes work here.

        Raises:
            SandboxUnavailableError: they do not.
        """
        if sys.platform != "linux":
            raise SandboxUnavailableError(
                f"namespaces are a thing of Linux, this is {sys.platform}; use tier `remote`"
            )
        groups = Cgroups(self._limits, group_name())
        self._groups = groups if await asyncio.to_thread(groups.open) else None
        self._start()
        try:
            found = await self.run(SandboxJob(code="print(6 * 7)"))
        except BaseException:
            await self.close()
            raise
        if found.stdout != b"42\n":
            await self.close()
            said = found.stderr.decode(errors="replace")[-300:]
            raise SandboxUnavailableError(f"a sandbox was made and did not work ({found.ending}): {said}")

    def _start(self) -> None:
        python = self._python or _interpreter()
        ours, theirs = socket.socketpair()
        limits = self._limits
        config = {
            **msgspec.to_builtins(limits),
            "read_only": _shown(python),
            "filter": program().hex(),
            "address_bytes": max(ADDRESS_BYTES, limits.memory_bytes),
        }
        config = {**{name: getattr(limits, name) for name in limits.__struct_fields__}, **config}
        who: dict[str, Any] = {}
        if os.getuid() == 0:  # a user namespace of root's own would still own root's files
            who = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
        arguments = [python, "-I", "-S", "-B", str(INSIDE), str(theirs.fileno()), json.dumps(config)]
        with theirs:
            self._process = subprocess.Popen(
                arguments, pass_fds=[theirs.fileno()], env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True, **who,
            )  # fmt: skip
        ours.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._arrive)
        self._fill()

    def _fill(self) -> None:
        while self._control is not None and len(self._spare) + self._asked < self._wanted:
            self._ask()

    def _ask(self) -> None:
        if self._control is not None:
            self._control.send(b"S")
            self._asked += 1

    def _arrive(self) -> None:
        """The zygote has forked one, or is gone."""
        if self._control is None:
            return
        try:
            data, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_LEN(8))
        except (BlockingIOError, ConnectionError):
            return
        found = array.array("i")
        for _, _, part in ancillary:
            found.frombytes(part[: len(part) - len(part) % 4])
        if data != b"S" or len(found) != 2:
            self._lost()
            return
        task = asyncio.get_running_loop().create_task(self._admit(socket.socket(fileno=found[0]), found[1]))
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)

    async def _admit(self, channel: socket.socket, handle: int) -> None:
        """Put a fresh sandbox under its limits, and let it build its wall."""
        group = None
        try:
            if self._groups is not None:  # takes milliseconds on some machines
                async with self._entering:
                    group = await asyncio.to_thread(self._groups.enter, handle)
        except OSError as error:  # a limit that cannot be set is a wall that does not stand
            self._problem = f"the limits of a sandbox cannot be set: {error}"
        spare = _Spare(channel, handle, group)
        self._asked -= 1
        if self._problem or self._control is None:
            self._let_go(spare)
        else:
            spare.channel.setblocking(False)  # noqa: FBT003 - the standard library's own
            spare.channel.send(b"G")
            self._spare.append(spare)
        self._arrived.set()

    def _lost(self) -> None:
        process = self._process
        said = b""
        if process is not None and process.stderr is not None:
            process.kill()
            said = process.stderr.read()[-600:]
        self._problem = said.decode(errors="replace").strip().rsplit("\n", 1)[-1] or "the zygote ended"
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        self._arrived.set()

    async def _take(self) -> _Spare:
        """A sandbox that is ready."""
        async with asyncio.timeout(READY_MS / 1000):
            while not self._spare:
                if self._problem or self._control is None:
                    raise SandboxUnavailableError(
                        f"no sandbox can be made: {self._problem or 'the pool is closed'}"
                    )
                if not self._asked:
                    self._ask()
                self._arrived.clear()
                await self._arrived.wait()
            spare = self._spare.popleft()
            said = await asyncio.get_running_loop().sock_recv(spare.channel, 4_096)
        if said[:1] != b"R":
            self._let_go(spare)
            text = said[1:].decode(errors="replace").strip().rsplit("\n", 1)[-1]
            raise SandboxUnavailableError(f"the wall could not be built: {text or 'its first process ended'}")
        return spare

    async def close(self) -> None:
        """Stop the zygote and every sandbox."""
        control, self._control = self._control, None
        await asyncio.gather(*self._admitting, return_exceptions=True)
        while self._spare:
            self._let_go(self._spare.popleft())
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            if process.stderr is not None:
                process.stderr.close()
            await asyncio.to_thread(process.wait)
        if self._groups is not None:
            await self._groups.close()

    def _let_go(self, spare: _Spare) -> None:
        spare.close()
        if spare.group is not None and self._groups is not None:
            self._groups.leave(spare.group)

    # -- one job
    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a fresh sandbox (see the port)."""
        if doors:
            raise SandboxUnavailableError("sandboxes of namespaces have no doors yet")
        spare = await self._take()
        try:
            return await _Use(spare, job, limits or self._limits, self._fill).outcome()
        finally:
            self._let_go(spare)
            self._fill()


class _Use:
    """One job in one sandbox."""

    def __init__(
        self, spare: _Spare, job: SandboxJob, limits: SandboxLimits, begun: Callable[[], None]
    ) -> None:
        self._spare = spare
        self._job = job
        self._limits = limits
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._written: dict[int, bytearray] = {}
        self._open = 0
        self._over = asyncio.Event()
        self._ending: Ending = "ended"
        self._told = bytearray()

    async def outcome(self) -> SandboxOutcome:
        """Hand it over, and gather what it writes until it ends."""
        pipes = [os.pipe() for _ in range(2)]
        reading = [reader for reader, _ in pipes]
        source = (
            await asyncio.to_thread(_source, self._job.stdin)
            if self._job.stdin
            else os.open(os.devnull, os.O_RDONLY)
        )
        began = self._loop.time()
        try:
            await self._hand_over([source, *(writer for _, writer in pipes)])
        finally:
            for descriptor in (source, *(writer for _, writer in pipes)):
                os.close(descriptor)
        for descriptor in reading:
            os.set_blocking(descriptor, False)
            self._written[descriptor] = bytearray()
            self._watch(descriptor, self._read)
        self._watch(self._spare.channel.fileno(), self._hear)
        self._begun()
        try:
            await self._until_over()
        finally:
            for descriptor in (*reading, self._spare.channel.fileno()):
                self._loop.remove_reader(descriptor)
            for descriptor in reading:
                os.close(descriptor)
        return self._made(reading, (self._loop.time() - began) * 1000)

    async def _hand_over(self, descriptors: list[int]) -> None:
        job = self._job
        data = msgspec.json.encode({"code": job.code, "argv": list(job.argv), "env": dict(job.env)})
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._spare.channel.sendmsg([struct.pack("I", len(data))], rights)
        await self._loop.sock_sendall(self._spare.channel, data)

    async def _until_over(self) -> None:
        try:
            async with asyncio.timeout(self._limits.wall_ms / 1000):
                await self._over.wait()
        except TimeoutError:
            self._stop("wall-time")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AFTER_MS / 1000):
                    await self._over.wait()

    def _watch(self, descriptor: int, read: Callable[[int], None]) -> None:
        self._open += 1
        self._loop.add_reader(descriptor, read, descriptor)

    def _end(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._open -= 1
        if not self._open:
            self._over.set()

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end(descriptor)
            return
        found = self._written[descriptor]
        found += data[: max(0, self._limits.output_bytes + 1 - len(found))]
        if len(found) > self._limits.output_bytes:
            self._stop("output")

    def _hear(self, descriptor: int) -> None:
        try:
            data = self._spare.channel.recv(4_096)
        except (BlockingIOError, ConnectionError):
            data = b""
        self._told += data
        if not data or self._told.endswith(b"\n"):
            self._end(descriptor)

    def _stop(self, why: Ending) -> None:
        if self._ending == "ended":
            self._ending = why
        self._spare.kill()

    def _made(self, reading: list[int], wall_ms: float) -> SandboxOutcome:
        told: dict[str, Any] = {}
        with contextlib.suppress(msgspec.DecodeError):
            told = msgspec.json.decode(bytes(self._told)) if self._told else {}
        code = told.get("exit")
        ending = self._ending
        if ending == "ended":
            ending = _ending(code, float(told.get("cpu_ms", 0.0)) >= self._limits.cpu_ms)
        if (
            ending in ("signal", "lost")
            and self._spare.group is not None
            and self._spare.group.is_out_of_memory
        ):
            ending = "memory"
        limit = self._limits.output_bytes
        written = [bytes(self._written[descriptor][:limit]) for descriptor in reading]
        return SandboxOutcome(
            ending=ending,
            exit_code=code if ending in ("ended", "signal") else None,
            stdout=written[0],
            stderr=written[1],
            cpu_ms=float(told.get("cpu_ms", 0.0)),
            memory_peak_bytes=int(told.get("memory", 0)),
            wall_ms=wall_ms,
            tier="namespace",
        )


def _ending(code: int | None, has_used_up: bool) -> Ending:  # noqa: FBT001
    if code is None:
        return "lost"
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and has_used_up):
        return "cpu-time"
    return "signal" if code < 0 else "ended"


def _source(data: bytes) -> int:
    """A descriptor from which somebody reads these bytes, and then the end."""
    made = os.memfd_create("stdin")
    os.write(made, data)
    os.lseek(made, 0, os.SEEK_SET)
    return made


def _interpreter() -> str:
    """The system's Python, which whoever the zygote is can read; else this one."""
    for path in ("/usr/bin/python3", sys._base_executable):  # type: ignore[attr-defined]
        if shutil.which(path):
            return path
    raise SandboxUnavailableError("there is no Python at /usr/bin/python3 to start sandboxes with")


def _shown(python: str) -> list[str]:
    """What must be shown inside besides the system's directories."""
    prefix = str(Path(python).resolve().parent.parent)
    return [] if prefix in ("/usr", "/") else [prefix]
