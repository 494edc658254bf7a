"""Starts one program behind a wall: three processes deep, so that it ends with us and we learn how it ended.

The outer one has our rights and only waits. The middle one is the first of its namespaces: it builds the wall around itself, then forks
the program and hands connections into the sandbox to whoever is outside. Its standard streams are the program's own.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from typing import Any, NamedTuple

import landlock
import linux
import root
import sandbox

MESSAGE_BYTES_MAX = 131_072
UNPRIVILEGED = root.UNPRIVILEGED
NAMESPACES = (
    linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_NETWORK | linux.NEW_IPC | linux.NEW_HOSTNAME | linux.NEW_CGROUP
)  # fmt: skip
FAILED = 125


def main() -> None:
    """Read ``CONTROL PARENT LC_CTYPE COMMAND...`` and the rest from the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent, locale, command = int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    if not locale:
        os.environ.pop("LC_CTYPE", None)  # our interpreter's, not the program's
    config = json.loads(control.recv(MESSAGE_BYTES_MAX))
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    is_root, owners = os.getuid() == 0, -1
    try:
        for group in config["groups"]:  # before anything is forked: nobody is left outside
            with open(group, "w") as file:
                file.write("0")
        if is_root:
            owners = linux.owned_by(0, UNPRIVILEGED)
            linux.unshare(NAMESPACES)
        else:
            linux.become(NAMESPACES, sandbox.UID, os.getuid(), os.getgid())
    except OSError as error:
        control.send(b"E" + str(error).encode())
        os._exit(FAILED)
    nowhere = os.open("/dev/null", os.O_RDWR)  # before the root changes, which it does for all of us
    alive, held = os.pipe()
    told, tell = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(held)
        os.close(told)
        try:
            _first(_Ends(control, alive, tell, nowhere), config, command, owners)
        except BaseException:
            control.send(b"E" + traceback.format_exc().encode()[-2_000:])
        os._exit(FAILED)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # they are the program's; whoever sent them sent them to it too
    control.close()
    _forget_streams(nowhere)
    for descriptor in (alive, tell):
        os.close(descriptor)
    os.waitpid(first, 0)
    said = os.read(told, 16)
    _end_like(int(said or FAILED))


def _end_like(code: int) -> None:
    """End as the program has ended, also by its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 255)


def _forget_streams(nowhere: int) -> None:
    """They are the program's: who holds them as well keeps others waiting for their end."""
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Ends(NamedTuple):
    """What the first process has of the outer one."""

    control: socket.socket
    alive: int  # has an end when the outer one is gone
    tell: int
    nowhere: int


def _first(ends: _Ends, config: dict[str, Any], command: list[str], owners: int) -> None:
    """Build the wall, say ``R``, start the program at ``G``, and tell how it ended."""
    mask = os.umask(0o022)  # the directories on the way to what is shown are everybody's
    root.build(config["read_only"], config["writable"], disk_bytes=config["disk_bytes"], owners=owners)
    linux.set_hostname("sandbox")
    linux.raise_loopback()
    listeners = _listen(config["ports"])
    _give_up_rights(ends, config, is_root=owners >= 0)
    os.umask(mask)
    os.chdir(config["cwd"])
    reading, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    linux.send(ends.control, b"R", [listener.fileno() for listener in listeners])
    for listener in listeners:
        listener.close()
    if ends.control.recv(1) != b"G":
        os._exit(FAILED)
    program = os.fork()
    if program == 0:
        signal.set_wakeup_fd(-1)
        os.closerange(3, sandbox.DESCRIPTORS_MAX)
        _become(command)
    linux.control(linux.DUMPABLE, 0)  # the program cannot look into this process
    _forget_streams(ends.nowhere)
    code = _until_ended(program, ends.control, reading)
    _end_everything()
    os.write(ends.tell, str(code).encode())
    os._exit(0)


def _give_up_rights(ends: _Ends, config: dict[str, Any], *, is_root: bool) -> None:
    uid = gid = sandbox.UID
    if is_root:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        uid = gid = UNPRIVILEGED
        linux.control(linux.DUMPABLE, 1)  # taken away with the rights; needed to write our own maps
    linux.control(linux.DIE_WITH_PARENT, signal.SIGKILL)
    if select.select([ends.alive], [], [], 0)[0]:  # the outer one died before the kernel was asked
        os._exit(FAILED)
    linux.become(0, sandbox.UID, uid, gid)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_MEMLOCK, 65_536),
    ):
        resource.setrlimit(kind, (value, value))
    if config["memory_bytes"]:  # without a group: of each process, which its reservations do not count for
        resource.setrlimit(resource.RLIMIT_DATA, (config["memory_bytes"], config["memory_bytes"]))
    linux.drop_capabilities()
    linux.control(linux.NO_NEW_PRIVILEGES, 1)
    if known := landlock.version():
        landlock.restrict(known, ("/tmp", *config["writable"]), "/dev")
    linux.install_filter(bytes.fromhex(config["filter"]))


def _listen(ports: list[int]) -> list[socket.socket]:
    made = []
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(sandbox.BACKLOG)
        made.append(listener)
    return made


def _become(command: list[str]) -> None:
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"perdure: `{command[0]}` cannot be started behind the wall: {error.strerror}\n".encode())
    os._exit(127)


def _until_ended(program: int, control: socket.socket, reading: int) -> int:
    """Reap everything, and connect to the program's ports for whoever asks from outside."""
    asking = [control.fileno()]
    while True:
        ready = select.select([reading, *asking], [], [])[0]
        if control.fileno() in ready and not _connect(control):
            asking.clear()
        if reading in ready:
            os.read(reading, 4_096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == program:
                    return os.waitstatus_to_exitcode(status)
                if pid == 0:
                    break


def _connect(control: socket.socket) -> bool:
    """Answer one question for a connection: a port; whether more may come."""
    asked = control.recv(16)
    if not asked:
        return False
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(1)
    try:
        made.connect(("127.0.0.1", int(asked)))
        linux.send(control, b"C", [made.fileno()])
    except OSError:
        control.send(b"N")
    finally:
        made.close()
    return True


def _end_everything() -> None:
    try:
        while True:
            os.kill(-1, signal.SIGKILL)
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        pass


if __name__ == "__main__":
    main()
