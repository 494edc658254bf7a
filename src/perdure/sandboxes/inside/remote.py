"""One job in somebody else's sandbox: sets its limits, watches over it, and leaves a report. Runs behind the wall.

It is the first file of an archive that also holds the job. The working directory is where the archive is.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import files
import linux
import sandbox
from execute import execute

REPORT = "perdure.report"
PLACE = "perdure.work"
TICK_S = 0.05  # between two looks at what the job has taken
READ_BYTES = 65_536
AFTER_S = 2.0  # for pipes to be closed by processes that were killed
CHILD_SUBREAPER = 36
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
ENDINGS = {number: name for name, number in sandbox.MET.items()}


def main() -> None:
    """Do the job of the archive, and write the report beside it."""
    archive = sys.argv[0]
    with zipfile.ZipFile(archive) as opened:
        order = json.loads(opened.read("order"))
        given, stdin = opened.read("given"), opened.read("stdin")
    os.unlink(archive)
    shutil.rmtree(PLACE, ignore_errors=True)
    os.mkdir(PLACE, 0o700)
    linux.control(CHILD_SUBREAPER, 1)
    _Watch(order, os.path.realpath(PLACE)).do(given, stdin)


def _held(data: bytes) -> int:
    made = os.memfd_create("given")
    with open(made, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(made, 0, os.SEEK_SET)
    return made


class _Watch:
    """The job, seen from outside of it."""

    def __init__(self, order: dict[str, Any], place: str) -> None:
        self.order = order
        self.limits = order["limits"]
        self.place = place
        self.ending = ""
        self.written: dict[int, bytearray] = {}

    def do(self, given: bytes, stdin: bytes) -> None:
        files.put(_held(given), self.place)
        pipes = [os.pipe() for _ in range(2)]
        source = _held(stdin)
        began = time.monotonic()
        worker = os.fork()
        if worker == 0:
            try:
                self._work([source, pipes[0][1], pipes[1][1]])
            finally:
                os._exit(127)
        for _, writer in pipes:
            os.close(writer)
        self.written = {reader: bytearray() for reader, _ in pipes}
        status, usage = self._until_over(worker, began)
        wall_ms = (time.monotonic() - began) * 1000
        self._report([reader for reader, _ in pipes], status, usage, wall_ms)

    # -- the job
    def _work(self, descriptors: list[int]) -> None:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 65_536)
        os.chdir(self.place)
        os.umask(0o077)
        limits = self.limits
        seconds = max(1, -(-limits["cpu_ms"] // 1000))
        for kind, value in (
            (resource.RLIMIT_CORE, (0, 0)),
            (resource.RLIMIT_CPU, (seconds, seconds + 1)),
            (resource.RLIMIT_DATA, (limits["memory_bytes"],) * 2),
            (resource.RLIMIT_FSIZE, (limits["disk_bytes"],) * 2),
            (resource.RLIMIT_NOFILE, (limits["open_files"],) * 2),
            (resource.RLIMIT_NPROC, (_of_this_user() + limits["processes"],) * 2),
        ):
            soft, most = value
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (soft, most) if hard < 0 else (min(soft, hard), min(most, hard)))
        os.environ.clear()
        os.environ.update({"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": self.place, "LANG": "C.UTF-8"})
        os.environ.update(self.order["env"])
        if self.order["argv"]:
            sandbox.become(self.order["argv"])
        os._exit(execute(self.order["code"], sandbox.met, self.place) & 255)

    # -- watching
    def _until_over(self, worker: int, began: float) -> tuple[int | None, Any]:
        while True:
            self._listen(TICK_S)
            pid, status, usage = os.wait4(worker, os.WNOHANG)
            if pid:
                break
            self.ending = self.ending or self._breach(began)
            if self.ending:
                os.kill(worker, signal.SIGKILL)
                _, status, usage = os.wait4(worker, 0)
                break
        _end_all()
        until = time.monotonic() + AFTER_S
        while self.written and time.monotonic() < until and self._listen(TICK_S):
            pass
        return status, usage

    def _listen(self, seconds: float) -> bool:
        """Take what was written; whether there may be more."""
        open_ones = [each for each in self.written if each not in _closed]
        if not open_ones:
            time.sleep(seconds)
            return False
        for descriptor in select.select(open_ones, [], [], seconds)[0]:
            data = os.read(descriptor, READ_BYTES)
            found = self.written[descriptor]
            most = self.limits["output_bytes"]
            found += data[: max(0, most + 1 - len(found))]
            if len(found) > most:
                self.ending = self.ending or "output"
            if not data:
                _closed.add(descriptor)
        return True

    def _breach(self, began: float) -> str:
        """The limit that it is beyond now, if it is beyond one."""
        limits = self.limits
        if (time.monotonic() - began) * 1000 >= limits["wall_ms"]:
            return "wall-time"
        found = list(_descendants())
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        if own.ru_utime + own.ru_stime + sum(each[2] for each in found) >= limits["cpu_ms"] / 1000:
            return "cpu-time"
        if sum(each[1] for each in found) > limits["processes"]:
            return "processes"
        resident = sum(each[3] for each in found)
        if (
            resident > limits["memory_bytes"]
            and sum(_share(each[0]) for each in found) > limits["memory_bytes"]
        ):
            return "memory"
        return "disk" if self._is_full() else ""

    def _is_full(self) -> bool:
        size = count = 0
        for folder, folders, names in os.walk(self.place):
            count += len(folders) + len(names)
            if count > self.limits["files"]:
                return True
            for name in names:
                try:
                    size += os.lstat(f"{folder}/{name}").st_blocks * 512
                except OSError:
                    continue
        return bool(size > self.limits["disk_bytes"])

    # -- telling
    def _report(self, readers: list[int], status: int | None, usage: Any, wall_ms: float) -> None:
        every = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_ms = (every.ru_utime + every.ru_stime) * 1000
        code = None if status is None else os.waitstatus_to_exitcode(status)
        ending, code = self._ending(code, cpu_ms)
        streams = [bytes(self.written[reader][: self.limits["output_bytes"]]) for reader in readers]
        told = {
            "ending": ending, "exit": code, "cpu_ms": cpu_ms, "memory": usage.ru_maxrss * 1024, "wall_ms": wall_ms,
            "stdout": len(streams[0]), "stderr": len(streams[1]),
        }  # fmt: skip
        with open(REPORT + ".part", "wb") as file:
            file.write(json.dumps(told).encode() + b"\n")
            file.writelines(streams)
            if self.order["collects"]:
                files.collect(self.place, file.write, self.limits["files"])
        os.rename(REPORT + ".part", REPORT)

    def _ending(self, code: int | None, cpu_ms: float) -> tuple[str, int | None]:
        if self.ending:
            return self.ending, None
        has_used_up = cpu_ms >= self.limits["cpu_ms"]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and has_used_up):
            return "cpu-time", code
        if code == -signal.SIGXFSZ or (code != 0 and self._is_full()):
            return "disk", code
        if self.order["code"] and code in ENDINGS:
            return str(ENDINGS[code]), 1
        return ("signal" if code is not None and code < 0 else "ended"), code


_closed: set[int] = set()


def _descendants() -> Iterator[tuple[int, int, float, int]]:
    """Of this process: each one's id, threads, seconds of processor time with those of children it has waited for, resident bytes."""
    parents: dict[int, list[tuple[int, int, float, int]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                found = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        seconds = sum(int(each) for each in found[11:15]) / TICKS_A_SECOND
        one = (int(name), int(found[17]), seconds, int(found[21]) * PAGE_BYTES)
        parents.setdefault(int(found[1]), []).append(one)
    waiting = [os.getpid()]
    while waiting:
        for one in parents.pop(waiting.pop(), []):
            waiting.append(one[0])
            yield one


def _share(pid: int) -> int:
    """The memory of a process, with its share of what it shares."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _end_all() -> None:
    """Everything that the job has left behind: orphans are children of this process."""
    until = time.monotonic() + AFTER_S
    while time.monotonic() < until:
        left = [each[0] for each in _descendants()]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _of_this_user() -> int:
    """How many processes there are already: the kernel counts them by user."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                count += os.stat(f"/proc/{name}").st_uid == os.getuid() and len(
                    os.listdir(f"/proc/{name}/task")
                )
            except OSError:
                continue
    return count


if __name__ == "__main__":
    main()
