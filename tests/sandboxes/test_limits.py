"""Limits: each breach has its own ending, and nobody else is hurt. Nothing of one use is there in the next."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxJob, SandboxLimits
from perdure.sandboxes.namespace import NamespaceSandboxes

LIMITS = SandboxLimits(
    wall_ms=3_000,
    cpu_ms=1_000,
    memory_bytes=256 * MIB,
    processes=20,
    disk_bytes=8 * MIB,
    output_bytes=100_000,
)


@pytest.fixture
async def sandboxes() -> AsyncIterator[NamespaceSandboxes]:
    made = NamespaceSandboxes(LIMITS, spare=2)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    await made.close()


async def test_what_kills_itself(sandboxes: NamespaceSandboxes) -> None:
    found = await sandboxes.run(SandboxJob(code="import os; os.kill(os.getpid(), 9)"))
    assert (found.ending, found.exit_code) == ("signal", -9)


async def test_narrower_limits_of_one_job_count(sandboxes: NamespaceSandboxes) -> None:
    small = SandboxLimits(memory_bytes=64 * MIB, disk_bytes=MIB, open_files=16, processes=4)
    for code, ending in (
        ("held = bytearray(b'x' * 100_000_000)", "memory"),
        ("open('big', 'wb').write(b'x' * 2_000_000)", "disk"),
        ("held = [open('/dev/null') for _ in range(20)]", "open-files"),
        ("import os, time\nfor _ in range(10):\n    if os.fork() == 0: time.sleep(2)", "processes"),
    ):
        assert (await sandboxes.run(SandboxJob(code=code))).ending == "ended"
        assert (await sandboxes.run(SandboxJob(code=code), small)).ending == ending, ending


async def test_a_memory_bomb_is_counted_over_all_its_processes(sandboxes: NamespaceSandboxes) -> None:
    if sandboxes._groups is None:
        pytest.skip("no control group may be written here")
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(60_000_000)
        for at in range(0, len(held), 4096): held[at] = 1
        time.sleep(5)
        os._exit(0)
held = [bytearray(b"x" * 10_000_000) for _ in range(30)]
time.sleep(2)
print("all of it")
"""
    found = await sandboxes.run(SandboxJob(code=code))
    assert found.ending == "memory", found
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"


async def test_a_disk_filler_fills_its_own_disk(sandboxes: NamespaceSandboxes) -> None:
    code = "f = open('big', 'wb')\ntry:\n    while True: f.write(b'x' * 100_000); f.flush()\nexcept OSError as e: print(e.errno)"
    found = await sandboxes.run(SandboxJob(code=code))
    assert found.stdout in (b"28\n", b"27\n"), found


async def test_many_files(sandboxes: NamespaceSandboxes) -> None:
    code = "try:\n    for n in range(100_000): open(f'f{n}', 'w').close()\nexcept OSError as e: print(e.errno, n > 3_000)"
    found = await sandboxes.run(SandboxJob(code=code))
    assert found.stdout == b"28 True\n"


async def test_a_fork_bomb_beside_a_healthy_neighbour(sandboxes: NamespaceSandboxes) -> None:
    bomb = "import ctypes, os\nctypes.CDLL(None).prctl(15, b'bomb', 0, 0, 0)\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    bombing = asyncio.create_task(sandboxes.run(SandboxJob(code=bomb)))
    await asyncio.sleep(0.3)
    for _ in range(5):
        found = await sandboxes.run(SandboxJob(code="print(1)"))
        assert found.stdout == b"1\n"
    ended = await bombing
    assert ended.ending in ("wall-time", "cpu-time")
    await _until_gone(b"bomb")


def _called(name: bytes) -> list[str]:
    """Processes of this machine that call themselves so."""
    found = []
    for pid in os.listdir("/proc"):
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                if file.read().strip() == name:
                    found.append(pid)
        except OSError:
            continue
    return found


async def _until_gone(name: bytes) -> None:
    """The kernel takes a moment to end what was killed."""
    for _ in range(200):
        if not _called(name):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"a process of an ended job is still there: {name!r}")


async def test_nothing_survives_the_end_of_its_job(sandboxes: NamespaceSandboxes) -> None:
    code = """
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"left-behind", 0, 0, 0)
        os.closerange(0, 3)
        time.sleep(600)
    os._exit(0)
print("gone")
"""
    found = await sandboxes.run(SandboxJob(code=code))
    assert found.stdout == b"gone\n"
    await _until_gone(b"left-behind")


