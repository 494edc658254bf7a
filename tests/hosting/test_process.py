"""Processes: how they end, what is kept of their output, and that nothing of them survives."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from perdure.core.errors import DefinitionError, UnavailableError
from perdure.hosting import process as module
from perdure.hosting.process import (
    LAST_LINE_BYTES_MAX,
    LINE_BYTES_MAX,
    LOG_BYTES_MAX,
    RECORD,
    TAIL_CHARACTERS,
    Exit,
    Launch,
    Process,
    reap,
)

PATH = os.environ["PATH"]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="found through /proc")
# A grandchild that has left the group, holds the pipes, and says its number.
DAEMON = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)"
MEMBER = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
WAIT = "; import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


class Shown:
    """What a program printed, and when."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.came = asyncio.Event()

    def __call__(self, stream: str, line: str) -> None:
        self.lines.append((stream, line))
        self.came.set()

    async def first(self) -> str:
        async with asyncio.timeout(10):
            await self.came.wait()
        return self.lines[0][1]


Start = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
async def start(tmp_path: Path, shown: Shown) -> AsyncIterator[Start]:
    """Starts a Python program, or ``command``; all are stopped at the end."""
    started: list[Process] = []

    async def starting(
        code: str = "",
        *,
        command: tuple[str, ...] = (),
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path = tmp_path,
        show: Callable[[str, str], None] = shown,
    ) -> Process:
        launch = Launch(
            command=command or (sys.executable, "-c", code),
            cwd=cwd,
            env={"PATH": PATH} if env is None else env,
            log=tmp_path / "output.log",
            stdin=stdin,
        )
        made = await Process.start(launch, show=show)
        started.append(made)
        return made

    yield starting
    for made in started:
        await made.stop(0)


async def ended(process: Process) -> Exit:
    async with asyncio.timeout(20):
        return await process.wait()


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, which waits only to be counted, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    found = waiting.poll(seconds * 1000)
    os.close(handle)
    return bool(found) or not is_alive(pid)


# -- ends
@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("pass", 0, "exit code 0"),
        ("raise SystemExit(3)", 3, "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "signal SIGKILL"),
        ("import os; os.kill(os.getpid(), 45)", -45, "signal 45"),
    ],
)
async def test_an_end_is_told(start: Start, code: str, exit_code: int, reason: str) -> None:
    found = await ended(await start(code))
    assert (found.code, found.reason) == (exit_code, reason)


async def test_input_comes_on_stdin_and_streams_are_kept_apart(start: Start, shown: Shown) -> None:
    code = "import sys; text = sys.stdin.read(); print(text[::-1]); print('note', file=sys.stderr)"
    found = await ended(await start(code, stdin="abc é".encode()))
    assert sorted(shown.lines) == [("stderr", "note"), ("stdout", "é cba")]
    assert found.last_line == "é cba"


async def test_a_program_need_not_read_its_input(start: Start) -> None:
    process = await start("import os; os.close(0); print('done')", stdin=b"x" * 5_000_000)
    assert (await ended(process)).last_line == "done"


@LINUX
async def test_input_that_no_one_reads_holds_nothing_up(start: Start) -> None:
    process = await start(
        DAEMON, stdin=b"x" * 5_000_000
    )  # the grandchild keeps the pipe open and does not read
    assert (await ended(process)).code == 0


# -- output
async def test_garbage_is_replaced_and_colours_pass(start: Start, shown: Shown) -> None:
    code = (
        r"import sys; sys.stdout.buffer.write(b'\x1b[31mred\x1b[0m\n\xff\xfe\x00ok\r\n' + bytes(range(256)))"
    )
    found = await ended(await start(code))
    assert shown.lines[0] == ("stdout", "\x1b[31mred\x1b[0m")
    assert shown.lines[1] == ("stdout", "\ufffd\ufffd\x00ok")
    assert found.code == 0


