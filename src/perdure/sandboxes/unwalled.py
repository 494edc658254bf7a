"""No wall at all: a plain process of this user with resource limits. Only where somebody has asked for just that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import (
    Ending,
    SandboxFile,
    SandboxJob,
    SandboxLimits,
    SandboxOutcome,
    Tier,
    narrower,
)
from perdure.ports import Door

READ_BYTES = 65_536
ADDRESS_BYTES = 1 << 30  # over what it may use: interpreters reserve much that they never touch


class UnwalledSandboxes:
    """Implements ``Sandboxes`` without a wall: what is executed can reach whatever this user can.

    Args:
        limits: of every job.
        python: the interpreter; by default this one.
    """

    tier: Tier = "none"
    parts: Mapping[str, str] = {"wall": "missing: a plain process of this user"}

    def __init__(self, limits: SandboxLimits | None = None, *, python: str = sys.executable) -> None:
        self._limits = limits or SandboxLimits()
        self._python = python

    async def open(self) -> None:
        """Nothing is needed."""

    async def close(self) -> None:
        """Nothing is held."""

    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job (see the port)."""
        if doors:
            raise SandboxUnavailableError("without a wall there are no doors; use tier `namespace`")
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="perdure-"))
        try:
            await asyncio.to_thread(_put, place, job.files)
            found = await self._execute(job, chosen, place)
            files, left_out = await asyncio.to_thread(_collected, place, chosen) if job.collects else ((), {})
        finally:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        return SandboxOutcome(**found, tier=self.tier, files=files, left_out=left_out)  # type: ignore[arg-type]

    async def _execute(self, job: SandboxJob, limits: SandboxLimits, place: Path) -> dict[str, object]:
        argv = job.argv or (self._python, "-I", "-S", "-c", job.code)
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(place),
            "TMPDIR": str(place),
            "LANG": "C.UTF-8",
            **job.env,
        }
        began = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, cwd=place, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True, preexec_fn=lambda: _limit(limits),
            )  # fmt: skip
        except FileNotFoundError:
            text = f"perdure: `{argv[0]}` cannot be started: no such file\n".encode()
            return _told("ended", 127, b"", text, began)
        ending: Ending = "ended"

        def stop(why: Ending) -> None:
            nonlocal ending
            ending = why if ending == "ended" else ending
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        reading = [
            asyncio.ensure_future(_read(stream, limits.output_bytes, lambda: stop("output")))
            for stream in (process.stdout, process.stderr)
        ]
        feeding = asyncio.ensure_future(_feed(process.stdin, job.stdin))
        try:
            async with asyncio.timeout(limits.wall_ms / 1000):
                await process.wait()
                stop(ending)  # what it has started ends with it
                written = await asyncio.gather(*reading)
        except TimeoutError:
            stop("wall-time")
            await process.wait()
            written = await asyncio.gather(*reading)
        finally:
            stop(ending)
            for task in (feeding, *reading):
                task.cancel()
            await asyncio.gather(feeding, *reading, return_exceptions=True)
        code = process.returncode or 0
        if ending == "ended" and code < 0:
            ending = "cpu-time" if code == -signal.SIGXCPU else "signal"
        return _told(ending, code if ending in ("ended", "signal") else None, written[0], written[1], began)


def _told(ending: Ending, code: int | None, stdout: bytes, stderr: bytes, began: float) -> dict[str, object]:
    wall_ms = (time.monotonic() - began) * 1000
    return {
        "ending": ending, "exit_code": code, "stdout": stdout, "stderr": stderr, "cpu_ms": 0.0, "memory_peak_bytes": 0,
        "wall_ms": wall_ms,
    }  # fmt: skip


def _limit(limits: SandboxLimits) -> None:
    """Between fork and exec of the job."""
    seconds = max(1, -(-limits.cpu_ms // 1000))
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_AS, limits.memory_bytes + ADDRESS_BYTES),
    ):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


async def _read(stream: asyncio.StreamReader | None, most: int, breached: object) -> bytes:
    found = bytearray()
    while stream is not None and (data := await stream.read(READ_BYTES)):
        found += data[: most + 1 - len(found)]
        if len(found) > most and callable(breached):
            breached()
    return bytes(found[:most])


async def _feed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is None:
        return
    with contextlib.suppress(ConnectionError):
        stream.write(data)
        await stream.drain()
    stream.close()


def _put(place: Path, files: tuple[SandboxFile, ...]) -> None:
    for file in files:
        path = place / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(0o700 if file.is_executable else 0o600)


def _collected(place: Path, limits: SandboxLimits) -> tuple[tuple[SandboxFile, ...], dict[str, str]]:
    """Regular files; links are named and not followed."""
    files: list[SandboxFile] = []
    left_out: dict[str, str] = {}
    size = 0
    for folder, folders, names in os.walk(place):
        for name in [*names, *(each for each in folders if Path(folder, each).is_symlink())]:
            path = Path(folder, name)
            whole = str(path.relative_to(place))
            if path.is_symlink() or not path.is_file():
                left_out[whole] = "a symbolic link" if path.is_symlink() else "not a regular file"
                continue
            size += path.stat().st_size
            if size > limits.disk_bytes or len(files) >= limits.files:
                left_out[whole] = "too much"
                continue
            is_executable = bool(path.stat().st_mode & 0o100)
            files.append(SandboxFile(name=whole, data=path.read_bytes(), is_executable=is_executable))
    return tuple(sorted(files, key=lambda file: file.name)), left_out