async def test_every_use_is_a_clean_slate(sandboxes: NamespaceSandboxes) -> None:
    write = """
import os, sys, builtins, random, json
for place in ("/workspace/canary", "/tmp/canary", "/dev/shm/canary"):
    open(place, "w").write("canary")
os.environ["CANARY"] = "canary"
builtins.canary = "canary"
json.canary = "canary"
sys.path.append("/canary")
os.umask(0)
os.chdir("/tmp")
print(random.random())
"""
    look = """
import os, sys, builtins, random, json
found = [place for place in ("/workspace/canary", "/tmp/canary", "/dev/shm/canary") if os.path.exists(place)]
found += [name for name in ("CANARY",) if name in os.environ]
found += ["builtins"] * hasattr(builtins, "canary") + ["json"] * hasattr(json, "canary") + ["path"] * ("/canary" in sys.path)
print(found, os.getcwd(), oct(os.umask(0)), os.listdir("/workspace"), random.random())
"""
    randoms = set()
    for _ in range(6):
        first = await sandboxes.run(SandboxJob(code=write))
        second = await sandboxes.run(SandboxJob(code=look))
        assert first.exit_code == 0, first
        text = second.stdout.decode()
        assert text.startswith("[] /workspace 0o77 []"), text
        randoms |= {first.stdout, text.split()[-1]}
    assert len(randoms) == 12, "random numbers are not those of another use"


async def test_nothing_is_left_in_the_kernel_either(sandboxes: NamespaceSandboxes) -> None:
    """Shared memory, message queues, sockets without a file, keyrings, names, clocks, and what a process says of itself."""
    write = """
import ctypes, os, resource, signal, socket, time
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0x5001, 4096, 0o1666) >= 0, libc.msgget(0x5001, 0o1666) >= 0, libc.semget(0x5001, 1, 0o1666) >= 0)
held = socket.socket(socket.AF_UNIX); held.bind("\\0canary"); held.listen()
port = socket.create_server(("127.0.0.1", 5001))
libc.syscall(248, b"user", b"canary", b"x", 1, -4)
libc.sethostname(b"canary", 6)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
os.nice(5)
try: time.clock_settime(time.CLOCK_REALTIME, 1)
except OSError: pass
"""
    look = """
import ctypes, os, resource, signal, socket, time
libc = ctypes.CDLL(None, use_errno=True)
found = [libc.shmget(0x5001, 0, 0), libc.msgget(0x5001, 0), libc.semget(0x5001, 0, 0), libc.syscall(249, b"user", b"canary", None, 0)]
for family, address in ((socket.AF_UNIX, "\\0canary"), (socket.AF_INET, ("127.0.0.1", 5001))):
    try: socket.socket(family).connect(address); found.append("connected")
    except OSError: found.append(-1)
print(found, socket.gethostname(), signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0), time.time() > 1e9)
"""
    for _ in range(3):
        first = await sandboxes.run(SandboxJob(code=write))
        assert first.stdout == b"True True True\n", first
        second = await sandboxes.run(SandboxJob(code=look))
        assert second.stdout == b"[-1, -1, -1, -1, -1, -1] sandbox True 256 0 True\n", second


async def test_many_at_once_are_each_their_own(sandboxes: NamespaceSandboxes) -> None:
    codes = [f"open('n', 'w').write('{n}'); print(open('n').read())" for n in range(40)]
    found = await asyncio.gather(*(sandboxes.run(SandboxJob(code=code)) for code in codes))
    assert [item.stdout.decode().strip() for item in found] == [str(n) for n in range(40)]


async def test_a_huge_job_and_a_huge_input(sandboxes: NamespaceSandboxes) -> None:
    code = "import sys; data = sys.stdin.buffer.read(); print(len(data))\n#" + "x" * 2_000_000
    found = await sandboxes.run(SandboxJob(code=code, stdin=b"y" * 3_000_000))
    assert found.stdout == b"3000000\n", found


async def test_who_gives_up_leaves_nothing_behind(sandboxes: NamespaceSandboxes) -> None:
    running = asyncio.create_task(sandboxes.run(SandboxJob(code="import time; time.sleep(60)")))
    await asyncio.sleep(0.2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    began = time.monotonic()
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
    assert time.monotonic() - began < 2
