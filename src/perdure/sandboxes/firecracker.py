"""Micro-VMs with Firecracker: for each job a clone of a snapshot. Only where its program is, and a KVM that really boots.

It speaks Firecracker's HTTP API over its Unix socket; guests are met through its vsock device. No package registry ships the program, so
this has been tried against the specification of that API, not against Firecracker itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits, SandboxOutcome, Tier, narrower
from perdure.ports import Door
from perdure.sandboxes import enclosed, guest_use, vm_image
from perdure.sandboxes.cgroups import Cgroups, group_name
from perdure.sandboxes.guests import STREAM_BYTES, Guest, Pool
from perdure.sandboxes.qemu import kvm_obstacle
from perdure.sandboxes.zygotes import UNPRIVILEGED

PROGRAM = "firecracker"
API, VSOCK = (
    "api.sock",
    "v.sock",
)  # in the folder of each machine, so that a snapshot can be loaded in another one
MEMORY, STATE = "memory", "state"
GUEST_CID, GUEST_PORT = 3, 1_024
ANSWER_S = 30.0  # for one request; saving a whole memory is the longest
APPEAR_S, APPEAR_STEP_S = 5.0, 0.002  # until a program that was started listens
BOOT_S = 20.0  # with a KVM that works it is a second
SETTLING_S = 0.5  # what a machine still does when it is saved, each of its clones does again
SYSTEM_BYTES = 192 * MIB  # of the guest's memory for its own system, besides what a job may use
PROGRAM_BYTES = 64 * MIB  # of Firecracker's own
THREADS = 32
LINE_BYTES_MAX = 64
BOOT_LINE = "quiet loglevel=1 reboot=k panic=1 pci=off perdure.vsock"


class Api:
    """Firecracker's API, as far as we need it.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(path)), base_url="http://localhost", timeout=ANSWER_S
        )

    async def boot(self, kernel: Path, root: Path, memory_bytes: int) -> None:
        """Describe a machine without network or disks, and start it.

        Raises:
            SandboxUnavailableError: it refuses.
        """
        await self._send("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": memory_bytes // MIB})
        source = {"kernel_image_path": str(kernel), "initrd_path": str(root), "boot_args": BOOT_LINE}
        await self._send("PUT", "/boot-source", source)
        await self._send("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK})
        await self._send("PUT", "/actions", {"action_type": "InstanceStart"})

    async def save(self, memory: str, state: str) -> None:
        """Pause a machine, and write its snapshot into files.

        Raises:
            SandboxUnavailableError: it refuses.
        """
        await self._send("PATCH", "/vm", {"state": "Paused"})
        files = {"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory}
        await self._send("PUT", "/snapshot/create", files)

    async def load(self, memory: Path, state: Path) -> None:
        """Go on from a snapshot; what the machine writes into its memory is its own.

        Raises:
            SandboxUnavailableError: it refuses.
        """
        backend = {"backend_type": "File", "backend_path": str(memory)}
        told = {"snapshot_path": str(state), "mem_backend": backend, "resume_vm": True}
        await self._send("PUT", "/snapshot/load", told)

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> None:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise SandboxUnavailableError(
                f"Firecracker does not answer {method} {path}: {error!r}"
            ) from error
        if answer.status_code != httpx2.codes.NO_CONTENT:
            raise SandboxUnavailableError(
                f"Firecracker refuses {method} {path} ({answer.status_code}): {answer.text:.300}"
            )

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.aclose()


async def connected(path: Path, timeout_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the guest's port, through the Unix socket of a vsock device; tried again while nobody listens inside.

    Raises:
        SandboxUnavailableError: nobody listens in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await _connected(path)
                except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                    await asyncio.sleep(APPEAR_STEP_S)
    except TimeoutError:
        raise SandboxUnavailableError(f"nobody in the micro-VM listened within {timeout_s:g} s") from None


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path, limit=STREAM_BYTES)
    try:
        writer.write(b"CONNECT %d\n" % GUEST_PORT)
        said = await reader.readuntil(b"\n")
        if not said.startswith(b"OK ") or len(said) > LINE_BYTES_MAX:
            raise ConnectionError(f"vsock said {said[:LINE_BYTES_MAX]!r}")
    except BaseException:
        writer.close()
        raise
    return reader, writer


class FirecrackerSandboxes:
    """Implements ``Sandboxes`` with Firecracker.

    Args:
        limits: of every sandbox; a job may have narrower ones.
        spare: how many clones are kept running ahead.
        at_once: how many have a job at the same time.
        image: the folder of ``perdure.sandboxes.vm_image``; by default its own default.
        program: Firecracker; by default it is looked for on the path.
    """

    tier: Tier = "microvm"

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        *,
        spare: int = 1,
        at_once: int = 16,
        image: Path | None = None,
        program: Path | None = None,
    ) -> None:
        self._limits = limits or SandboxLimits()
        self._image = image or vm_image.default_folder()
        self._program = program
        self._groups: Cgroups | None = None
        self._pool = Pool(self._clone, spare=spare, at_once=at_once)
        self._folder: Path | None = None
        self._numbers = count(1)
        self.parts: Mapping[str, str] = {}

    async def open(self) -> None:
        """Boot a machine, save it, and prove with a real job that clones of it work.

        Raises:
            SandboxUnavailableError: the program, the image or KVM is missing, or KVM does not really work.
        """
        if sys.platform != "linux":
            raise SandboxUnavailableError(
                f"Firecracker is for Linux, this is {sys.platform}; use tier `remote`"
            )
        path = str(self._program) if self._program is not None else shutil.which(PROGRAM)
        if path is None or not os.access(path, os.X_OK):
            raise SandboxUnavailableError(
                f"{PROGRAM} is not here; get a release from its project on GitHub and put it on the path, or use QEMU's micro-VMs"
            )
        obstacle, _ = kvm_obstacle(os.getuid() or UNPRIVILEGED)
        if obstacle:
            raise SandboxUnavailableError(
                f"Firecracker needs KVM, and {obstacle}; use QEMU's micro-VMs, which can emulate"
            )
        if not vm_image.digest_of(self._image):
            raise SandboxUnavailableError(
                f"there is no image of a micro-VM in {self._image}; `python -m perdure.sandboxes.vm_image --into {self._image}` makes one"
            )
        self._program = await asyncio.to_thread(Path(path).resolve)
        groups = Cgroups(group_name())
        self._groups = groups if await asyncio.to_thread(groups.open) else None
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-firecracker-"))
        self._folder.chmod(0o755)
        try:
            await self._save()
            outcome = await self.run(SandboxJob(code="print(6 * 7)"))
            if outcome.stdout != b"42\n":
                said = outcome.stderr.decode(errors="replace")[-300:]
                raise SandboxUnavailableError(
                    f"a micro-VM was made and did not work ({outcome.ending}): {said}"
                )
        except BaseException:
            await self.close()
            raise
        version = None if self._groups is None else 2 if self._groups.is_newer else 1
        self.parts = {
            "machine": "Firecracker, KVM",
            "devices": "one vsock; no network device, no disk",
            "around Firecracker": "its own system call filter; no namespaces (its jailer is not used)",
            "user": "without privileges" if os.getuid() else f"uid {UNPRIVILEGED}",
            "cgroups": f"version {version}" if version else "missing: none may be written; the machine's own size is the limit",
        }  # fmt: skip

    # -- machines
    async def _save(self) -> None:
        """Boot a machine until it waits for a job, and keep its snapshot where no clone can write."""
        folder, guest = await self._started()
        memory_bytes = -(-(self._limits.memory_bytes + SYSTEM_BYTES) // MIB) * MIB
        api = Api(folder / API)
        try:
            await api.boot(self._image / vm_image.KERNEL, self._image / vm_image.ROOT, memory_bytes)
            await self._meet(guest, folder, BOOT_S)
            await guest.greet(self._limits, BOOT_S)
            await asyncio.sleep(SETTLING_S)
            guest.writer.close()  # a connection does not outlive a snapshot; who listens does
            await api.save(MEMORY, STATE)
            for name in (MEMORY, STATE):
                (folder / name).chmod(0o444)
                os.rename(folder / name, self._place / name)  # noqa: PTH104 - between folders
                os.chown(self._place / name, os.getuid(), os.getgid())
        finally:
            await api.close()
            await guest.close()

    async def _clone(self, is_ahead: bool) -> Guest:  # noqa: ARG002, FBT001 - the pool's; nothing is translated
        folder, guest = await self._started()
        api = Api(folder / API)
        try:
            await api.load(self._place / MEMORY, self._place / STATE)
            await self._meet(guest, folder, APPEAR_S)
        except BaseException:
            await guest.close()
            raise
        finally:
            await api.close()
        return guest

    @property
    def _place(self) -> Path:
        if self._folder is None:
            raise SandboxUnavailableError("no sandbox can be made: the pool is closed")
        return self._folder

    async def _meet(self, guest: Guest, folder: Path, timeout_s: float) -> None:
        guest.writer.close()
        guest.reader, guest.writer = await connected(folder / VSOCK, timeout_s)

    async def _started(self) -> tuple[Path, Guest]:
        """Start Firecracker in a folder of its own, until it listens."""
        folder = self._place / f"vm-{next(self._numbers)}"
        enclosed.own(folder)
        limits = SandboxLimits(
            memory_bytes=self._limits.memory_bytes + SYSTEM_BYTES + PROGRAM_BYTES,
            processes=THREADS,
            cpu_share=self._limits.cpu_share,
        )
        program = enclosed.Program(
            argv=[str(self._program), "--api-sock", API], env={}, descriptors=(), folder=str(folder), file_bytes=None, limits=limits,
            groups=kvm_obstacle(UNPRIVILEGED)[1],
        )  # fmt: skip
        try:
            process, group = enclosed.start(program, self._groups, is_walled=False)
        except BaseException:
            shutil.rmtree(folder)
            raise
        nobody, _ = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=nobody)
        guest = Guest(process, reader, writer, "Firecracker, KVM", group)
        guest.let_go.append(lambda: self._let_go(guest, folder))
        try:
            await _appeared(folder / API)
        except BaseException:
            await guest.close()
            raise
        return folder, guest

    def _let_go(self, guest: Guest, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if guest.group is not None and self._groups is not None:
            self._groups.leave(guest.group)

    # -- jobs
    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a fresh micro-VM (see the port)."""
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        return await guest_use.run(self._pool, job, chosen, doors or {}, self.tier)

    async def close(self) -> None:
        """End every machine."""
        await self._pool.close()
        if self._groups is not None:
            await self._groups.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _appeared(path: Path) -> None:
    for _ in range(int(APPEAR_S / APPEAR_STEP_S)):
        if path.is_socket():  # noqa: ASYNC240 - one look at a directory in memory
            return
        await asyncio.sleep(APPEAR_STEP_S)
    raise SandboxUnavailableError(f"Firecracker did not listen within {APPEAR_S:g} s")
