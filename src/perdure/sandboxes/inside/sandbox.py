"""The first process of a sandbox: builds the wall around itself, forks the one worker, waits for it, tells how it ended."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import struct
from typing import Any

import files
import landlock
import linux

UID = 1000  # inside; outside it is that of the zygote, which owns nothing
HEAD = struct.Struct("I")
DESCRIPTORS_MAX = 65_536
STANDARD = 3
OWN_FILES = 1_024  # open at once in the first process, which walks deep directories
BACKLOG = 64
SPACE = "/run/space"  # where the one file system for everything that may be written is mounted, until it has its names
# How the worker tells what Python code met; a program that ends with one of them by itself fools nobody but its owner.
MET = {"disk": 240, "open-files": 241, "memory": 242, "processes": 243}
NUMBERS = {
    errno.ENOSPC: "disk", errno.EDQUOT: "disk", errno.EFBIG: "disk", errno.EMFILE: "open-files", errno.ENFILE: "open-files",
    errno.ENOMEM: "memory", errno.EAGAIN: "processes",
}  # fmt: skip


def serve(channel: socket.socket, config: dict[str, Any]) -> None:
    """Build, say ``R``, do one job. The order matters: mounts, network, limits, capabilities, no new privileges, files, filter."""
    if channel.recv(1) != b"G":  # the runtime has put us into our cgroup; nothing may fork before that
        os._exit(0)
    linux.unshare(
        linux.NEW_MOUNTS | linux.NEW_NETWORK | linux.NEW_IPC | linux.NEW_HOSTNAME | linux.NEW_CGROUP
    )
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    _mount(config)
    linux.set_hostname("sandbox")
    linux.raise_loopback()
    # A user namespace of its own, which owns none of the others: the kernel counts processes by it, and a bomb must count alone.
    linux.become(0, UID, UID, UID)
    limit(config)
    linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    linux.control(linux.DUMPABLE, 0)  # the worker cannot look into this process
    if config["landlock"]:
        landlock.restrict(config["landlock"], ("/workspace", "/tmp"), "/dev")
    linux.install_filter(bytes.fromhex(config["filter"]))
    os.chdir("/workspace")
    os.umask(0o077)
    channel.sendall(b"R")
    worker = os.fork()  # ahead of time: handing a job over costs no fork
    if worker == 0:
        try:
            work(channel)
        finally:
            os._exit(127)
    wait(channel, worker, config)


def _mount(config: dict[str, Any]) -> None:
    quiet = linux.NO_SETUID | linux.NO_DEVICES
    linux.mount("proc", "/proc", "proc", quiet | linux.NO_EXECUTION, "hidepid=2,subset=pid")
    options = f"size={config['disk_bytes']},nr_inodes={config['files'] + 4},mode=700,uid={UID},gid={UID}"
    linux.mount("tmpfs", "/run", "tmpfs", quiet, options)
    for name in ("workspace", "tmp"):
        os.mkdir(f"/run/{name}", 0o700)
        linux.mount(f"/run/{name}", f"/{name}", None, linux.BIND)
    linux.unmount("/run")


def limit(config: dict[str, Any], but: tuple[int, ...] = ()) -> None:
    """Put this process, and what it forks, under its limits, but those that this kernel has not."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (
            resource.RLIMIT_NOFILE,
            max(OWN_FILES, config["open_files"]),
        ),  # the worker gets its own limit with its job
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_FSIZE, config["disk_bytes"]),
        (resource.RLIMIT_MEMLOCK, 65_536),
        (resource.RLIMIT_AS, config["address_bytes"]),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        if kind not in but:
            resource.setrlimit(kind, (value, value))


def wait(channel: socket.socket, worker: int, config: dict[str, Any]) -> None:
    """Reap until the worker ends, end everything else, tell, and hand out the files if they are wanted."""
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == worker:
            break
    try:
        while True:  # what it has left behind must not work on while its files are read
            os.kill(-1, signal.SIGKILL)
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        pass
    every = resource.getrusage(resource.RUSAGE_CHILDREN)
    space = os.statvfs("/workspace")
    told = {
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_ms": (every.ru_utime + every.ru_stime) * 1000,
        "memory": usage.ru_maxrss * 1024,
        "is_full": space.f_bfree == 0 or (space.f_files > 0 and space.f_ffree == 0),
    }
    channel.sendall(json.dumps(told).encode() + b"\n")
    if channel.recv(1) == b"C":
        files.collect("/workspace", channel.sendall, config["files"])
    os._exit(0)


# -- the worker
def work(channel: socket.socket) -> None:
    """Take the one job, and do it."""
    linux.control(linux.DUMPABLE, 1)
    os.setsid()
    head, descriptors = linux.receive(channel, HEAD.size, STANDARD + 1)
    if len(head) < HEAD.size:
        os._exit(0)  # given up before it was used
    job = json.loads(linux.receive_whole(channel, HEAD.unpack(head)[0]))
    if job["doors"]:
        _open_doors(channel, job["doors"])
    channel.close()
    try:
        if len(descriptors) > STANDARD:
            files.put(descriptors.pop(), "/workspace")
    except OSError as error:
        os._exit(met(error) or 126)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(STANDARD, DESCRIPTORS_MAX)
    seconds = max(1, -(-job["cpu_ms"] // 1000))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # first it is told, then it is killed
    for kind, name in (
        (resource.RLIMIT_NOFILE, "open_files"),
        (resource.RLIMIT_NPROC, "processes"),
        (resource.RLIMIT_FSIZE, "disk_bytes"),
    ):
        if name in job:  # those that were not built in
            resource.setrlimit(kind, (job[name], job[name]))
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "HOME": "/workspace", "LANG": "C.UTF-8", **job["env"]})
    if job["argv"]:
        become(job["argv"])
    from execute import execute

    os._exit(execute(job["code"], met) & 255)


def _open_doors(channel: socket.socket, ports: list[int]) -> None:
    """Listen where the job will knock, and hand the listeners out: whoever has them is on the other side of the wall."""
    listeners = []
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listeners.append(listener)
    linux.send(channel, b"D", [listener.fileno() for listener in listeners])
    for listener in listeners:
        listener.close()


def become(argv: list[str]) -> None:
    """Execute a program in place of this one; one that cannot be started ends with 127 or 126."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(argv[0], argv, os.environ)
    except OSError as error:
        os.write(2, f"perdure: `{argv[0]}` cannot be started: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def met(error: BaseException) -> int:
    """The exit code for an error by which code met a limit; 0 for another one."""
    name = ""
    if isinstance(error, MemoryError):
        name = "memory"
    elif isinstance(error, OSError):
        name = NUMBERS.get(error.errno or 0, "")
    elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        name = "processes"
    return MET.get(name, 0)
