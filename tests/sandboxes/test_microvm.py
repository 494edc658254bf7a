"""Micro-VMs keep the promises of the port, start from one state and are no copies of each other, and nothing in them reaches the host.

The first test of a machine boots a guest in emulation, which takes some ten seconds; the others clone it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.ports import Sandboxes
from perdure.sandboxes import qemu, vm_image, vm_state
from perdure.sandboxes.microvm import MicrovmSandboxes
from perdure.testing.conformance.sandbox_attacks import ATTACKS
from perdure.testing.conformance.sandboxes import CASES, LIMITS
from tests.sandboxes.doors import CASES as DOORS
from tests.sandboxes.reaching import attack
from tests.sandboxes.tools import tools

pytestmark = pytest.mark.asyncio(loop_scope="module")
# The guest's own kernel, processes and descriptors: a guest that takes them over has what it had before.
OF_THE_GUEST = {
    "kernel-symbols", "sysfs", "namespaces", "clone-namespaces", "clone3", "keyrings", "io-uring", "no-filter", "cgroups",
    "other-processes", "virtual-machine-sockets", "netlink",
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandboxes() -> AsyncIterator[MicrovmSandboxes]:
    made = MicrovmSandboxes(LIMITS, spare=1, image=tools() / "image", tools=tools())
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no micro-VMs here: {error}")
    yield made
    await made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(sandboxes: MicrovmSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_does_not_reach_the_host(
    sandboxes: MicrovmSandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said = await attack(sandboxes, tmp_path, monkeypatch, name)
    assert name in OF_THE_GUEST or b"ESCAPED" not in said, said


@pytest.mark.parametrize("case", DOORS, ids=lambda case: case.__name__)
async def test_doors(sandboxes: MicrovmSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)


async def test_what_is_in_force_is_told(sandboxes: MicrovmSandboxes) -> None:
    found = await sandboxes.run(SandboxJob(code="print(1)"))
    assert (found.tier, found.detail) in [("microvm", "KVM"), ("microvm", "emulated (TCG)")]
    assert found.detail in sandboxes.parts["machine"]
    assert set(sandboxes.parts) == {
        "machine", "saved machine", "devices", "around QEMU: namespaces", "around QEMU: system calls", "around QEMU: user", "cgroups",
    }  # fmt: skip


async def test_there_are_no_devices_but_the_port(sandboxes: MicrovmSandboxes) -> None:
    code = """
import os, socket
print(sorted(os.listdir("/sys/bus/virtio/devices")), [name for _, name in socket.if_nameindex()], os.path.exists("/sys/bus/pci/devices/0000:00:00.0"))
print([name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "vsock"))])
"""
    found = await sandboxes.run(SandboxJob(code=code))
    assert found.stdout == b"['virtio0'] ['lo'] False\n[]\n", found


async def test_a_clone_knows_what_time_it_is(sandboxes: MicrovmSandboxes) -> None:
    found = await sandboxes.run(SandboxJob(code="import time; print(time.time())"))
    assert abs(float(found.stdout) - time.time()) < 30


async def test_clones_of_one_state_are_given_other_random_numbers_in_every_way(
    sandboxes: MicrovmSandboxes,
) -> None:
    code = """
