"""The first process of a sandbox: builds the wall around itself, forks the one worker, waits for it, tells how it ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from typing import Any

import linux

UID = 1000  # inside; outside it is that of the zygote, which owns nothing
HEAD = struct.Struct("I")
STANDARD = 3
DESCRIPTORS_MAX = 64


def serve(channel: socket.socket, config: dict[str, Any]) -> None:
    """Build, say ``R``, do one job. The order matters: mounts, network, limits, capabilities, no new privileges, filter."""
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
    _limit(config)
    linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    linux.control(linux.DUMPABLE, 0)  # the worker cannot look into this process
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
    _wait(channel, worker)


def _mount(config: dict[str, Any]) -> None:
    quiet = linux.NO_SETUID | linux.NO_DEVICES
    linux.mount("proc", "/proc", "proc", quiet | linux.NO_EXECUTION, "hidepid=2,subset=pid")
    options = f"size={config['disk_bytes']},nr_inodes={config['files']},mode=700,uid={UID},gid={UID}"
    linux.mount("tmpfs", "/workspace", "tmpfs", quiet, options)
    os.mkdir("/workspace/.tmp", 0o700)
    linux.mount("/workspace/.tmp", "/tmp", None, linux.BIND)


def _limit(config: dict[str, Any]) -> None:
    seconds = max(1, -(-config["cpu_ms"] // 1000))
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, config["open_files"]),
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_FSIZE, config["disk_bytes"]),
        (resource.RLIMIT_MEMLOCK, 65_536),
        (resource.RLIMIT_AS, config["address_bytes"]),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # first it is told, then it is killed


def _wait(channel: socket.socket, worker: int) -> None:
    """Reap until the worker ends; when this process ends, the kernel ends everything else in its namespace."""
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == worker:
            break
    every = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = {
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_ms": (every.ru_utime + every.ru_stime) * 1000,
        "memory": usage.ru_maxrss * 1024,
    }
    channel.sendall(json.dumps(told).encode() + b"\n")
    os._exit(0)


# -- the worker
def work(channel: socket.socket) -> None:
    """Take the one job, and do it."""
    linux.control(linux.DUMPABLE, 1)
    os.setsid()
    head, descriptors = linux.receive(channel, HEAD.size, STANDARD)
    if len(head) < HEAD.size:
        os._exit(0)  # given up before it was used
    job = json.loads(linux.receive_whole(channel, HEAD.unpack(head)[0]))
    channel.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(STANDARD, DESCRIPTORS_MAX)
    os.environ.clear()
    os.environ.update(job["env"])
    if job["argv"]:
        os.execve(job["argv"][0], job["argv"], {"PATH": "/usr/bin:/bin", "HOME": "/workspace", **job["env"]})
    os._exit(_execute(job["code"]) & 255)


def _execute(code: str) -> int:
    """Python code as ``__main__`` of this warm interpreter."""
    import atexit
    import random
    import threading
    import types

    random.seed()  # its state was forked
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),
        open(1, "w", closefd=False),
        open(2, "w", closefd=False),
    )
    sys.argv = ["<action>"]
    sys.path[:] = [
        "/workspace",
        *(path for path in sys.path if not path.startswith(os.path.dirname(os.path.abspath(__file__)))),
    ]
    for name in ("linux", "root", "sandbox"):
        sys.modules.pop(name, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    result = 0
    try:
        exec(compile(code, "<action>", "exec"), module.__dict__)
    except SystemExit as end:
        result = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if result == 1 and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        result = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined] # what the interpreter itself does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        result = result or 120  # as the interpreter itself does where its output cannot be written
    return result
