"""The root file system of a sandbox: the host's programs for reading, nothing else of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import linux
from root_files import FILES

PLACE = "/tmp"  # any directory that is there on every host; it is covered by a mount that nobody else sees
UNPRIVILEGED = 65_534  # who is inside where root is outside
OLD, NEW = "/old", "/new"  # where the host and the sandbox are while one becomes the other
PROGRAMS = ("/bin", "/sbin", "/lib", "/lib64")
SHOWN = ("ld.so.cache", "ssl/certs", "alternatives", "localtime")  # of /etc: what programs cannot do without
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "shm": "/tmp",
}


def build(
    read_only: list[str],
    writable: Sequence[str] = (),
    *,
    disk_bytes: int = 0,
    owners: int = -1,
    devices: Sequence[str] = (),
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Make the root of this mount namespace and move into it.

    Args:
        read_only: further files and directories of the host that are shown, such as an interpreter's.
        writable: directories of the host that are shown as they are.
        disk_bytes: of ``/tmp``, where that is to be writable.
        owners: as whose the files beside the system's are shown, where their file system knows how to (``linux.owned_by``).
        devices: further devices, such as ``/dev/kvm``.
        finish: called last, while the host is still seen at ``OLD`` and the new root is at ``NEW``.
    """
    programs = _programs()
    shown = {path: os.path.realpath(path) for path in ("/usr", *programs, *read_only)}
    settings = {
        f"/etc/{name}": os.path.realpath(f"/etc/{name}") for name in SHOWN if os.path.exists(f"/etc/{name}")
    }
    changed = {path: os.path.realpath(path) for path in writable}
    linux.mount(None, "/", None, linux.RECURSIVE | linux.PRIVATE)
    linux.mount("tmpfs", PLACE, "tmpfs", linux.NO_SETUID | linux.NO_DEVICES, "mode=755,size=4m")
    os.mkdir(PLACE + OLD)
    os.mkdir(PLACE + NEW)
    linux.pivot(PLACE, PLACE + OLD)  # now nothing of the host is hidden by what we mount
    linux.mount("tmpfs", NEW, "tmpfs", linux.NO_SETUID | linux.NO_DEVICES, "mode=755,size=4m")
    for name in ("usr", "proc", "dev", "workspace", "tmp", "etc", "run", "sys"):
        os.mkdir(f"{NEW}/{name}")
    if disk_bytes:
        options = f"size={disk_bytes},mode=1777"
        linux.mount("tmpfs", f"{NEW}/tmp", "tmpfs", linux.NO_SETUID | linux.NO_DEVICES, options)
    for path, source in {**shown, **settings}.items():
        _show(path, source, owners if path in read_only else -1)
    for path, source in changed.items():
        os.makedirs(NEW + path, exist_ok=True)
        if owners >= 0 and linux.bind_as(
            OLD + source, NEW + path, linux.NO_SETUID | linux.NO_DEVICES, owners
        ):
            continue
        if owners >= 0:
            _give(OLD + source)
        linux.mount(OLD + source, NEW + path, None, linux.BIND)
        linux.mount(None, NEW + path, None, linux.REMOUNT | linux.BIND | linux.NO_SETUID | linux.NO_DEVICES)
    _make_etc()
    _make_devices(devices)
    finish()
    # A user namespace may mount proc only while a whole one can be seen, so before the old root goes.
    linux.mount(
        "proc",
        f"{NEW}/proc",
        "proc",
        linux.NO_SETUID | linux.NO_DEVICES | linux.NO_EXECUTION,
        "hidepid=2,subset=pid",
    )
    linux.leave_for(NEW)
    flags = linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SETUID | linux.NO_DEVICES
    linux.mount(None, "/", None, flags)


def _programs() -> list[str]:
    """The directories of programs that are not links into ``/usr``."""
    return [path for path in PROGRAMS if os.path.isdir(path) and not os.path.islink(path)]


def _show(path: str, source: str, owners: int) -> None:
    target = NEW + path
    if os.path.isdir(OLD + source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    quiet = linux.READ_ONLY | linux.NO_SETUID | linux.NO_DEVICES
    if owners < 0 or not linux.bind_as(OLD + source, target, quiet, owners):
        linux.bind_read_only(OLD + source, target)


def _give(folder: str) -> None:
    """Make a folder that of the user inside, where it cannot be shown as such. Links are not followed."""
    os.chown(folder, UNPRIVILEGED, UNPRIVILEGED, follow_symlinks=False)
    for place, names, files in os.walk(folder):
        for name in (*names, *files):
            os.chown(f"{place}/{name}", UNPRIVILEGED, UNPRIVILEGED, follow_symlinks=False)


def _make_etc() -> None:
    for path in PROGRAMS:
        if os.path.islink(OLD + path):
            os.symlink(os.readlink(OLD + path), NEW + path)
    for name, text in FILES.items():
        with open(f"{NEW}/etc/{name}", "w") as file:
            file.write(text)


def _make_devices(further: Sequence[str]) -> None:
    for path in (*(f"/dev/{name}" for name in DEVICES), *further):
        open(NEW + path, "w").close()
        linux.mount(OLD + path, NEW + path, None, linux.BIND)
    for name, target in LINKS.items():
        os.symlink(target, f"{NEW}/dev/{name}")
