"""The first program of a gVisor sandbox: becomes a guest. What it calls root, a kernel and a network are gVisor's."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

sys.path.insert(0, "/inside")

import frames
import guest
import linux
from link import Link

GROUPS = "/run/groups"
QUIET = linux.NO_SETUID | linux.NO_DEVICES | linux.NO_EXECUTION
COPIED_BYTES = 8 << 20  # for each process: gVisor gives and copies memory in pieces of 2 MiB
COUNTED_MAX = 100_000  # files: further ones are not counted in one look


class Together(guest.Limits):  # type: ignore[misc]  # it finds its base only inside
    """What all processes use together: gVisor tells it, and enforces nothing of it; so it is looked at, again and again."""

    missing = (resource.RLIMIT_MSGQUEUE,)

    def __init__(self) -> None:
        for name in ("memory", "cpuacct", "pids"):
            os.makedirs(f"{GROUPS}/{name}")
            linux.mount("cgroup", f"{GROUPS}/{name}", "cgroup", QUIET, name)
        self._cpu_before = _number("cpuacct/cpuacct.usage")
        self._memory_before = _number("memory/memory.usage_in_bytes")

    def narrow(self, job: dict[str, Any]) -> None:
        """Processes and the size of a file are limits of the worker's; the workspace has its size."""

    def met(self, job: dict[str, Any]) -> str:
        """Which limit it has met."""
        if self._cpu_ms() > job["cpu_ms"]:
            return "cpu-time"
        most = job["memory_bytes"] + COPIED_BYTES * _number("pids/pids.current")
        if _number("memory/memory.usage_in_bytes") - self._memory_before > most:
            return "memory"
        count, size = _used(job["files"])
        return "disk" if count > job["files"] or size > job["disk_bytes"] else ""

    def _cpu_ms(self) -> float:
        return (_number("cpuacct/cpuacct.usage") - self._cpu_before) / 1e6

    def found(self) -> dict[str, Any]:
        """What it has used."""
        return {"cpu_ms": self._cpu_ms()}


def main() -> None:
    """Make ready, serve one job; the sandbox ends with this program."""
    channel = os.dup(0), os.dup(1)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    os.environ.clear()
    link = Link(*channel)
    config = json.loads(link.frame()[2])
    if config["is_ahead"]:
        guest.warm()
    made = guest.Guest(config, Together())
    link.send(frames.READY)
    made.serve(link, lambda _: None)


def _used(files_max: int) -> tuple[int, int]:
    """How many files are in the workspace, and their bytes: gVisor limits the bytes of all, but not those of a narrower job."""
    count = size = 0
    folders = ["/workspace", "/tmp"]
    while folders and count <= min(files_max, COUNTED_MAX):
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:  # it is gone meanwhile
            continue
    return count, size


def _number(file: str) -> int:
    with open(f"{GROUPS}/{file}") as source:
        return int(source.read())


if __name__ == "__main__":
    main()
