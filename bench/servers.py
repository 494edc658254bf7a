"""Servers of rivals: free loopback ports, start, readiness, stop, and where their binaries come from."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

RESTATE = "@restatedev/restate-server@1"  # the npm package and the range that is compared
START_S_MAX = 30  # a server that has no port by then is reported as not run


def cache() -> Path:
    """Where binaries and data are kept: outside of the repository, and on a disk, which /tmp may not be."""
    chosen = os.environ.get("PERDURE_BENCH_CACHE")
    path = Path(chosen) if chosen else Path.home() / ".cache" / "perdure-bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def free_ports(n: int) -> list[int]:
    """``n`` different loopback ports that are free now."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def executable(name: str) -> str:
    """A program of this environment or of the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"`{name}` is not installed")
    return found


def restate_binary() -> str:
    """The Restate server itself (not npm's node wrapper, which would outlive a kill of its parent)."""
    found = _restate_in(cache())
    if found is None:
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("the Restate server comes from npm, and `npm` is not installed")
        command = [
            npm,
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            str(cache()),
            RESTATE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        found = _restate_in(cache())
        if done.returncode or found is None:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RuntimeError(f"npm could not install {RESTATE}: {' '.join(last)}")
    return found


def _restate_in(prefix: Path) -> str | None:
    for path in sorted(prefix.glob("node_modules/@restatedev/restate-server-*/**/restate-server")):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None


class Server:
    """A child process in the group of this one; its output goes to ``server.log`` beside its data."""

    def __init__(
        self, command: list[str], directory: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._log = directory / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def wait_for_port(self, port: int) -> None:
        """Until somebody listens there.

        Raises:
            RuntimeError: the process ended, or took too long; with the end of its log.
        """
        for _ in range(START_S_MAX * 20):
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}: {self._tail()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"no server on port {port} after {START_S_MAX} s: {self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-400:].replace("\n", " ")

    def stop(self) -> None:
        """Kill: nothing of its data is looked at any more."""
        self._process.kill()
        self._process.wait(10)
