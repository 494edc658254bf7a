"""What every kind of ``Sandboxes`` must do. Cases take sandboxes that were opened with ``LIMITS``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from perdure.core.errors import PerdureError
from perdure.core.sandbox import MIB, Ending, SandboxFile, SandboxJob, SandboxLimits, SandboxOutcome
from perdure.ports import Sandboxes
from perdure.testing.conformance.checks import check

LIMITS = SandboxLimits(
    wall_ms=20_000, cpu_ms=8_000, memory_bytes=256 * MIB, processes=32, open_files=64, output_bytes=100_000,
    disk_bytes=8 * MIB, files=2_000,
)  # fmt: skip
SLACK_MS = 10_000  # how much longer than its wall time a job may take to be stopped, on a busy machine


async def _of(sandboxes: Sandboxes, code: str, limits: SandboxLimits | None = None) -> SandboxOutcome:
    return await sandboxes.run(SandboxJob(code=code), limits)


async def tells_what_a_program_said(sandboxes: Sandboxes) -> None:
    """Both streams, the exit code, the tier, and how long it took."""
    code = "import sys; print(sys.stdin.read().upper()); print('oops', file=sys.stderr); sys.exit(3)"
    found = await sandboxes.run(SandboxJob(code=code, stdin=b"hello"))
    check(found.ending == "ended", f"it ended by itself, found {found.ending}")
    check(found.exit_code == 3, f"its exit code is 3, found {found.exit_code}")
    check((found.stdout, found.stderr) == (b"HELLO\n", b"oops\n"), "its output, stream by stream")
    check(found.tier == sandboxes.tier, "the outcome names the tier in force")
    check(found.wall_ms > 0, "it took time")


async def runs_programs_of_any_language(sandboxes: Sandboxes) -> None:
    """With their variables, in the workspace; one that is not there ends with 127."""
    job = SandboxJob(
        argv=("/bin/sh", "-c", 'echo "$NAME"; cat given'),
        env={"NAME": "x y"},
        files=(_file("given", b"here"),),
    )
    found = await sandboxes.run(job)
    check(found.stdout == b"x y\nhere", f"variables and files are there, found {found.stdout!r}")
    missing = await sandboxes.run(SandboxJob(argv=("/bin/no-such-thing",)))
    check(missing.exit_code == 127, f"a program that is not there ends with 127, found {missing.exit_code}")


async def gives_an_environment_of_its_own(sandboxes: Sandboxes) -> None:
    """None of the variables of whoever started it."""
    code = "import os; print(sorted(os.environ))"
    found = await sandboxes.run(SandboxJob(code=code, env={"MINE": "1"}))
    names = found.stdout.decode()
    check("MINE" in names, "its own variables are there")
    check("PYTEST" not in names and "VIRTUAL_ENV" not in names, f"no others are, found {names}")


async def takes_files_in_and_out(sandboxes: Sandboxes) -> None:
    """Whole, with names in any script, executable or not; links and devices stay inside."""
    given = (
        _file("a/b/c.bin", bytes(range(256)) * 64), _file("größe.txt", b""), _file("run.sh", b"#!/bin/sh\necho ran\n", x=True),
    )  # fmt: skip
    code = """
import os, socket, subprocess
print(subprocess.run(["./run.sh"], capture_output=True, text=True).stdout, end="")
data = open("a/b/c.bin", "rb").read()
open("out.bin", "wb").write(data[::-1])
os.mkdir("deep"); open("deep/new.txt", "w").write("new")
os.remove("größe.txt")
os.symlink("/etc/passwd", "link")
socket.socket(socket.AF_UNIX).bind("socket")
"""
    found = await sandboxes.run(SandboxJob(code=code, files=given, collects=True))
    check(found.exit_code == 0, f"the job worked: {found.stderr.decode(errors='replace')}")
    check(found.stdout == b"ran\n", "an executable file can be started")
    files = {file.name: file for file in found.files}
    check(
        sorted(files) == ["a/b/c.bin", "deep/new.txt", "out.bin", "run.sh"],
        f"what comes back, found {sorted(files)}",
    )
    check(files["out.bin"].data == given[0].data[::-1], "bytes are the same")
    check(
        files["run.sh"].is_executable and not files["out.bin"].is_executable, "what can be started still can"
    )
    check(
        set(found.left_out) == {"link", "socket"}, f"what cannot come is named, found {dict(found.left_out)}"
    )


async def gives_files_back_after_a_failure(sandboxes: Sandboxes) -> None:
    """What was written before an exception is there."""
    found = await sandboxes.run(
        SandboxJob(code="open('a', 'w').write('1'); raise ValueError('no')", collects=True)
    )
    check(found.exit_code == 1, "it failed")
    check([file.name for file in found.files] == ["a"], "its files came back")
    check(b"ValueError: no" in found.stderr, "and its error was shown as Python shows it")


async def refuses_names_that_lead_out(sandboxes: Sandboxes) -> None:
    """Before anything is executed."""
    for name in ("/etc/passwd", "../x", "a/../../x", "a//b", "", "a\0b", "x" * 300):
        try:
            await sandboxes.run(SandboxJob(code="print('ran')", files=(_file(name, b"x"),)))
        except PerdureError as error:
            check(error.code == "input-invalid", f"a stable code, found {error.code}")
        else:
            check(False, f"a file called {name!r} was taken")


async def starts_from_a_clean_slate(sandboxes: Sandboxes) -> None:
    """Nothing of one job is there in the next one."""
    write = """
