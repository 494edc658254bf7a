"""A wall around a program that goes on: it sees the system's programs and what it is shown, its own processes and a private ``/tmp``.

Read as ``wall.py CONFIG COMMAND...``. Unlike a sandbox it keeps the host's network, for the program does I/O of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import linux
import root

UID = 1000  # inside, for an ordinary user; outside it is that user
NOBODY = 65_534  # who a program becomes that root starts
KINDS = linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_IPC | linux.NEW_HOSTNAME | linux.NEW_CGROUP
NETWORK = (
    "resolv.conf",
    "hosts",
    "nsswitch.conf",
    "gai.conf",
    "services",
)  # of /etc: how names are looked up
QUIET = linux.NO_SETUID | linux.NO_DEVICES


def main() -> None:
    """Build the wall, then become the program in a child; this process waits for it."""
    config, command = json.loads(sys.argv[1]), sys.argv[2:]
    is_root = os.getuid() == 0
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    if is_root:
        linux.unshare(KINDS)
    else:
        linux.become(KINDS, UID, os.getuid(), os.getgid())
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    build(config)
    linux.set_hostname("worker")
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)  # another user: the kernel has forgotten it
    linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    linux.install_filter(bytes.fromhex(config["filter"]))
    os.chdir(config["cwd"] if os.path.isdir(config["cwd"]) else "/tmp")
    os.umask(0o077)
    os.execvp(command[0], command)


def build(config: dict[str, Any]) -> None:
    """Make the root and move into it."""
    socket = os.path.dirname(os.environ["PERDURE_WORKER_SOCKET"])
    network = {name: os.path.realpath(f"/etc/{name}") for name in NETWORK if os.path.isfile(f"/etc/{name}")}

    def finish() -> None:
        mark = os.environ.get("PERDURE_WORKER_MARK")
        if mark is not None:
            linux.mount(root.OLD + mark, root.NEW + mark, None, linux.BIND)
        for path in config["hidden"]:
            _hide(root.NEW + path)
        for name, source in network.items():
            open(f"{root.NEW}/etc/{name}", "a").close()
            linux.bind_read_only(root.OLD + source, f"{root.NEW}/etc/{name}")

    os.umask(0o022)
    root.build([*config["read_only"], socket], disk_bytes=config["disk_bytes"], finish=finish)


def _hide(path: str) -> None:
    """Cover what lies in something that is shown."""
    if os.path.isdir(path):
        linux.mount("tmpfs", path, "tmpfs", QUIET | linux.READ_ONLY, "mode=000,size=4k")
    elif os.path.exists(path):
        linux.mount(root.OLD + "/dev/null", path, None, linux.BIND)


main()