async def test_a_flood_is_bounded_and_does_not_block(start: Start, tmp_path: Path) -> None:
    total, lines = 0, 0

    def count(_: str, line: str) -> None:
        nonlocal total, lines
        total += len(line) + 1
        lines += 1
        assert len(line) <= 2 * LINE_BYTES_MAX

    process = await start(
        command=("sh", "-c", f"yes {'0123456789' * 10} | head -c 200000000; echo; echo end"), show=count
    )
    found = await ended(process)
    assert (found.code, found.last_line) == (0, "end")
    assert total >= 200_000_000
    assert len(found.output_tail) <= TAIL_CHARACTERS
    assert LOG_BYTES_MAX // 2 < (tmp_path / "output.log").stat().st_size < LOG_BYTES_MAX + 1_000
    assert (tmp_path / "output.log").read_bytes().count(b"[cut: more than") == 1


async def test_the_log_is_cut_once_whatever_the_lines(start: Start, tmp_path: Path) -> None:
    code = "import sys\nfor n in range(300): sys.stdout.write('x' * (120_000 if n % 2 else 1_000) + '\\n')"
    await ended(await start(code))
    assert (tmp_path / "output.log").read_bytes().count(b"[cut: more than") == 1
    assert (tmp_path / "output.log").stat().st_size < LOG_BYTES_MAX + 1_000


