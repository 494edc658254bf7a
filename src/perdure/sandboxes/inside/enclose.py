"""Starts one program of the host inside namespaces of its own: QEMU, which a guest may have taken over.

It sees the system's programs for reading, the descriptors that it was given, no network, no processes but its own, and has no privileges.
Whoever waits for a sandbox waits for this first, so it imports as little as it can: its arguments are ``name=value``, then ``--``, then
the program.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

import linux
import root

KVM = "/dev/kvm"
UID = 1000  # inside
DESCRIPTORS_MAX = 65_536


def main() -> None:
    """Wait for the word, build, become that program."""
    place = sys.argv.index("--")
    told = [argument.partition("=")[::2] for argument in sys.argv[1:place]]
    one = dict(told)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    if os.read(0, 1) != b"G":  # we are in our control group now; nothing may fork before that
        os._exit(0)
    if one["is_walled"]:
        _build([value for name, value in told if name == "read_only"], (KVM,) if one["has_kvm"] else ())
    _limit(one)
    if one["is_walled"]:
        linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    standard = int(one["standard"]) if one["standard"] else os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(standard, descriptor)
    os.chdir(one["folder"])
    program = sys.argv[place + 1 :]
    os.execve(program[0], program, dict(value.partition("=")[::2] for name, value in told if name == "env"))


def _build(read_only: list[str], devices: tuple[str, ...]) -> None:
    """Go on as the first process of namespaces of its own; the one that was started waits for it."""
    others = linux.NEW_NETWORK | linux.NEW_IPC | linux.NEW_HOSTNAME | linux.NEW_CGROUP
    linux.become(linux.NEW_MOUNTS | linux.NEW_PIDS | others, UID, os.getuid(), os.getgid())
    first = os.fork()
    if first:
        linux.drop_capabilities()
        os.closerange(3, DESCRIPTORS_MAX)
        _, status = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    root.build(read_only, devices=devices)
    linux.set_hostname("sandbox")


def _limit(one: dict[str, str]) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, "0"),
        (resource.RLIMIT_NOFILE, one["open_files"]),
        (resource.RLIMIT_FSIZE, one["file_bytes"]),
        (resource.RLIMIT_MSGQUEUE, "0"),
    ):
        if value:
            most = resource.getrlimit(kind)[1]
            chosen = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
            resource.setrlimit(kind, (chosen, chosen))


if __name__ == "__main__":
    main()
