"""The saved state of a micro-VM: its memory and its devices, in memory while it is used, and in files between times."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.sandboxes.guests import built_in
from perdure.sandboxes.qemu import Accelerator

FORMAT = 2  # one more when the way in which a machine is started or saved changes
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SEALING_MAX, SEALING_S = 500, 0.02  # how often, and how long apart, it is tried
PAGES_BYTES = 64 << 10  # zeros of this size are not kept
KEPT_MAX = 4  # states in a folder: of some limits and accelerators; what an older image has left is let go
REFUSED = ".no-kvm.json"
RAM, DEVICE = "ram", "device"
MODE = (
    0o777  # of what is in memory: whoever has the descriptor may map it, and the seals say what he may change
)


@dataclass(slots=True)
class State:
    """A saved machine.

    Attributes:
        accelerator: what it was executed by, and can be.
        memory_bytes: of the machine.
        ram: a descriptor of its memory.
        device: a descriptor of all else.
    """

    accelerator: Accelerator
    memory_bytes: int
    ram: int
    device: int

    @classmethod
    def empty(cls, accelerator: Accelerator, memory_bytes: int) -> State:
        """One that a machine will be saved into.

        Raises:
            SandboxUnavailableError: there is no room for it.
        """
        try:
            ram, device = (
                os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for name in (RAM, DEVICE)
            )
            os.truncate(ram, memory_bytes)
        except OSError as error:
            raise SandboxUnavailableError(f"a micro-VM cannot be kept in memory: {error.strerror}") from error
        for descriptor in (ram, device):
            os.fchmod(descriptor, MODE)
        return cls(accelerator, memory_bytes, ram, device)

    async def seal(self) -> None:
        """From now on nobody can change it, whoever has its descriptors: a clone that was taken over cannot reach the next ones.

        Raises:
            SandboxUnavailableError: whoever made it still has it.
        """
        for _ in range(SEALING_MAX):
            try:
                for descriptor in (self.ram, self.device):
                    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS:
                        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
            except OSError as error:
                if (
                    error.errno != errno.EBUSY
                ):  # the machine that it was saved from was killed, and is just ending
                    raise SandboxUnavailableError(
                        f"a saved micro-VM cannot be protected: {error.strerror}"
                    ) from error
                await asyncio.sleep(SEALING_S)
            else:
                return
        raise SandboxUnavailableError("a saved micro-VM cannot be protected: it is still in use")

    def reopened(self) -> int:
        """A descriptor of the devices with a place of its own; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.device}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.ram)
        os.close(self.device)


def key_of(
    image: str, program: str, accelerator: Accelerator, memory_bytes: int, limits: SandboxLimits
) -> str:
    """The digest of what a state depends on. Blocks."""
    processor = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0] if accelerator == "kvm" else ""
    lines = [line for line in processor.splitlines() if line.startswith(("model name", "flags", "microcode"))]
    made_of = [FORMAT, image, program, accelerator, memory_bytes, built_in(limits), lines]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def read(folder: Path, accelerator: Accelerator, memory_bytes: int) -> State | None:
    """The state that a folder of ours has, if it has one; not sealed yet. Blocks.

    Raises:
        SandboxUnavailableError: somebody else could have changed it, or it cannot be read.
    """
    try:
        found = folder.stat()
    except (FileNotFoundError, PermissionError):  # nobody's, or somebody else's
        return None
    if found.st_uid != os.getuid():
        return None  # somebody else's is not believed
    if found.st_mode & 0o022:
        raise SandboxUnavailableError(f"{folder} must be writable by nobody else; remove it")
    state = State.empty(accelerator, memory_bytes)
    try:
        for name, target in ((RAM, state.ram), (DEVICE, state.device)):
            with (folder / name).open("rb") as source:
                _copy(source.fileno(), target)
    except OSError as error:
        state.close()
        raise SandboxUnavailableError(
            f"the saved micro-VM in {folder} cannot be read: {error}; remove it"
        ) from error
    return state


def write(state: State, folder: Path) -> None:
    """Keep a state in a folder, whole or not at all. Blocks.

    Raises:
        SandboxUnavailableError: it cannot be written.
    """
    beside = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        beside.mkdir(mode=0o700, parents=True)
        for name, source in ((RAM, state.ram), (DEVICE, state.device)):
            with (beside / name).open("wb") as target:
                _copy(source, target.fileno())
        with contextlib.suppress(OSError):  # another process was first: its state is as good
            beside.rename(folder)
        _forget_oldest(folder.parent)
    except OSError as error:
        raise SandboxUnavailableError(f"the saved micro-VM cannot be kept in {folder}: {error}") from error
    finally:
        for name in (RAM, DEVICE):
            (beside / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            beside.rmdir()


def refusal(folder: Path, program: str) -> str:
    """Why KVM did not boot a machine since this host was started, if that was tried; it takes its time to find out. Blocks."""
    try:
        if (folder / REFUSED).stat().st_uid != os.getuid():
            return ""
        told = json.loads((folder / REFUSED).read_bytes())
        return str(told["why"]) if told["of"] == _this_host(program) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def refuse(folder: Path, program: str, why: str) -> None:
    """Remember that, if it can be remembered. Blocks."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REFUSED).write_text(json.dumps({"of": _this_host(program), "why": why}))


def _this_host(program: str) -> list[str]:
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), program]


def _forget_oldest(folder: Path) -> None:
    """All but the newest ones. Who has loaded one needs it no more."""
    kept = sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
    )
    for path in kept[:-KEPT_MAX]:
        for name in (RAM, DEVICE):
            (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()


def _copy(source: int, target: int) -> None:
    """Everything but zeros: most of a machine's memory was never touched."""
    size = os.fstat(source).st_size
    os.truncate(target, size)
    nothing = bytes(PAGES_BYTES)
    place = 0
    while place < size:
        try:
            place = os.lseek(source, place, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        end = os.lseek(source, place, os.SEEK_HOLE)
        while place < end:
            data = os.pread(source, min(PAGES_BYTES, end - place), place)
            if not data:
                return
            if data != nothing[: len(data)]:
                os.pwrite(target, data, place)
            place += len(data)
