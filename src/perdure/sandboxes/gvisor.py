"""gVisor sandboxes: each job meets a kernel of its own in user space (``runsc``), started ahead or on demand, and used once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits, SandboxOutcome, Tier, narrower
from perdure.ports import Door
from perdure.sandboxes import enclosed, guest_use
from perdure.sandboxes.cgroups import Cgroups, group_name
from perdure.sandboxes.guests import Guest, Pool, connected
from perdure.sandboxes.inside import root_files
from perdure.sandboxes.zygotes import INSIDE, UNPRIVILEGED, interpreter, shown

PROGRAM = "runsc"
PLATFORMS = ("ptrace", "systrap", "kvm")
READY_S = 30.0  # for a sandbox to be there: it takes tenths of a second
KERNEL_BYTES = 256 * MIB  # of gVisor's own, besides what a job may use
KERNEL_THREADS = (
    512  # of gVisor's own: each of its processors has some, and each process of a job has one outside
)
OPEN_FILES = 16_384
RESERVED_BYTES = 512 * MIB  # of each process's addresses, over what it may use: stacks of threads and such
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_RESOURCE",
)


class GvisorSandboxes:
    """Implements ``Sandboxes`` with gVisor.

    Args:
        limits: of every sandbox; a job may have narrower ones.
        spare: how many are kept ready.
        at_once: how many have a job at the same time.
        tools: the folder of ``scripts/sandboxes``; by default ``runsc`` is looked for on the path.
        python: the interpreter inside; by default the system's.
        platform: how gVisor intercepts system calls; ``ptrace`` works everywhere, newer releases have ``systrap``.
        packages: directories that are shown for reading, and on the path of Python code.
    """

    tier: Tier = "gvisor"

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        *,
        spare: int = 2,
        at_once: int = 16,
        tools: Path | None = None,
        python: str | None = None,
        platform: str = "ptrace",
        packages: tuple[str, ...] = (),
    ) -> None:
        self._limits = limits or SandboxLimits()
        self._tools, self._python, self._platform, self._packages = tools, python, platform, packages
        self._groups: Cgroups | None = None
        self._pool = Pool(self._made, spare=spare, at_once=at_once)
        self._runsc = ""
        self._folder: Path | None = None
        self._numbers = count(1)
        self.parts: Mapping[str, str] = {}

    async def open(self) -> None:
        """Find ``runsc``, lay out what its sandboxes see, and prove with a real job that they work here.

        Raises:
            SandboxUnavailableError: they do not.
        """
        if sys.platform != "linux":
            raise SandboxUnavailableError(
                f"gVisor is a thing of Linux, this is {sys.platform}; use tier `remote`"
            )
        self._runsc = self._found()
        groups = Cgroups(group_name())
        self._groups = groups if await asyncio.to_thread(groups.open) else None
        try:
            self._folder = await asyncio.to_thread(self._laid_out)
            outcome = await self.run(SandboxJob(code="print(6 * 7)"))
            if outcome.stdout != b"42\n":
                said = outcome.stderr.decode(errors="replace")[-300:]
                raise SandboxUnavailableError(
                    f"a gVisor sandbox was made and did not work ({outcome.ending}): {said}"
                )
        except BaseException:
            await self.close()
            raise
        version = None if self._groups is None else 2 if self._groups.is_newer else 1
        self.parts = {
            "kernel": f"gVisor's, platform {self._platform}",
            "network": "none but its own loopback",
            "files": "programs of the system for reading; a workspace in memory, whose files are counted ten times a second",
            "user": "without privileges" if os.getuid() else f"uid {UNPRIVILEGED}; root inside is nobody outside",
            "cgroups": f"version {version}" if version else "missing: none may be written; gVisor's own memory is not limited",
        }  # fmt: skip

    def _found(self) -> str:
        beside = None if self._tools is None else self._tools / "usr" / "bin" / PROGRAM
        path = str(beside) if beside is not None and beside.exists() else shutil.which(PROGRAM)
        if path is None:
            raise SandboxUnavailableError(
                f"{PROGRAM} is not here; `apt-get install runsc`, or run `scripts/sandboxes` and name its folder"
            )
        return str(Path(path).resolve())

    # -- what a sandbox sees
    def _laid_out(self) -> Path:
        """The root of all sandboxes and their description; nobody else can write there. Blocks."""
        folder = Path(tempfile.mkdtemp(prefix="perdure-gvisor-"))
        folder.chmod(0o755)
        place = folder / "root"
        for name in ("usr", "proc", "dev", "workspace", "tmp", "run", "sys", "inside", "etc"):
            (place / name).mkdir(parents=True)
        binds = ["/usr"]
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (place / name).symlink_to(Path("/", name).readlink())
            elif Path("/", name).is_dir():
                binds.append(f"/{name}")
        python = self._python or interpreter()
        binds += [*shown(python), *self._packages]
        for path in binds:
            (place / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name, text in root_files.FILES.items():
            (place / "etc" / name).write_text(text)
        for name in ("ld.so.cache", "alternatives", "localtime"):
            _copied(Path("/etc", name), place / "etc" / name)
        for source in INSIDE.glob("*.py"):
            shutil.copy(source, place / "inside" / source.name)
        (folder / "config.json").write_text(json.dumps(self._described(place, binds, python)))
        _readable(folder)
        return folder

    def _described(self, place: Path, binds: list[str], python: str) -> dict[str, Any]:
        """One sandbox, in the words of OCI's runtime specification."""
        space = f"size={self._limits.disk_bytes}"
        quiet = ["nosuid", "nodev"]
        temporary = {"type": "tmpfs", "source": "tmpfs"}
        return {
            "ociVersion": "1.0.0",
            "hostname": "sandbox",
            "root": {"path": str(place), "readonly": True},
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": [], "args": [python, "-ISB", "/inside/gv.py"],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                *({"destination": path, "type": "bind", "source": path, "options": ["ro", "rbind"]} for path in binds),
                {"destination": "/run", **temporary, "options": [*quiet, "size=1m", "mode=700"]},
                {"destination": "/workspace", **temporary, "options": [*quiet, space, "mode=700", "uid=1000", "gid=1000"]},
                {"destination": "/tmp", **temporary, "options": [*quiet, space, "mode=1777"]},  # noqa: S108 - inside
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }  # fmt: skip

    # -- sandboxes
    async def _made(self, is_ahead: bool) -> Guest:  # noqa: FBT001 - the pool's
        folder = self._folder
        if folder is None:
            raise SandboxUnavailableError("no sandbox can be made: the pool is closed")
        state = folder / f"state-{next(self._numbers)}"
        enclosed.own(state)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process, group = enclosed.start(
                    self._program(folder, state, theirs.fileno()), self._groups, is_walled=False
                )
            except BaseException:
                ours.close()
                shutil.rmtree(state)
                raise
        reader, writer = await connected(ours)
        guest = Guest(process, reader, writer, f"gVisor ({self._platform})", group)
        guest.let_go.append(lambda: self._let_go(guest, state))
        try:
            await guest.greet(
                self._limits,
                READY_S,
                is_ahead=is_ahead,
                packages=self._packages,
                address_bytes=self._limits.memory_bytes + RESERVED_BYTES,
            )
        except BaseException:
            await guest.close()
            raise
        return guest

    def _program(self, folder: Path, state: Path, channel: int) -> enclosed.Program:
        limits = self._limits
        options = [
            "--rootless",
            "--network=none",
            f"--platform={self._platform}",
            "--ignore-cgroups",
            "--file-access-mounts=exclusive",
        ]
        return enclosed.Program(
            argv=[self._runsc, "--root", str(state), *options, "run", "--bundle", str(folder), state.name],
            env={}, descriptors=(channel,), standard=channel, open_files=OPEN_FILES, file_bytes=None,
            limits=SandboxLimits(
                memory_bytes=limits.memory_bytes + KERNEL_BYTES, processes=limits.processes + KERNEL_THREADS, cpu_share=limits.cpu_share
            ),
        )  # fmt: skip

    def _let_go(self, guest: Guest, state: Path) -> None:
        shutil.rmtree(state, ignore_errors=True)
        if guest.group is not None and self._groups is not None:
            self._groups.leave(guest.group)

    # -- jobs
    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a fresh sandbox (see the port)."""
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        return await guest_use.run(self._pool, job, chosen, doors or {}, self.tier)

    async def close(self) -> None:
        """End every sandbox."""
        await self._pool.close()
        if self._groups is not None:
            await self._groups.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _copied(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # some systems have not all of them
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)


def _readable(folder: Path) -> None:
    """For everybody, whatever the umask is; for nobody to write."""
    for place, folders, files in os.walk(folder):
        for name in folders:
            if not Path(place, name).is_symlink():
                Path(place, name).chmod(0o755)
        for name in files:
            if not Path(place, name).is_symlink():
                Path(place, name).chmod(0o644)
