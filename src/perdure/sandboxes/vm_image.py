"""The image of a micro-VM: a Linux kernel, and a root file system with Python, a shell and our guest in it.

``python -m perdure.sandboxes.vm_image --into FOLDER`` makes one from what this machine has: its Python, its shell and tools, and a kernel
that a package or ``scripts/sandboxes`` has put there. It needs no privileges.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perdure.core.errors import SandboxUnavailableError
from perdure.sandboxes.cpio import Archive
from perdure.sandboxes.zygotes import interpreter

INSIDE = Path(__file__).parent / "inside"
FORMAT = 1  # one more when an image is made in another way from the same things
KERNEL, ROOT, MADE_OF = "kernel", "root.cpio", "made-of.json"
ASK_S = 30  # for an interpreter to say where its library is
MODULES = (  # in this order: each needs those before it; a kernel may have them built in
    "virtio", "virtio_ring", "virtio_mmio", "virtio_console", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
)  # fmt: skip
NEEDED = ("virtio_mmio", "virtio_console")
PROGRAMS = (
    "sh", "awk", "base64", "basename", "cat", "chmod", "cp", "cut", "date", "diff", "dirname", "echo", "env", "false", "find", "grep", "gzip",
    "head", "id", "ls", "mkdir", "mktemp", "mv", "printf", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep", "sort",
    "stat", "tail", "tar", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc", "xargs",
)  # fmt: skip
SKIPPED = {
    "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "pydoc_data", "site-packages", "dist-packages", "turtle.py",
}  # fmt: skip
COMPILE_S = 120  # all of a library, on a busy machine
COMPILING = """
import compileall, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
compileall.compile_dir(sys.argv[1], stripdir=sys.argv[1], prependdir="/", quiet=2, force=True, invalidation_mode=mode)
"""
ASKED = """
import json, sys, sysconfig
paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
print(json.dumps([sys.executable, sys.base_prefix, paths]))
"""


def default_folder() -> Path:
    """Where an image is looked for unless told."""
    return Path.home() / ".cache" / "perdure" / "microvm"


def digest_of(folder: Path) -> str:
    """What an image is made of, in short; empty where there is none."""
    try:
        return str(json.loads((folder / MADE_OF).read_bytes())["digest"])
    except (OSError, ValueError, KeyError):
        return ""


def build(into: Path, *, tools: Path | None = None, python: str | None = None) -> str:
    """Make an image, unless an equal one is there; its digest. Takes some seconds.

    Args:
        into: the folder for it.
        tools: where ``scripts/sandboxes`` has put a kernel; the system's is looked at too.
        python: the interpreter that it has; by default the system's.

    Raises:
        SandboxUnavailableError: there is no kernel that can be used.
    """
    kernel, modules = find_kernel([tools, Path("/")])
    into.mkdir(parents=True, exist_ok=True)
    python = python or interpreter()
    sum_ = _Sum(kernel.read_bytes())
    _fill(Archive(sum_), modules, python)
    digest = sum_.digest
    if digest_of(into) == digest:
        return digest
    with (
        tempfile.TemporaryDirectory(dir=into, prefix=".making-") as beside,
        Path(beside, ROOT).open("wb") as target,
    ):
        archive = Archive(target)
        _compile(archive, Path(beside), python)
        _fill(archive, modules, python)
        (into / MADE_OF).unlink(missing_ok=True)  # whoever is interrupted leaves nothing that looks whole
        Path(beside, ROOT).rename(into / ROOT)
        (into / KERNEL).write_bytes(kernel.read_bytes())
    (into / MADE_OF).write_text(json.dumps({"digest": digest, "kernel": kernel.name}))
    return digest


class _Sum(io.RawIOBase):
    """The digest of what is written."""

    def __init__(self, data: bytes) -> None:
        self._sum = hashlib.sha256(b"%d" % FORMAT + data)

    def write(self, data: Any) -> int:
        """Some more."""
        self._sum.update(data)
        return len(data)

    @property
    def digest(self) -> str:
        """Of all of it."""
        return self._sum.hexdigest()


def find_kernel(places: Iterable[Path | None]) -> tuple[Path, list[Path]]:
    """A kernel that can be read and has the devices of a micro-VM, with the modules for them.

    Raises:
        SandboxUnavailableError: none is there; with what to install.
    """
    passed = []
    for place in (place for place in places if place is not None):
        found = sorted((place / "boot").glob("vmlinuz-*"), key=lambda path: ("cloud" in path.name, path.name))
        for kernel in reversed(found):
            folder = place / "lib" / "modules" / kernel.name.removeprefix("vmlinuz-")
            if not os.access(kernel, os.R_OK):
                passed.append(f"{kernel} may not be read")
                continue
            modules, missing = _modules(folder)
            if not missing:
                return kernel, modules
            passed.append(f"{kernel} has no {', '.join(missing)}")
    why = "; ".join(passed) or "no kernel is in /boot"
    raise SandboxUnavailableError(
        f"there is no kernel for a micro-VM ({why}); run `scripts/sandboxes`, or `apt-get install linux-image-cloud-amd64`"
    )


def _modules(folder: Path) -> tuple[list[Path], list[str]]:
    """Those that must be loaded, in order, and those that are missing."""
    try:
        built_in = {
            Path(line).stem.replace("-", "_") for line in (folder / "modules.builtin").read_text().split()
        }
    except OSError:
        built_in = set()
    modules, missing = [], []
    by_name = {_stem(path): path for path in folder.glob("kernel/**/*.ko*")}
    for name in MODULES:
        if name in by_name and by_name[name].suffix in (".ko", ".xz"):
            modules.append(by_name[name])
        elif name in NEEDED and name not in built_in:
            missing.append(name)
    return modules, missing


def _stem(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _fill(archive: Archive, modules: list[Path], python: str) -> None:
    for number, module in enumerate(modules):
        data = module.read_bytes()
        name = f"/modules/{number:02}-{_stem(module)}.ko"
        archive.file(name, lzma.decompress(data) if module.suffix == ".xz" else data)
    for name in (
        "dev",
        "proc",
        "sys",
        "sys/fs",
        "run",
        "workspace",
        "tmp",
        "etc",
        "root",
        "bin",
        "lib",
        "lib64",
        "usr/bin",
    ):
        archive.directory(name)
    archive.link("/sbin", "bin")
    place = _python(archive, python)
    for path in sorted(INSIDE.glob("*.py")):
        archive.copy(f"/inside/{path.name}", path)
    archive.file("/init", f"#!{place} -ISB\n".encode() + (INSIDE / "vm.py").read_bytes(), is_executable=True)
    for name in PROGRAMS:
        for folder in ("/usr/bin", "/bin"):
            if (found := Path(folder, name)).exists():
                _program(archive, f"/bin/{name}", found)
                archive.link(f"/usr/bin/{name}", f"/bin/{name}")
                break
    archive.close()


def _python(archive: Archive, python: str) -> str:
    """An interpreter with its library, where it is on this machine; its path."""
    place, prefix, libraries = _asked(python)
    _program(archive, place, Path(place))
    archive.link("/usr/bin/python3", place)
    for library in libraries:
        for path in _library(Path(library)):
            if path.suffix == ".so":
                _program(archive, str(path), path)
            else:
                archive.copy(str(path), path)
    for path in sorted(Path(prefix, "lib").glob("libpython3*.so*")):
        archive.copy(str(path), path)
    return place


def _compile(archive: Archive, beside: Path, python: str) -> None:
    """The library in the form that is loaded fastest, whatever the times of its files are; what a host has of it is not deterministic."""
    copied = beside / "library"
    for library in _asked(python)[2]:
        for path in _library(Path(library)):
            if path.suffix == ".py":
                target = copied / str(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    asked = [python, "-I", "-S", "-B", "-c", COMPILING, str(copied)]
    subprocess.run(
        asked, capture_output=True, check=False, timeout=COMPILE_S, env={}
    )  # what is no Python stays as it is
    for path in sorted(copied.glob("**/*.pyc")):
        archive.copy(f"/{path.relative_to(copied)}", path)


def _asked(python: str) -> tuple[str, str, list[str]]:
    """Where an interpreter is, its prefix, and its library."""
    asked = [python, "-I", "-S", "-c", ASKED]
    done = subprocess.run(asked, capture_output=True, check=True, timeout=ASK_S, env={})
    executable, prefix, libraries = json.loads(done.stdout)
    return str(Path(executable).resolve()), str(prefix), sorted(set(libraries))


def _library(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in SKIPPED or path.name.startswith(("config-", "_sysconfigdata")):
            continue
        if path.is_dir():
            yield from _library(path)
        elif not re.search(r"\.pyc$|\.a$|_tkinter|_test|_ctypes_test", path.name):
            yield path


def _program(archive: Archive, name: str, source: Path) -> None:
    """A program or shared object with the libraries that it is linked with, where this machine has them."""
    if archive.has(name):
        return
    archive.copy(name, source)
    listed = subprocess.run(
        ["/usr/bin/ldd", str(source)], capture_output=True, text=True, timeout=ASK_S, env={}, check=False
    )
    for path in re.findall(r"(/\S+) \(0x", listed.stdout):
        if not archive.has(path):
            archive.copy(path, Path(path))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m perdure.sandboxes.vm_image", description=__doc__)
    parser.add_argument("--into", type=Path, default=default_folder(), help="the folder for it")
    parser.add_argument("--tools", type=Path, help="where scripts/sandboxes has put a kernel")
    parser.add_argument("--python", help="the interpreter that it has; by default the system's")
    asked = parser.parse_args()
    try:
        digest = build(asked.into, tools=asked.tools, python=asked.python)
    except SandboxUnavailableError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{asked.into}: {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
