"""A witness as a real process, for tests: started, killed, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from perdure.hosting.programs import free_port
from perdure.runtime.witnessing import WitnessRule

WAIT_S = 15


class WitnessProcess:
    """`perdure audit witness` in a folder of its own."""

    def __init__(self, folder: Path, name: str = "witness.example/w1") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.port, self.key = folder, name, free_port(), ""
        self.process: subprocess.Popen[str] | None = None
        self.logs: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def rule(self) -> WitnessRule:
        return WitnessRule(name=self.name, url=self.url, key=self.key)

    def start(self, *logs: str, new: bool = True) -> WitnessProcess:
        """Until it answers."""
        command = [
            sys.executable, "-m", "perdure.cli", "audit", "witness", "--name", self.name, "--key", "witness.pem", "--state",
            "state.json", "--listen", f"127.0.0.1:{self.port}",
        ]  # fmt: skip
        self.logs = logs or self.logs
        for number, text in enumerate(self.logs):
            (self.folder / f"log{number}.pub").write_text(text)
            command += ["--log", f"log{number}.pub"]
        self.process = subprocess.Popen(
            [*command, *(["--new"] if new else [])], cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.key = self.process.stdout.readline().strip()
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            try:
                httpx2.get(f"{self.url}/none/checkpoint", trust_env=False)
                return self
            except httpx2.TransportError:
                time.sleep(0.02)
        raise AssertionError("the witness does not answer")

    def kill(self) -> None:
        """As a power cut does."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None
