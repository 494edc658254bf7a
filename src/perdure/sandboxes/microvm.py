"""Micro-VMs: for each job a clone of a saved machine that waits for one, with QEMU; KVM where it really works, emulation otherwise."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits, SandboxOutcome, Tier, narrower
from perdure.ports import Door
from perdure.sandboxes import enclosed, guest_use, vm_image
from perdure.sandboxes.cgroups import Cgroups, group_name
from perdure.sandboxes.guests import Guest, Pool, connected
from perdure.sandboxes.qemu import (
    KERNEL_LINE,
    SLOW_LINE,
    Accelerator,
    Monitor,
    Qemu,
    found,
    kvm_obstacle,
    load_commands,
)
from perdure.sandboxes.vm_state import State, key_of, read, refusal, refuse, write
from perdure.sandboxes.zygotes import UNPRIVILEGED

BOOT_S: Mapping[Accelerator, float] = {
    "kvm": 20.0,
    "tcg": 180.0,
}  # KVM that needs longer is none: probed by a real boot
SYSTEM_BYTES = 192 * MIB  # of the guest's memory for its own system, besides what a job may use
STATES = "states"  # in the image's folder
REHEARSAL_S = 30.0
SETTLING_S = 2.0  # what a machine still does when it is saved, each of its clones does again
QEMU_BYTES = 256 * MIB  # of QEMU's own, besides the guest's memory
QEMU_THREADS = 64
LABELS: Mapping[Accelerator, str] = {"kvm": "KVM", "tcg": "emulated (TCG)"}


class MicrovmSandboxes:
    """Implements ``Sandboxes`` with QEMU.

    The saved machine lies in the image's folder if that may be written, under a digest of all that it is made of, and is made again when that changes. Its memory
    is shared by all clones and cannot be changed by any of them.

    Args:
        limits: of every sandbox; a job may have narrower ones.
        spare: how many clones are kept running ahead; each takes about a third of a processor for a moment, and some 60 MB.
        at_once: how many have a job at the same time.
        image: the folder of ``perdure.sandboxes.vm_image``; by default its own default.
        tools: the folder of ``scripts/sandboxes``; by default QEMU is looked for on the path.
        accelerators: what may execute the machine, best first.
    """

    tier: Tier = "microvm"

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        *,
        spare: int = 1,
        at_once: int = 8,
        image: Path | None = None,
        tools: Path | None = None,
        accelerators: tuple[Accelerator, ...] = ("kvm", "tcg"),
    ) -> None:
        self._limits = limits or SandboxLimits()
        self._image = image or vm_image.default_folder()
        self._tools = tools
        self._accelerators = accelerators
        self._groups: Cgroups | None = None
        self._pool = Pool(self._clone, spare=spare, at_once=at_once)
        self._state: State | None = None
        self._qemu: Qemu | None = None
        self._is_walled = True
        self._without_wall = ""
        self._not_kept = ""
        self._refused: dict[str, str] = {}
        self.parts: Mapping[str, str] = {}

    # -- getting ready
    async def open(self) -> None:
        """Load the saved machine, or boot one and save it, and prove with a real job that clones of it work. May take seconds.

        Raises:
            SandboxUnavailableError: QEMU or the image is missing, or no accelerator boots it here.
        """
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise SandboxUnavailableError(
                f"micro-VMs are for Linux on x86_64 as yet, this is {sys.platform} on {platform.machine()}; use tier `remote`"
            )
        self._qemu = found(self._tools)
        if not vm_image.digest_of(self._image):
            raise SandboxUnavailableError(
                f"there is no image of a micro-VM in {self._image}; `python -m perdure.sandboxes.vm_image --into {self._image}` makes one"
            )
        groups = Cgroups(group_name())
        self._groups = groups if await asyncio.to_thread(groups.open) else None
        try:
            await self._find_wall()
            self._state = await self._found_state()
            outcome = await self.run(SandboxJob(code="print(6 * 7)"))
            if outcome.stdout != b"42\n":
                said = outcome.stderr.decode(errors="replace")[-300:]
                raise SandboxUnavailableError(
                    f"a micro-VM was made and did not work ({outcome.ending}): {said}"
                )
        except BaseException:
            await self.close()
            raise
        self.parts = self._found_parts()

    def _found_parts(self) -> dict[str, str]:
        accelerator = self._state.accelerator if self._state is not None else "tcg"
        kvm = self._refused.get("kvm", "not asked for")
        version = None if self._groups is None else 2 if self._groups.is_newer else 1
        namespaces = "user, mount, pid, network, ipc, uts, cgroup; only programs of the system for reading"
        return {
            "machine": f"QEMU microvm, {LABELS[accelerator]}" + ("" if accelerator == "kvm" else f"; no KVM: {kvm}"),
            "saved machine": f"in memory only: {self._not_kept}" if self._not_kept else "kept in the image's folder",
            "devices": "one virtio-serial port; no network device, no disk",
            "around QEMU: namespaces": namespaces if self._is_walled else f"missing: {self._without_wall}",
            "around QEMU: system calls": "filtered by QEMU itself (seccomp): no new programs, no privileges",
            "around QEMU: user": "without privileges" if os.getuid() else f"uid {UNPRIVILEGED}",
            "cgroups": f"version {version}" if version else "missing: none may be written; the machine's own size is the limit",
        }  # fmt: skip

    async def _find_wall(self) -> None:
        """Whether QEMU can be put into namespaces here; where it cannot, ``parts`` says so."""
        program = enclosed.Program(
            argv=[self._program.path, *self._firmware, "-version"], env=self._program.env, descriptors=(),
            read_only=self._program.read_only, limits=SandboxLimits(),
        )  # fmt: skip
        process, _ = enclosed.start(program, None, is_walled=True)
        _, said = await asyncio.to_thread(process.communicate)
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit code {process.returncode}"
            if "[Errno 28]" in why and "unshare" in why:  # no disk is full
                why = "user namespaces are disabled (user.max_user_namespaces)"
            self._is_walled, self._without_wall = False, why

    @property
    def _program(self) -> Qemu:
        if self._qemu is None:
            raise SandboxUnavailableError("no sandbox can be made: it was not opened")
        return self._qemu

    @property
    def _firmware(self) -> list[str]:
        return [part for folder in self._program.firmware for part in ("-L", folder)]

    async def _found_state(self) -> State:
        """A saved machine for the best accelerator that really boots it."""
        for accelerator in self._accelerators:
            obstacle = await asyncio.to_thread(self._obstacle, accelerator)
            if not obstacle:
                try:
                    return await self._state_of(accelerator)
                except SandboxUnavailableError as error:
                    obstacle = error.message
                    if accelerator == "kvm":
                        await asyncio.to_thread(refuse, self._image / STATES, self._program.digest, obstacle)
            self._refused[accelerator] = obstacle
        why = "; ".join(f"{name}: {reason}" for name, reason in self._refused.items())
        raise SandboxUnavailableError(f"no micro-VM boots here ({why})")

    def _obstacle(self, accelerator: Accelerator) -> str:
        """Why an accelerator need not be tried. Blocks."""
        if accelerator != "kvm":
            return ""
        return kvm_obstacle(os.getuid() or UNPRIVILEGED)[0] or refusal(
            self._image / STATES, self._program.digest
        )

    async def _state_of(self, accelerator: Accelerator) -> State:
        memory_bytes = -(-(self._limits.memory_bytes + SYSTEM_BYTES) // MIB) * MIB
        key = await asyncio.to_thread(
            key_of,
            vm_image.digest_of(self._image),
            self._program.digest,
            accelerator,
            memory_bytes,
            self._limits,
        )
        folder = self._image / STATES / key
        state = await asyncio.to_thread(read, folder, accelerator, memory_bytes)
        if state is None:
            state = await self._booted(accelerator, memory_bytes)
            try:
                await asyncio.to_thread(write, state, folder)
            except SandboxUnavailableError as error:  # then it is made again next time
                self._not_kept = error.message
        else:
            await state.seal()
        return state

    async def _booted(self, accelerator: Accelerator, memory_bytes: int) -> State:
        """Boot a machine until it waits for a job, and save it."""
        state = State.empty(accelerator, memory_bytes)
        kernel, root = (os.open(self._image / name, os.O_RDONLY) for name in (vm_image.KERNEL, vm_image.ROOT))
        boot = [
            "-kernel",
            f"/proc/self/fd/{kernel}",
            "-initrd",
            f"/proc/self/fd/{root}",
            "-append",
            line_of(accelerator),
        ]
        try:
            guest, channel = await self._start(state, boot, (kernel, root), is_template=True)
            with channel:
                try:
                    await guest.greet(self._limits, BOOT_S[accelerator])
                    await asyncio.sleep(SETTLING_S)
                    await Monitor(channel).save(state.device)
                finally:
                    await guest.close()
            await state.seal()
        except BaseException:
            state.close()
            raise
        finally:
            for descriptor in (kernel, root):
                os.close(descriptor)
        return state

    # -- machines
    async def _start(
        self, state: State, boot: list[str], given: tuple[int, ...], *, is_template: bool, words: bytes = b""
    ) -> tuple[Guest, socket.socket]:
        """Start QEMU; its guest, and our end of its monitor."""
        ours, theirs = socket.socketpair()
        monitor, its_monitor = socket.socketpair()
        with theirs, its_monitor:
            monitor.sendall(words)
            argv = self._program.argv(
                state.accelerator, state.memory_bytes, ram=state.ram, is_template=is_template, channel=theirs.fileno(),
                monitor=its_monitor.fileno(), boot=boot,
            )  # fmt: skip
            program = enclosed.Program(
                argv=argv, env=self._program.env, descriptors=(state.ram, theirs.fileno(), its_monitor.fileno(), *given),
                read_only=self._program.read_only, has_kvm=state.accelerator == "kvm", limits=self._of_qemu(state),
                file_bytes=state.memory_bytes if is_template else 0, groups=kvm_obstacle(UNPRIVILEGED)[1],
            )  # fmt: skip
            try:
                process, group = enclosed.start(program, self._groups, is_walled=self._is_walled)
            except BaseException:
                ours.close()
                monitor.close()
                raise
        reader, writer = await connected(ours)
        guest = Guest(process, reader, writer, LABELS[state.accelerator], None)
        if group is not None and self._groups is not None:
            guest.let_go.append(lambda: self._groups.leave(group) if self._groups is not None else None)
        return guest, monitor

    def _of_qemu(self, state: State) -> SandboxLimits:
        return SandboxLimits(
            memory_bytes=state.memory_bytes + QEMU_BYTES,
            processes=QEMU_THREADS,
            cpu_share=self._limits.cpu_share,
        )

    async def _clone(self, is_ahead: bool) -> Guest:  # noqa: FBT001 - the pool's
        """A machine that goes on from the saved state; whatever it writes into its memory is its own."""
        if self._state is None:
            raise SandboxUnavailableError("no sandbox can be made: the pool is closed")
        device = self._state.reopened()
        try:
            guest, monitor = await self._start(
                self._state, ["-incoming", "defer"], (device,), is_template=False, words=load_commands(device)
            )
        finally:
            os.close(device)
        guest.let_go.append(monitor.close)
        try:
            await Monitor(monitor).resumed()
            if is_ahead:
                await guest.rehearse(REHEARSAL_S)
        except BaseException:
            await guest.close()
            raise
        return guest

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
        if self._state is not None:
            self._state.close()
            self._state = None
        if self._groups is not None:
            await self._groups.close()


def line_of(accelerator: Accelerator) -> str:
    """What the kernel is told."""
    return KERNEL_LINE if accelerator == "kvm" else f"{KERNEL_LINE} {SLOW_LINE}"
