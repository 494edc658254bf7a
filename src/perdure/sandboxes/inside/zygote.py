"""The zygote: one interpreter in namespaces of its own, without secrets, that forks a fresh sandbox for each use.

It is started with an empty environment and one descriptor besides the standard ones, and says first what the kernel has. For each message,
the limits in which a sandbox differs from the others, it forks the first process of a sandbox and answers with that process's channel and
its pid descriptor. It has one thread and no state that a use could change.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

import execute  # noqa: F401 - for the sandboxes
import landlock
import linux
import preloaded
import root
import sandbox

MESSAGE_BYTES_MAX = 4_096


def main() -> None:
    """Serve until the other side is gone."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    sys.path.extend(config["packages"])
    for name in preloaded.PRELOADED:
        __import__(name)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    linux.become(linux.NEW_MOUNTS | linux.NEW_PIDS, sandbox.UID, os.getuid(), os.getgid())
    first = os.fork()
    if first:
        channel.close()
        os.waitpid(first, 0)
        os._exit(0)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    os.setsid()
    os.umask(0o022)
    root.build(config["read_only"])
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # what is there now is shared with every sandbox, and never touched by the collector
    config["landlock"] = landlock.version()
    channel.send(json.dumps({"landlock": config["landlock"]}).encode())
    while asked := channel.recv(MESSAGE_BYTES_MAX):
        _fork(channel, own_pids, {**config, **json.loads(asked)})
    os._exit(0)


def _fork(channel: socket.socket, own_pids: int, config: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    linux.unshare(linux.NEW_PIDS)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ours.close()
            channel.close()
            os.close(own_pids)
            sandbox.serve(theirs, config)
        except BaseException:
            _tell(theirs)
        os._exit(126)
    theirs.close()
    linux.enter(own_pids, linux.NEW_PIDS)
    handle = os.pidfd_open(pid)
    linux.send(channel, b"S", [ours.fileno(), handle])
    os.close(handle)
    ours.close()


def _tell(channel: socket.socket) -> None:
    try:
        channel.sendall(b"E" + traceback.format_exc().encode()[-2_000:])
    except OSError:
        pass  # nobody listens any more


if __name__ == "__main__":
    main()
