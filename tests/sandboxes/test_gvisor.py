"""gVisor sandboxes keep the promises of the port, nothing in them reaches the host, and nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.ports import Sandboxes
from perdure.sandboxes.gvisor import GvisorSandboxes
from perdure.testing.conformance.sandbox_attacks import ATTACKS
from perdure.testing.conformance.sandboxes import CASES, LIMITS
from tests.sandboxes.doors import CASES as DOORS
from tests.sandboxes.reaching import attack
from tests.sandboxes.tools import tools

pytestmark = pytest.mark.asyncio(loop_scope="module")
# The kernel, the processes and the descriptors that these look at are gVisor's and the guest's own, none is the host's.
OF_THE_GUEST = {
    "parent-variables", "first-process-variables", "first-process-memory", "first-process-descriptors", "kernel-messages", "sysfs",
    "namespaces", "clone-namespaces", "io-uring", "device-nodes", "no-filter", "priorities", "netlink",
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandboxes() -> AsyncIterator[GvisorSandboxes]:
    made = GvisorSandboxes(LIMITS, spare=1, tools=tools())
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no gVisor here: {error}")
    yield made
    await made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(sandboxes: GvisorSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_does_not_reach_the_host(
    sandboxes: GvisorSandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said = await attack(sandboxes, tmp_path, monkeypatch, name)
    assert name in OF_THE_GUEST or b"ESCAPED" not in said, said


@pytest.mark.parametrize("case", DOORS, ids=lambda case: case.__name__)
async def test_doors(sandboxes: GvisorSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)


async def test_what_can_be_read_of_other_processes_is_not_the_hosts(
    sandboxes: GvisorSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_SECRET", "host-secret")
    code = """
import os
for pid in (name for name in os.listdir("/proc") if name.isdigit()):
    for what in ("environ", "cmdline"):
        try: print(open(f"/proc/{pid}/{what}", "rb").read().replace(b"\\0", b" "))
        except OSError: pass
print(open("/proc/version").read(), os.listdir("/proc/sys/kernel"))
"""
    found = await sandboxes.run(SandboxJob(code=code))
    assert b"host-secret" not in found.stdout
    assert b"pytest" not in found.stdout
    assert os.uname().release.encode() not in found.stdout, found.stdout


async def test_the_device_nodes_that_it_makes_are_gvisors(sandboxes: GvisorSandboxes) -> None:
    code = """
import os
for major, minor in ((8, 0), (254, 0), (259, 0), (1, 1), (10, 232)):
    try:
        os.mknod("node", 0o60600 if major != 1 and major != 10 else 0o20600, os.makedev(major, minor))
        print(open("node", "rb").read(1))
    except OSError as error:
        pass
    try: os.remove("node")
    except OSError: pass
"""
    found = await sandboxes.run(SandboxJob(code=code))
    assert (found.stdout, found.exit_code) == (b"", 0), found


async def test_a_gvisor_process_has_no_uid_of_root(sandboxes: GvisorSandboxes) -> None:
    await sandboxes._pool.filled()
    running = asyncio.create_task(sandboxes.run(SandboxJob(code="import time; time.sleep(20)")))
    await asyncio.sleep(0.5)
    try:
        mine = _gvisors()
        assert mine
        for pid in mine:
            status = dict(
                line.split(":\t", 1) for line in _of(pid, "status").decode().splitlines() if ":\t" in line
            )
            assert os.getuid() != 0 or status["Uid"].split()[0] == "65534"
            assert status["NoNewPrivs"] == "1"
            assert b"=" not in _of(pid, "environ").replace(b"GLOG", b"") or b"SECRET" not in _of(
                pid, "environ"
            )
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_narrower_disk_and_fewer_files(sandboxes: GvisorSandboxes) -> None:
    filler = (
        "f = open('big', 'wb')\nimport time\nwhile True: f.write(b'x' * 50_000); f.flush(); time.sleep(0.005)"
    )
    found = await sandboxes.run(SandboxJob(code=filler), SandboxLimits(disk_bytes=1 * MIB))
    assert found.ending == "disk", found
    many = "import time\nfor n in range(1000):\n    open(f'f{n}', 'w').close(); time.sleep(0.005)"
    found = await sandboxes.run(SandboxJob(code=many), SandboxLimits(files=50))
    assert found.ending == "disk", found


async def test_one_that_is_killed_is_lost_and_nobody_else_is(sandboxes: GvisorSandboxes) -> None:
    await sandboxes._pool.filled()
    running = asyncio.create_task(sandboxes.run(SandboxJob(code="import time; time.sleep(20)")))
    await asyncio.sleep(0.5)
    for pid in _gvisors():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    found = await running
    assert (found.ending, found.exit_code) == ("lost", None), found
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"


async def test_nothing_of_it_stays(sandboxes: GvisorSandboxes) -> None:
    made = GvisorSandboxes(LIMITS, spare=2, tools=tools())
    await made.open()
    await made._pool.filled()
    folder = made._folder
    assert folder is not None
    assert folder.exists()
    assert any(str(folder).encode() in _of(pid, "cmdline") for pid in _gvisors())
    await made.close()
    assert not folder.exists()
    for _ in range(100):
        ours = [pid for pid in _gvisors() if str(folder).encode() in _of(pid, "cmdline")]
        if not ours:
            break
        await asyncio.sleep(0.05)
    assert ours == []


async def test_without_runsc_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="apt-get install runsc"):
        await GvisorSandboxes(tools=tmp_path).open()


async def test_a_platform_that_it_does_not_have_is_an_error(sandboxes: GvisorSandboxes) -> None:
    del sandboxes
    with pytest.raises(SandboxUnavailableError, match="platform"):
        await GvisorSandboxes(tools=tools(), platform="no-such-thing").open()


def _gvisors() -> list[int]:
    """The processes of gVisor on this machine that serve sandboxes of ours."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [
        pid
        for pid in found
        if b"perdure-gvisor-" in _of(pid, "cmdline")
        and b"--rootless" in _of(pid, "cmdline")
        and b"python" not in _of(pid, "cmdline").split(b"\0")[0]
    ]


def _of(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""
