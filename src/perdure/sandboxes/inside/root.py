"""The root file system of a sandbox: the host's programs for reading, nothing else of it."""

from __future__ import annotations

import os

import linux

PLACE = "/tmp"  # any directory that is there on every host; it is covered by a mount that nobody else sees
SHOWN = ("ld.so.cache", "ssl/certs", "alternatives", "localtime")  # of /etc: what programs cannot do without
FILES = {
    "passwd": "root:x:0:0::/:/usr/sbin/nologin\nagent:x:1000:1000::/workspace:/bin/sh\n",
    "group": "agent:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n",
    "resolv.conf": "",
    "nsswitch.conf": "hosts: files\npasswd: files\ngroup: files\n",
}
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "shm": "/tmp",
}


def build(read_only: list[str]) -> None:
    """Make the root of this mount namespace and move into it.

    Args:
        read_only: further directories of the host that are shown, such as an interpreter's.
    """
    linux.mount(None, "/", None, linux.RECURSIVE | linux.PRIVATE)
    linux.mount("tmpfs", PLACE, "tmpfs", linux.NO_SETUID | linux.NO_DEVICES, "mode=755,size=4m")
    new = f"{PLACE}/new"
    os.mkdir(new)
    linux.mount("tmpfs", new, "tmpfs", linux.NO_SETUID | linux.NO_DEVICES, "mode=755,size=4m")
    for name in ("usr", "proc", "dev", "workspace", "tmp", "etc", "run", "sys"):
        os.mkdir(f"{new}/{name}")
    _show_programs(new, read_only)
    _make_etc(new)
    _make_devices(new)
    # A user namespace may mount proc only while a whole one can be seen, so before the old root goes.
    linux.mount("proc", f"{new}/proc", "proc", linux.NO_SETUID | linux.NO_DEVICES | linux.NO_EXECUTION)
    linux.pivot(new)
    flags = linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SETUID | linux.NO_DEVICES
    linux.mount(None, "/", None, flags)


def _show_programs(new: str, read_only: list[str]) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{new}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{new}/{name}")
            linux.bind_read_only(f"/{name}", f"{new}/{name}")
    for path in ("/usr", *read_only):
        os.makedirs(new + path, exist_ok=True)
        linux.bind_read_only(path, new + path)


def _make_etc(new: str) -> None:
    for name in SHOWN:
        source, target = f"/etc/{name}", f"{new}/etc/{name}"
        if not os.path.exists(source):
            continue
        if os.path.isdir(source):
            os.makedirs(target)
        else:
            open(target, "w").close()
        linux.bind_read_only(source, target)
    for name, text in FILES.items():
        with open(f"{new}/etc/{name}", "w") as file:
            file.write(text)


def _make_devices(new: str) -> None:
    for name in DEVICES:
        open(f"{new}/dev/{name}", "w").close()
        linux.mount(f"/dev/{name}", f"{new}/dev/{name}", None, linux.BIND)
    for name, target in LINKS.items():
        os.symlink(target, f"{new}/dev/{name}")