import os, builtins, json
for place in ("/workspace/canary", "/tmp/canary", "/dev/shm/canary", "/var/tmp/canary"):
    try: open(place, "w").write("canary")
    except OSError: pass
builtins.canary = json.canary = "canary"
"""
    look = """
import os, builtins, json
places = [p for p in ("/workspace/canary", "/tmp/canary", "/dev/shm/canary", "/var/tmp/canary") if os.path.exists(p)]
print(places, hasattr(builtins, "canary"), hasattr(json, "canary"), os.listdir("."))
"""
    for _ in range(3):
        await _of(sandboxes, write)
        found = await _of(sandboxes, look)
        check(found.stdout == b"[] False False []\n", f"a clean slate, found {found.stdout!r}")


async def gives_chance_of_its_own(sandboxes: Sandboxes) -> None:
    """No two jobs draw the same numbers, wherever they draw them from."""
    code = "import os, random, uuid; print(random.random(), os.urandom(8).hex(), uuid.uuid4())"
    drawn = [(await _of(sandboxes, code)).stdout.split() for _ in range(4)]
    for number in range(3):
        check(len({found[number] for found in drawn}) == 4, f"draw {number} differs each time, found {drawn}")


async def keeps_jobs_at_once_apart(sandboxes: Sandboxes) -> None:
    """Each sees its own files and says its own words."""
    codes = [f"open('n', 'w').write('{number}'); print(open('n').read())" for number in range(8)]
    found = await asyncio.gather(*(_of(sandboxes, code) for code in codes))
    check(
        [item.stdout.decode().strip() for item in found] == [str(number) for number in range(8)],
        "their own words",
    )


async def stops_what_goes_beyond_a_limit(sandboxes: Sandboxes) -> None:
    """Each breach has an ending of its own, within its time."""
    for name, (code, ending, limits) in BOMBS.items():
        found = await _of(sandboxes, code, limits)
        check(
            found.ending == ending,
            f"{name} ends with {ending}, found {found.ending}: {found.stderr[-300:]!r}",
        )
        check(found.is_breach, f"{name} is a breach")
        check(len(found.stdout) <= LIMITS.output_bytes, f"the output of {name} is cut")
        check(
            found.wall_ms < limits.wall_ms + SLACK_MS, f"{name} was stopped in time, found {found.wall_ms} ms"
        )
    check((await _of(sandboxes, "print(1)")).stdout == b"1\n", "the next job is not hurt")


async def stops_what_is_given_up(sandboxes: Sandboxes) -> None:
    """A cancelled job is stopped, and its place is free."""
    running = asyncio.create_task(_of(sandboxes, "import time; time.sleep(600)"))
    await asyncio.sleep(0.3)
    running.cancel()
    done, _ = await asyncio.wait((running,), timeout=SLACK_MS / 1000)
    check(bool(done) and running.cancelled(), "it ends when it is cancelled")
    check((await _of(sandboxes, "print(1)")).stdout == b"1\n", "the next job runs")


async def has_no_network(sandboxes: Sandboxes) -> None:
    """Neither the machine's loopback nor the world."""
    reached: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(5))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code = f"""
import socket
for address in (("127.0.0.1", {port}), ("169.254.169.254", 80), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, timeout=1).send(b"hello")
        print("reached", address)
    except OSError as error:
        pass
"""
    found = await _of(sandboxes, code)
    server.close()
    check(found.stdout == b"" and not reached, f"nothing was reached, found {found.stdout!r}")


def _file(name: str, data: bytes, *, x: bool = False) -> SandboxFile:
    return SandboxFile(name=name, data=data, is_executable=x)


def _within(**narrower: int) -> SandboxLimits:
    return SandboxLimits(**{**{name: getattr(LIMITS, name) for name in LIMITS.__struct_fields__}, **narrower})


BOMBS: dict[str, tuple[str, Ending, SandboxLimits]] = {
    "a sleeper": ("import time; time.sleep(60)", "wall-time", _within(wall_ms=1_500)),
    "a busy loop": ("while True: pass", "cpu-time", _within(cpu_ms=1_000)),
    "a flood": ("while True: print('x' * 1000)", "output", LIMITS),
    "a flood of errors": ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", "output", LIMITS),
    "a deaf flood": (
        "import os, signal\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\nwhile True: os.write(1, b'x' * 9999)",
        "output",
        LIMITS,
    ),
    "a memory bomb": ("held = [bytearray(b'x' * 10_000_000) for _ in range(1000)]", "memory", LIMITS),
    "a disk filler": (
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * 100_000); f.flush()",
        "disk",
        LIMITS,
    ),
    "many files": ("for n in range(100_000): open(f'f{n}', 'w').close()", "disk", LIMITS),
    "many open files": ("held = [open('/dev/null') for _ in range(1000)]", "open-files", LIMITS),
    "many processes": (
        "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)",
        "processes",
        LIMITS,
    ),
}

CASES: tuple[Callable[[Sandboxes], Awaitable[None]], ...] = (
    tells_what_a_program_said,
    runs_programs_of_any_language,
    gives_an_environment_of_its_own,
    takes_files_in_and_out,
    gives_files_back_after_a_failure,
    refuses_names_that_lead_out,
    starts_from_a_clean_slate,
    gives_chance_of_its_own,
    keeps_jobs_at_once_apart,
    stops_what_goes_beyond_a_limit,
    stops_what_is_given_up,
    has_no_network,
)