import os, random, secrets, tempfile, subprocess
print(os.urandom(8).hex(), open("/dev/random", "rb").read(8).hex(), open("/dev/urandom", "rb").read(8).hex(), secrets.token_hex(8))
print(random.random(), os.path.basename(tempfile.mktemp()), subprocess.run(["/bin/mktemp", "-u"], capture_output=True, text=True).stdout)
"""
    found = await asyncio.gather(*(sandboxes.run(SandboxJob(code=code)) for _ in range(4)))
    drawn = [item.stdout.split() for item in found]
    assert all(len(words) == 7 for words in drawn), found
    assert all(len(set(column)) == 4 for column in zip(*drawn, strict=True)), drawn


async def test_no_clone_can_change_the_saved_state(sandboxes: MicrovmSandboxes) -> None:
    state = sandboxes._state
    assert state is not None
    for descriptor in (state.ram, state.device):
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & vm_state.SEALS == vm_state.SEALS
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
        os.close(again)


async def test_qemu_has_no_privileges_and_sees_nothing_of_the_host(sandboxes: MicrovmSandboxes) -> None:
    await sandboxes._pool.filled()
    running = asyncio.create_task(sandboxes.run(SandboxJob(code="import time; time.sleep(20)")))
    await asyncio.sleep(1)
    mine = _machines()
    try:
        assert mine
        for pid in mine:
            status = dict(
                line.split(":\t", 1) for line in _of(pid, "status").decode().splitlines() if ":\t" in line
            )
            assert status["CapEff"] == "0000000000000000"
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
            assert os.getuid() != 0 or status["Uid"].split()[0] == "65534"
            assert _of(pid, "environ").replace(b"LD_LIBRARY_PATH=", b"").count(b"=") == 0
            if sandboxes._is_walled:
                for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
                    assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
                assert not os.path.exists(f"/proc/{pid}/root{Path.home()}")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_machine_that_is_killed_is_lost_and_nobody_else_is(sandboxes: MicrovmSandboxes) -> None:
    await sandboxes._pool.filled()
    running = asyncio.create_task(
        sandboxes.run(SandboxJob(code="import time; print('begun', flush=True); time.sleep(20)"))
    )
    await asyncio.sleep(1.5)
    for pid in _machines():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    found = await running
    assert (found.ending, found.exit_code) == ("lost", None), found
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"


async def test_nothing_is_left_running(sandboxes: MicrovmSandboxes) -> None:
    state = sandboxes._image
    made = MicrovmSandboxes(LIMITS, spare=2, image=state, tools=tools())
    await made.open()
    await made._pool.filled()
    launchers = [guest.process.pid for guest in made._pool._spare]
    before = {pid for pid in _machines() if any(_descends(pid, launcher) for launcher in launchers)}
    assert len(before) == 2
    await made.close()
    for _ in range(100):
        if not before & set(_machines()):
            break
        await asyncio.sleep(0.05)
    assert not before & set(_machines())
    with pytest.raises(SandboxUnavailableError):
        await made.run(SandboxJob(code="print(1)"))


async def test_where_namespaces_are_forbidden_it_is_noticed(sandboxes: MicrovmSandboxes) -> None:
    """In a user namespace of its own, where no further ones may be made."""
    code = f"""
