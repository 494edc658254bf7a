"""The few calls of Linux that Python has no words for. Runs behind the wall; imports nothing but the standard library."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct

NEW_MOUNTS, NEW_CGROUP, NEW_HOSTNAME, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXECUTION, REMOUNT, BIND, RECURSIVE, PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
DETACH = 2
DIE_WITH_PARENT, DUMPABLE, DROP_BOUND, NO_NEW_PRIVILEGES, SECCOMP = 1, 4, 24, 38, 22
CAPABILITIES = 64
CAPABILITY_VERSION = 0x20080522
AT_CWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, MOVE_FROM_DESCRIPTOR, OTHER_OWNERS = 1, 4, 0x100000
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x1 | 0x40

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {what}")
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    """Mount something (mount(2)); errors are those of the system."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _checked(result, f"mount {source} at {target}")


def unmount(target: str) -> None:
    """Detach a mount."""
    _checked(_libc.umount2(_bytes(target), DETACH), f"unmount {target}")


def owned_by(inside: int, outside: int) -> int:
    """A descriptor by which mounts show the files of ``inside`` as those of ``outside`` (user_namespaces(7), mount_setattr(2))."""
    alive, held = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        unshare(NEW_USER)
        os.write(told, b"R")
        os.read(alive, 1)
        os._exit(0)
    os.close(told)
    try:
        os.read(ready, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write(f"{inside} {outside} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (alive, held, ready):
            os.close(descriptor)
        os.waitpid(child, 0)


def bind_as(source: str, target: str, flags: int, owners: int) -> bool:
    """Show a part of the host with other owners; whether its file system knows how to."""
    tree = _libc.syscall(SYS_OPEN_TREE, AT_CWD, _bytes(source), OPEN_TREE_CLONE | AT_RECURSIVE)
    _checked(tree, f"open {source}")
    try:
        attributes = struct.pack("QQQQ", flags | OTHER_OWNERS, 0, 0, owners)
        given = (tree, b"", AT_RECURSIVE | AT_EMPTY_PATH, attributes, len(attributes))
        if _libc.syscall(SYS_MOUNT_SETATTR, *given) < 0:
            return False
        result = _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_CWD, _bytes(target), MOVE_FROM_DESCRIPTOR)
        _checked(result, f"mount {source} at {target}")
        return True
    finally:
        os.close(tree)


def bind_read_only(source: str, target: str) -> None:
    """Show a part of the host at another place, with everything below it, for reading only."""
    mount(source, target, None, BIND | RECURSIVE)
    attributes = struct.pack("QQQQ", READ_ONLY | NO_SETUID | NO_DEVICES, 0, 0, 0)
    result = _libc.syscall(
        SYS_MOUNT_SETATTR, AT_CWD, _bytes(target), AT_RECURSIVE, attributes, len(attributes)
    )
    _checked(result, f"make {target} read-only")


def pivot(target: str, old: str) -> None:
    """Make a mount the root; the old one is seen at ``old`` then."""
    _checked(_libc.pivot_root(_bytes(target), _bytes(old)), "pivot_root")
    os.chdir("/")


def leave_for(target: str) -> None:
    """Make a mount the root, and let go of the old one."""
    os.chdir(target)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def unshare(flags: int) -> None:
    """Leave namespaces that were shared (unshare(2))."""
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def enter(descriptor: int, kind: int) -> None:
    """Enter a namespace that is there (setns(2))."""
    _checked(_libc.setns(descriptor, kind), "setns")


def set_hostname(name: str) -> None:
    """Name this machine (sethostname(2))."""
    _checked(_libc.sethostname(name.encode(), len(name)), "sethostname")


def control(option: int, *values: int) -> None:
    """Set an option of this process (prctl(2))."""
    padded = [*values, 0, 0, 0, 0][:4]
    _checked(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), f"prctl {option}")


def drop_capabilities() -> None:
    """All of them, for good."""
    for number in range(CAPABILITIES):
        _libc.prctl(
            DROP_BOUND, ctypes.c_ulong(number), 0, 0, 0
        )  # those that this kernel has not are no error
    header, none = struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc.capset(header, none), "capset")


def install_filter(program: bytes) -> None:
    """Put a seccomp filter in force."""
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    result = _libc.prctl(
        SECCOMP, ctypes.c_ulong(2), ctypes.byref(filter_), ctypes.c_ulong(0), ctypes.c_ulong(0)
    )
    _checked(result, "seccomp")


def raise_loopback() -> None:
    """Bring the loopback interface of this network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        fcntl.ioctl(opened, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP_RUNNING, b""))


def become(flags: int, inside: int, uid: int, gid: int) -> None:
    """Enter a user namespace of one's own, with others, in which ``uid`` and ``gid`` are ``inside``."""
    unshare(NEW_USER | flags)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def send(channel: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Hand descriptors on."""
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def receive(channel: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """Take bytes and descriptors."""
    data, ancillary, _, _ = channel.recvmsg(size, socket.CMSG_LEN(count * 4))
    found = array.array("i")
    for level, kind, part in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % 4])
    return data, list(found)


def receive_whole(channel: socket.socket, size: int) -> bytes:
    """So many bytes; fewer if the other side is gone."""
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)
