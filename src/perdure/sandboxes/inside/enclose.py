"""Starts one program of the host inside namespaces of its own: QEMU, which a guest may have taken over.

It sees the system's programs for reading, the descriptors that it was given, no network, no processes but its own, and has no privileges.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

import linux
import root
import sandbox

KVM = "/dev/kvm"


def main() -> None:
    """Wait for the word, build, become that program."""
    config = json.loads(sys.argv[1])
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    if os.read(0, 1) != b"G":  # we are in our control group now; nothing may fork before that
        os._exit(0)
    if config["is_walled"]:
        _build(config)
    _limit(config)
    if config["is_walled"]:
        linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    standard = os.open("/dev/null", os.O_RDWR) if config["standard"] is None else config["standard"]
    for descriptor in (0, 1):
        os.dup2(standard, descriptor)
    os.chdir(config["folder"])
    os.execve(config["argv"][0], config["argv"], config["env"])


def _build(config: dict[str, Any]) -> None:
    """Go on as the first process of namespaces of its own; the one that was started waits for it."""
    others = linux.NEW_NETWORK | linux.NEW_IPC | linux.NEW_HOSTNAME | linux.NEW_CGROUP
    linux.become(linux.NEW_MOUNTS | linux.NEW_PIDS | others, sandbox.UID, os.getuid(), os.getgid())
    first = os.fork()
    if first:
        os.closerange(3, sandbox.DESCRIPTORS_MAX)
        _, status = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    root.build(config["read_only"], devices=(KVM,) if config["has_kvm"] else ())
    linux.set_hostname("sandbox")


def _limit(config: dict[str, Any]) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, config["open_files"]),
        (resource.RLIMIT_FSIZE, config["file_bytes"]),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        if value is not None:
            most = resource.getrlimit(kind)[1]
            chosen = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (chosen, chosen))


if __name__ == "__main__":
    main()
