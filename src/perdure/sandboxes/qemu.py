"""QEMU: where it is, how a machine of its ``microvm`` kind is started, and the few words of its monitor that we need."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from perdure.core.errors import SandboxUnavailableError

PROGRAM = "qemu-system-x86_64"
ANSWER_S = 30  # for the monitor to answer one command, on a busy machine
SAVE_S = 60  # for a state to be written: it is small, the memory is there already
POLL_S = 0.01
CODE_MIB = 64  # of translated code that an emulated machine keeps
Accelerator = Literal["kvm", "tcg"]
CPUS: dict[Accelerator, str] = {
    "kvm": "host",
    # Without what emulation does slowly: wide vectors, copying byte by byte, five levels of pages.
    "tcg": "max,-avx,-avx2,-erms,-fsrm,-la57",
}
KERNEL_LINE = "quiet loglevel=1 reboot=t panic=-1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on rcupdate.rcu_expedited=1"
SLOW_LINE = "lpj=5200000 tsc_early_khz=2600000 clearcpuid=112"  # nothing to be measured where time is emulated; no `rep movs`
FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Qemu:
    """The program on this machine.

    Attributes:
        path: of it.
        env: what it needs to find its libraries.
        firmware: where its own files are.
        read_only: directories that it must see besides ``/usr``.
    """

    path: str
    env: dict[str, str]
    firmware: tuple[str, ...]
    read_only: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the program: states of one do not fit another."""
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def argv(
        self, accelerator: Accelerator, memory_bytes: int, *, ram: int, is_template: bool, channel: int, monitor: int, boot: Sequence[str]
    ) -> list[str]:  # fmt: skip
        """How a machine is started.

        Args:
            accelerator: what executes it.
            memory_bytes: of the machine.
            ram: a descriptor for them.
            is_template: whether it writes into them; else its changes are its own.
            channel: a descriptor: the guest's.
            monitor: the monitor's.
            boot: kernel and root, or ``-incoming defer``.
        """
        share = "on" if is_template else "off"
        tuned = f"tcg,tb-size={CODE_MIB}" if accelerator == "tcg" else accelerator
        shown = [part for folder in self.firmware for part in ("-L", folder)]
        return [
            self.path, *shown, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-sandbox", FILTER,
            "-M", "microvm,pit=off,rtc=off,memory-backend=ram", "-accel", tuned, "-cpu", CPUS[accelerator], "-smp", "1",
            "-m", f"{memory_bytes // (1 << 20)}M",
            "-object", f"memory-backend-file,id=ram,size={memory_bytes},mem-path=/proc/self/fd/{ram},share={share}",
            "-chardev", f"socket,id=guest,fd={channel}", "-device", "virtio-serial-device",
            "-device", "virtserialport,chardev=guest,name=perdure",
            "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control", *boot,
        ]  # fmt: skip


def found(tools: Path | None) -> Qemu:
    """QEMU in a folder that ``scripts/sandboxes`` has filled, or on the path.

    Raises:
        SandboxUnavailableError: it is in neither; with what to install.
    """
    if tools is not None and (tools / "usr" / "bin" / PROGRAM).exists():
        base = tools.resolve()
        libraries = ":".join(str(base / name / "x86_64-linux-gnu") for name in ("usr/lib", "lib"))
        firmware = (str(base / "usr/share/qemu"), str(base / "usr/share/seabios"))
        return Qemu(
            str(base / "usr/bin" / PROGRAM),
            {"LD_LIBRARY_PATH": libraries},
            firmware,
            (str(base / "usr"), str(base / "lib")),
        )
    path = shutil.which(PROGRAM)
    if path is None:
        raise SandboxUnavailableError(
            f"{PROGRAM} is not here; `apt-get install qemu-system-x86`, or run `scripts/sandboxes` and name its folder"
        )
    real = os.path.realpath(path)
    return Qemu(real, {}, (), () if real.startswith("/usr/") else (str(Path(real).parent.parent),))


def kvm_obstacle(uid: int) -> tuple[str, list[int]]:
    """Why KVM cannot even be tried by somebody without privileges (empty if it can), and the groups that they need for it."""
    try:
        device = Path("/dev/kvm").stat()
    except OSError:
        return "there is no /dev/kvm", []
    if device.st_mode & stat.S_IRWXO & 0o6 == 0o6:
        return "", []
    if (
        device.st_mode & 0o060 == 0o060
        and device.st_gid
        and (os.getuid() == 0 or device.st_gid in os.getgroups())
    ):
        return "", [device.st_gid]
    if os.getuid() != 0 and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "", []
    return (
        f"/dev/kvm may not be opened by uid {uid}, who QEMU is; its group should be `kvm` and its mode 660",
        [],
    )


class Monitor:
    """QEMU's monitor (QMP) over our end of a pair of sockets."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._held = bytearray()

    async def ask(self, command: str, *, descriptor: int | None = None, **arguments: Any) -> Any:
        """One command, and what it returns.

        Raises:
            SandboxUnavailableError: it failed, or there is no answer.
        """
        data = msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n"
        try:
            if descriptor is None:
                await asyncio.get_running_loop().sock_sendall(self._channel, data)
            else:
                socket.send_fds(self._channel, [data], [descriptor])
            async with asyncio.timeout(ANSWER_S):
                while True:
                    said = msgspec.json.decode(await self._line())
                    if "error" in said:
                        raise SandboxUnavailableError(
                            f"QEMU refuses `{command}`: {said['error'].get('desc', '')}"
                        )
                    if "return" in said:
                        return said["return"]
        except (TimeoutError, OSError, msgspec.DecodeError) as error:
            raise SandboxUnavailableError(f"QEMU's monitor does not answer `{command}`: {error!r}") from error

    async def resumed(self) -> None:
        """Until a machine that was told to load a state goes on from it.

        Raises:
            SandboxUnavailableError: it does not.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    said = msgspec.json.decode(await self._line())
                    if "error" in said:
                        raise SandboxUnavailableError(
                            f"QEMU cannot load a micro-VM: {said['error'].get('desc', '')}"
                        )
                    if said.get("event") == "RESUME":
                        return
        except (TimeoutError, OSError, msgspec.DecodeError) as error:
            raise SandboxUnavailableError(f"QEMU does not go on from a saved micro-VM: {error!r}") from error

    async def _line(self) -> bytes:
        while (place := self._held.find(b"\n")) < 0:
            data = await asyncio.get_running_loop().sock_recv(self._channel, 65_536)
            if not data:
                raise ConnectionError("it is gone")
            self._held += data
        line = bytes(self._held[:place])
        del self._held[: place + 1]
        return line

    async def save(self, into: int) -> None:
        """Write the state of the machine, without its memory, and stop it.

        Raises:
            SandboxUnavailableError: it failed.
        """
        await self.ask("qmp_capabilities")
        await self.ask("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
        await self.ask("getfd", descriptor=into, fdname="state")
        await self.ask("migrate", uri="fd:state")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAVE_S):
                while True:
                    status = (await self.ask("query-migrate")).get("status")
                    if status == "completed":
                        return
                    if status in ("failed", "cancelled"):
                        break
                    await asyncio.sleep(POLL_S)
        raise SandboxUnavailableError("QEMU could not save the state of a micro-VM")


IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}


def load_commands(state: int) -> bytes:
    """What a fresh QEMU is told so that it goes on from a state; written ahead, it reads it when it is ready."""
    commands = (
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [IGNORE_SHARED]}},
        {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}},
    )
    return b"".join(msgspec.json.encode(command) + b"\n" for command in commands)
