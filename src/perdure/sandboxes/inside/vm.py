"""The first program of a micro-VM: mounts, loads what it talks through, and becomes a guest."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import socket
import sys
import time
from typing import Any

sys.path.insert(0, "/inside")

import frames
import guest
import linux
import root
from link import Link, Rehearsal

PORT_S = 60.0  # until the device to talk through is there; software emulation is slow
VSOCK_PORT = 1_024
SYS_LOAD_MODULE = 313
GROUP = "/sys/fs/cgroup/job"
QUIET = linux.NO_SETUID | linux.NO_DEVICES

_libc = ctypes.CDLL(None, use_errno=True)


class Together(guest.Limits):  # type: ignore[misc]  # it finds its base only inside
    """Limits of all processes of the job together, with a control group."""

    def __init__(self, config: dict[str, Any]) -> None:
        linux.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", QUIET | linux.NO_EXECUTION)
        _write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids +cpu")
        os.mkdir(GROUP)
        self._cpu_before = 0
        self.narrow(config)

    def enter(self) -> None:
        """Put this process, and what it forks, under it."""
        _write(f"{GROUP}/cgroup.procs", "0")

    def narrow(self, job: dict[str, Any]) -> None:
        """Take the limits of this job."""
        _write(f"{GROUP}/memory.max", str(job["memory_bytes"]))
        _write(f"{GROUP}/memory.oom.group", "1")
        _write(f"{GROUP}/pids.max", str(job["processes"]))
        _write(f"{GROUP}/cpu.max", f"{max(1_000, int(job['cpu_share'] * 100_000))} 100000")
        linux.mount(None, "/run", None, linux.REMOUNT | QUIET, _space(job))

    def begin(self) -> None:
        """What was used before does not count."""
        self._cpu_before = _counted("cpu.stat", "usage_usec")

    def _cpu_ms(self) -> float:
        return (_counted("cpu.stat", "usage_usec") - self._cpu_before) / 1_000

    def met(self, job: dict[str, Any]) -> str:
        """Processor time of all together; the kernel looks after the others."""
        return "cpu-time" if self._cpu_ms() > job["cpu_ms"] else ""

    def found(self) -> dict[str, Any]:
        """What it has used, and which of its processes the kernel has ended or refused."""
        return {
            "cpu_ms": self._cpu_ms(),
            "is_out_of_memory": _counted("memory.events", "oom_kill") > 0,
            "is_out_of_processes": _counted("pids.events", "max") > 0,
        }


def main() -> None:
    """Make ready, serve one job, and let the machine end."""
    _mount()
    has_vsock = "perdure.vsock" in _read("/proc/cmdline")
    for path in sorted(glob.glob("/modules/*.ko")):
        if has_vsock or "vsock" not in path:
            _load(path)
    linux.set_hostname("sandbox")
    linux.raise_loopback()
    os.environ.clear()
    guest.warm()
    listener = _listener() if has_vsock else None
    link = _link(listener)
    config = json.loads(link.frame()[2])
    limits = Together(config)
    made = guest.Guest(config, limits)
    link.send(frames.READY)
    if listener is not None:  # the first connection does not outlive being saved
        link = _link(listener)
    if link.ahead() == frames.REHEARSE:
        made.serve(Rehearsal(config, int(link.frame()[2])), _prepare)
        made = guest.Guest(config, limits)
        link.send(frames.READY)
    made.serve(link, _prepare)


def _link(listener: socket.socket | None) -> Link:
    channel = _port() if listener is None else listener.accept()[0].detach()
    return Link(channel, channel)


def _prepare(job: dict[str, Any]) -> None:
    guest.reseed(bytes.fromhex(job.pop("entropy")))
    guest.set_clock(job["now_ns"])


def _mount() -> None:
    for kind, place, flags in (
        ("devtmpfs", "/dev", 0),
        ("proc", "/proc", linux.NO_DEVICES | linux.NO_EXECUTION),
        ("sysfs", "/sys", linux.NO_DEVICES | linux.NO_EXECUTION),
    ):
        linux.mount(kind, place, kind, linux.NO_SETUID | flags)
    os.chmod("/", 0o755)  # noqa: S103 - the first root of a kernel lets everybody write
    linux.mount("tmpfs", "/run", "tmpfs", QUIET, "mode=755")
    for name in ("workspace", "tmp"):
        os.mkdir(f"/run/{name}")
        os.chown(f"/run/{name}", 1000, 1000)
        os.chmod(f"/run/{name}", 0o700)
        linux.mount(f"/run/{name}", f"/{name}", None, linux.BIND)
    for name, target in root.LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name, text in root.FILES.items():
        _write(f"/etc/{name}", text)


def _space(limits: dict[str, Any]) -> str:
    return f"size={limits['disk_bytes']},nr_inodes={limits['files'] + 4},mode=755"


def _load(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    result = _libc.syscall(SYS_LOAD_MODULE, descriptor, b"", 0)
    number = ctypes.get_errno()
    os.close(descriptor)
    if result < 0 and not isinstance(OSError(number, ""), FileExistsError):
        raise OSError(number, f"{os.strerror(number)}: module {path}")


def _port() -> int:
    """The virtio-serial port that the outside is connected to."""
    for _ in range(int(PORT_S / 0.001)):
        found = glob.glob("/dev/vport*p1")
        if found:
            return os.open(found[0], os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.001)
    raise OSError("no virtio-serial port came up")


def _listener() -> socket.socket:
    """Where the outside connects over vsock: a listener outlives being saved and loaded."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
    listener.listen(1)
    return listener


def _counted(file: str, name: str) -> int:
    for line in _read(
        f"{GROUP}/{file}"
    ).splitlines():  # a pattern would have to be compiled, which takes its time in emulation
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print(f"perdure: the guest cannot start: {error!r}", file=sys.stderr, flush=True)
        raise