import asyncio
from pathlib import Path
from perdure.sandboxes.microvm import MicrovmSandboxes
from perdure.sandboxes.qemu import found
open("/proc/sys/user/max_user_namespaces", "w").write("0")
made = MicrovmSandboxes()
made._qemu = found(Path({str(tools())!r}))
asyncio.run(made._find_wall())
print(made._is_walled, made._without_wall)
"""
    command = ("unshare", "--user", "--map-user=1000", "--keep-caps", sys.executable, "-c", code)
    probe = await asyncio.create_subprocess_exec(*command[:4], "true", stderr=asyncio.subprocess.DEVNULL)
    if await probe.wait():
        pytest.skip("no user namespaces here at all: the other tests are about this")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, problem = await process.communicate()
    assert said == b"False user namespaces are disabled (user.max_user_namespaces)\n", problem


# -- what it is made of
async def test_without_qemu_or_an_image_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="apt-get install qemu-system-x86"):
        await MicrovmSandboxes(image=tmp_path, tools=tmp_path).open()
    with pytest.raises(SandboxUnavailableError, match="vm_image --into"):
        await MicrovmSandboxes(image=tmp_path, tools=tools()).open()
    with pytest.raises(SandboxUnavailableError, match="linux-image-cloud-amd64"):
        vm_image.find_kernel([tmp_path])


async def test_an_accelerator_that_does_not_work_is_named_and_nothing_weaker_is_taken(
    sandboxes: MicrovmSandboxes,
) -> None:
    only = MicrovmSandboxes(LIMITS, spare=0, image=sandboxes._image, tools=tools(), accelerators=("kvm",))
    if sandboxes._state is not None and sandboxes._state.accelerator == "kvm":
        pytest.skip("KVM works here")
    with pytest.raises(SandboxUnavailableError, match="kvm"):
        await only.open()


async def test_a_state_is_made_again_when_what_it_is_made_of_changes() -> None:
    usual = ("image", "program", "tcg", 256 * MIB, LIMITS)
    other_limits = SandboxLimits(memory_bytes=128 * MIB)
    keys = {
        vm_state.key_of(*usual), vm_state.key_of("other", *usual[1:]), vm_state.key_of("image", "other", *usual[2:]),
        vm_state.key_of("image", "program", "kvm", *usual[3:]), vm_state.key_of(*usual[:3], 512 * MIB, LIMITS),
        vm_state.key_of(*usual[:4], other_limits),
    }  # fmt: skip
    assert len(keys) == 6
    assert vm_state.key_of(*usual) in keys


async def test_a_state_is_kept_whole_and_not_taken_from_where_others_may_write(tmp_path: Path) -> None:
    state = vm_state.State.empty("tcg", 8 * MIB)
    os.pwrite(state.ram, b"here", 5 * MIB)
    os.write(state.device, b"devices")
    await asyncio.to_thread(vm_state.write, state, tmp_path / "states" / "key")
    found = vm_state.read(tmp_path / "states" / "key", "tcg", 8 * MIB)
    assert found is not None
    assert os.pread(found.ram, 8 * MIB, 0) == os.pread(state.ram, 8 * MIB, 0)
    assert os.pread(found.device, 100, 0) == b"devices"
    assert (tmp_path / "states" / "key" / "ram").stat().st_blocks * 512 < 1 * MIB
    for each in (state, found):
        each.close()
    assert vm_state.read(tmp_path / "nothing", "tcg", 8 * MIB) is None
    (tmp_path / "states" / "key").chmod(0o777)
    with pytest.raises(SandboxUnavailableError, match="writable by nobody else"):
        vm_state.read(tmp_path / "states" / "key", "tcg", 8 * MIB)


async def test_of_many_states_the_newest_are_kept(tmp_path: Path) -> None:
    state = vm_state.State.empty("tcg", 1 * MIB)
    for number in range(vm_state.KEPT_MAX + 3):
        vm_state.write(state, tmp_path / f"key-{number}")
        os.utime(tmp_path / f"key-{number}", (number, number))
    state.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"key-{number}" for number in range(3, 3 + vm_state.KEPT_MAX)
    ]


async def test_a_kvm_that_did_not_boot_is_not_tried_again_until_something_changes(tmp_path: Path) -> None:
    assert vm_state.refusal(tmp_path, "qemu") == ""
    vm_state.refuse(tmp_path / "states", "qemu", "it did not boot")
    assert vm_state.refusal(tmp_path / "states", "qemu") == "it did not boot"
    assert vm_state.refusal(tmp_path / "states", "another qemu") == ""
    (tmp_path / "states" / vm_state.REFUSED).write_text('{"of": ["another boot", "qemu"], "why": "no"}')
    assert vm_state.refusal(tmp_path / "states", "qemu") == ""


async def test_somebody_elses_state_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = vm_state.State.empty("tcg", 1 * MIB)
    vm_state.write(state, tmp_path / "key")
    state.close()
    monkeypatch.setattr(vm_state.os, "getuid", lambda: 4_242)
    assert vm_state.read(tmp_path / "key", "tcg", 1 * MIB) is None


async def test_equal_contents_make_an_equal_image(tmp_path: Path) -> None:
    first = vm_image.build(tmp_path / "one", tools=tools())
    assert vm_image.build(tmp_path / "two", tools=tools()) == first
    made = (tmp_path / "one" / vm_image.ROOT).stat().st_mtime_ns
    assert vm_image.build(tmp_path / "one", tools=tools()) == first
    assert (tmp_path / "one" / vm_image.ROOT).stat().st_mtime_ns == made
    assert json.loads((tmp_path / "one" / vm_image.MADE_OF).read_text())["digest"] == first


async def test_who_may_use_kvm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(mode: int, group: int) -> None:
        found = os.stat_result((0o020000 | mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
        monkeypatch.setattr(qemu.Path, "stat", lambda _: found)

    device(0o666, 0)
    assert qemu.kvm_obstacle(65_534) == ("", [])
    device(0o600, 0)
    if os.getuid() == 0:
        assert "uid 65534" in qemu.kvm_obstacle(65_534)[0]
        device(0o660, 104)
        assert qemu.kvm_obstacle(65_534) == ("", [104])


def _machines() -> list[int]:
    """The processes of QEMU that this one has started."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [
        pid
        for pid in found
        if _of(pid, "cmdline").split(b"\0")[0].endswith(b"qemu-system-x86_64") and _descends(pid, os.getpid())
    ]


def _of(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        fields = _of(pid, "stat").rpartition(b") ")[2].split()
        pid = int(fields[1]) if fields else 0
    return False