async def test_the_logs_of_a_run_do_not_add_up(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    await ended(await start("print('one')"))
    await ended(await start("print('two')"))
    assert log.read_text() == "one\ntwo\n"
    with log.open("r+b") as file:
        file.truncate(LOG_BYTES_MAX)
    await ended(await start("print('three')"))
    assert log.read_text() == "three\n"


async def test_a_long_last_line_is_a_result_as_it_is(start: Start, shown: Shown) -> None:
    text = "é" * 300_001  # longer than what is shown at once, and cut within characters
    found = await ended(
        await start(
            "print('first'); print('é' * 300_001); print('  ')", env={"PATH": PATH, "PYTHONUTF8": "1"}
        )
    )
    assert found.last_line == text
    pieces = [line for _, line in shown.lines[1:-1]]
    assert len(pieces) > 1
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 2 * LINE_BYTES_MAX


async def test_a_last_line_over_the_limit_is_cut_where_its_size_tells(start: Start) -> None:
    found = await ended(await start(f"import sys; sys.stdout.write('x' * {LAST_LINE_BYTES_MAX + 5_000})"))
    assert len(found.last_line) == LAST_LINE_BYTES_MAX + 1


async def test_a_full_disk_does_not_stop_the_program(start: Start, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "output.log").symlink_to("/dev/full")
    found = await ended(await start("print('on'); print('and on')"))
    assert (found.code, found.last_line, found.output_tail) == (0, "and on", "on\nand on")


# -- starts
async def test_a_start_that_cannot_work_says_what_to_do(start: Start, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("no program")
    with pytest.raises(DefinitionError, match="there is no command `perdure-nowhere`; give its path"):
        await start(command=("perdure-nowhere",))
    with pytest.raises(DefinitionError, match=r"there is no command `\./nowhere`"):
        await start(command=("./nowhere",))
    with pytest.raises(DefinitionError, match=r"`\./plain.txt` is not executable; `chmod \+x` it"):
        await start(command=("./plain.txt",))
    with pytest.raises(DefinitionError, match="there is no folder .* to start the program in"):
        await start("pass", cwd=tmp_path / "nowhere")
    with pytest.raises(DefinitionError, match="cannot be started: embedded null byte"):
        await start(command=("sh", "a\0b"))
    with pytest.raises(DefinitionError, match="cannot be started: Argument list too long"):
        await start(command=("sh", "-c", "x" * 200_000))


async def test_nothing_starts_where_its_record_cannot_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / f"{Path(RECORD).stem}.new").mkdir()
    with pytest.raises(UnavailableError, match="cannot be written"):
        await start("open('was-here', 'w')")
    assert not (tmp_path / "was-here").exists()


@LINUX
async def test_a_program_gets_its_signals_and_environment_as_if_started_directly(start: Start) -> None:
    code = "grep SigIgn /proc/self/status; env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD= | cut -d= -f1 | sort | xargs"
    # The machine may ignore signals of its own, which every program there inherits.
    directly = subprocess.run(
        ["sh", "-c", code], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )  # noqa: ASYNC221
    ignored, names = directly.stdout.splitlines()
    assert names == "PATH"
    process = await start(command=("sh", "-c", code), env={"PATH": PATH})
    found = await ended(process)
    assert found.output_tail.splitlines() == [ignored, "PATH PERDURE_PROCESS"]
    kept = await ended(
        await start(command=("sh", "-c", "echo $LC_CTYPE"), env={"PATH": PATH, "LC_CTYPE": "C.UTF-8"})
    )
    assert kept.last_line == "C.UTF-8"


# -- nothing survives
@LINUX
async def test_the_end_of_the_program_is_the_end_whoever_holds_its_pipes(start: Start, shown: Shown) -> None:
    process = await start(DAEMON + "; print('result')")
    async with asyncio.timeout(5):
        found = await process.wait()
    assert (found.code, found.last_line) == (0, "result")
    left = int(shown.lines[0][1])
    assert is_alive(left)
    await process.stop(1_000)
    assert not is_alive(left)


@LINUX
@pytest.mark.parametrize("code", [MEMBER, DAEMON])
async def test_stopping_takes_what_the_program_started(start: Start, shown: Shown, code: str) -> None:
    process = await start(code + WAIT)
    grandchild = int(await shown.first())
    await process.stop(5_000)
    assert not is_alive(process.pid)
    assert not is_alive(grandchild)
    assert (await ended(process)).reason == "signal SIGTERM"


async def test_a_program_that_ignores_the_request_is_killed(start: Start, shown: Shown) -> None:
    process = await start(STUBBORN)
    await shown.first()
    before = asyncio.get_running_loop().time()
    await process.stop(100)
    assert 0.1 <= asyncio.get_running_loop().time() - before < 2
    assert (await ended(process)).reason == "signal SIGKILL"


async def test_a_program_may_end_in_its_own_way(start: Start, shown: Shown) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('up', flush=True)\ntime.sleep(60)"
    process = await start(code)
    await shown.first()
    await process.stop(5_000)
    assert (await ended(process)).code == 7
    await process.stop(5_000)  # again: nothing to do


@LINUX
@pytest.mark.parametrize("code", [MEMBER, DAEMON])
def test_a_killed_runtime_takes_the_program_along_and_the_next_takes_the_rest(
    tmp_path: Path, code: str
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.hosting.parent", str(tmp_path), code + WAIT],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child, grandchild = int(parent.stdout.readline()), int(parent.stdout.readline())
    assert is_alive(child)
    assert is_alive(grandchild)
    parent.kill()
    parent.wait()
    assert gone_within(child, 2)
    assert is_alive(grandchild)  # no one tells it; its pipe is closed at most
    reap(tmp_path)
    assert not is_alive(grandchild)
    reap(tmp_path)  # nothing left: no harm


@LINUX
async def test_reaping_takes_no_other_process(start: Start, shown: Shown, tmp_path: Path) -> None:
    bystander = await start("print('up', flush=True)" + WAIT)
    await shown.first()
    path = tmp_path / RECORD
    real = json.loads(path.read_text())
    for change in ({"since": "1", "mark": "of-another"}, {"boot": "of-another"}, {"mark": "", "since": None}):
        path.write_text(json.dumps({**real, **change}))
        reap(tmp_path)
    for text in (
        "",
        "[]",
        "{",
        json.dumps({"pid": bystander.pid}),
        json.dumps({**real, "pid": "x", "mark": "y"}),
    ):
        path.write_text(text)
        reap(tmp_path)
    assert is_alive(bystander.pid)
    path.write_text(json.dumps(real))
    reap(tmp_path)
    assert (await ended(bystander)).reason == "signal SIGKILL"


@LINUX
def test_a_process_whose_runtime_died_before_it_could_ask_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(module.LAUNCHER), "1", "", "touch", str(tmp_path / "was-here")]
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "was-here").exists()


async def test_a_cancelled_wait_leaves_the_program_alone(start: Start, shown: Shown) -> None:
    process = await start(STUBBORN)
    await shown.first()
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    os.kill(process.pid, signal.SIGKILL)
    assert (await ended(process)).reason == "signal SIGKILL"
