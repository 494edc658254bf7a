"""Agents of which some end, block or attack their worker process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from perdure import Run, agent, step, tool
from perdure.core.errors import PerdureError
from perdure.engines.isolated import wire


# -- steps
def note(log: str, line: str) -> str:
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return line


async def wait(log: str, line: str, seconds: float) -> str:
    note(log, line)
    await asyncio.sleep(seconds)
    return line


def in_thread(log: str, how: str) -> None:
    note(log, how)
    end(how)


async def in_loop(log: str, how: str) -> None:
    note(log, how)
    end(how)


async def write_here(name: str) -> str:
    try:
        Path(name).write_text("was here")
    except OSError as error:
        return f"refused: {error.errno}"
    return Path(name).read_text()


def end(how: str) -> None:
    """End this process, or keep it from doing anything else."""
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "sys-exit":
            raise SystemExit(4)
        case "spin":
            while True:
                pass
        case "leak":
            kept = []
            while True:
                kept.append(bytearray(16 << 20))
        case "flood":
            while True:
                sys.stdout.write("x" * 65_536)
        case "close":
            os.closerange(3, 1_024)
            time.sleep(30)
        case "garbage":
            client = _client()
            client.transport.write(b"\0\0\0\5hello")
        case "endless-frame":
            _client().transport.write(b"\xff\xff\xff\xff")
        case "second-hello":
            _client().send(wire.Hello(protocol=1, token="guess", agents={}))
        case "unknown-run":
            _client().send(wire.Ran(run=999, seq=1))
        case "false-event":
            _client().send(wire.Ran(run=_last(), seq=77))
        case "false-call":
            done = (wire.Call(call=500, kind="sleep", ms=1),)
            _client().send(wire.Do(run=_last(), do=done))
        case "program":
            done = (wire.Call(call=2, kind="program", data=wire.msgspec.Raw(b"{}")),)
            _client().send(wire.Do(run=_last(), do=done))
        case "no-text":
            frame = b'{"t":"do","run":%d,"do":[{"t":"show","kind":"x","data":"\xff"}]}' % _last()
            _client().transport.write(len(frame).to_bytes(4, "big") + frame)
        case "long-name":
            done = (wire.Call(call=2, kind="send", name="t", to="x" * 10_000),)
            _client().send(wire.Do(run=_last(), do=done))
        case "no-topic":
            done = (wire.Call(call=2, kind="receive", name="perdure.answer/1"),)
            _client().send(wire.Do(run=_last(), do=done))
        case "ended-twice":
            done = (wire.Result(value=wire.msgspec.Raw(b"1")), wire.Result(value=wire.msgspec.Raw(b"2")))
            _client().send(wire.Do(run=_last(), do=done))
        case "pong":
            _client().send(wire.Pong(id=12345))
        case _:
            raise ValueError(how)


def _client() -> Any:
    from perdure.engines.isolated.worker import Client

    return next(item for item in gc.get_objects() if type(item).__name__ == Client.__name__)


def _last() -> int:
    return max(_client()._guests)


# -- agents
@agent("steady")
async def steady(run: Run, log: str, count: int) -> list[str]:
    """One step after the other."""
    return [await run.step(wait, log, f"{number}", 0.02) for number in range(count)]


@agent("ends-in-step")
async def ends_in_step(run: Run, log: str, how: str, is_threaded: bool) -> None:
    await run.step(note, log, "before")
    await run.step(in_thread if is_threaded else in_loop, log, how)


@agent("ends-in-code")
async def ends_in_code(run: Run, log: str, how: str) -> None:
    await run.step(note, log, "before")
    note(log, how)
    end(how)
    await run.sleep(30)


@agent("ends-in-memory")
async def ends_in_memory(run: Run, how: str) -> None:
    end(how)


@agent("ends-once")
async def ends_once(run: Run, log: str, how: str) -> str:
    """The first worker that runs it ends."""
    await run.step(note, log, "before")
    if not Path(log + ".did").exists():
        Path(log + ".did").touch()
        end(how)
    return await run.step(note, log, "after")


@agent("spy")
async def spy(run: Run, other: str) -> Any:
    """Ask for the result of a run that is not its child."""
    from perdure.agents.run import Child

    return await Child(run, other, "steady").result()


@agent("secret-keeper")
async def secret_keeper(run: Run) -> str:
    return "the secret of another run"


@step
async def look_around() -> dict[str, Any]:
    links = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            links[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return {
        "environ": dict(os.environ),
        "before": Path("/proc/self/environ").read_bytes().decode(errors="replace"),
        "cmdline": Path("/proc/self/cmdline").read_bytes().decode(errors="replace"),
        "maps": Path("/proc/self/maps").read_text(),
        "fd": links,
        "modules": sorted(sys.modules),
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "parent": os.getppid(),
        "uid": os.getuid(),
    }


@agent("looker")
async def looker(run: Run) -> dict[str, Any]:
    return await run.step(look_around)


@agent("writer")
async def writer(run: Run, name: str) -> str:
    return await run.step(write_here, name)


@step
async def read_there(name: str) -> str:
    try:
        return Path(name).read_bytes()[:16].decode(errors="replace")
    except OSError as error:
        return f"refused: {type(error).__name__}"


@agent("reader")
async def reader(run: Run, name: str) -> str:
    return await run.step(read_there, name)


@tool(name="iso_look", effect="read")
async def look(what: str) -> dict[str, Any]:
    """Runs where the secrets are: in the runtime."""
    return {"saw": what, "pid": os.getpid()}


@tool(name="iso_fail", effect="read")
async def fail() -> None:
    raise RuntimeError("the tool broke")


@agent("actor", tools=[look, fail])
async def actor(run: Run) -> list[Any]:
    found: list[Any] = [await run.act("iso_look", what="a"), os.getpid()]
    for name, arguments in (("iso_fail", {}), ("nothing", {}), ("iso_look", {"wrong": 1})):
        try:
            await run.act(name, **arguments)
        except PerdureError as error:
            found.append(error.code)
    return found


@step
def pid_of(_: str) -> int:
    return os.getpid()


@agent("where")
async def where(run: Run) -> list[int]:
    return [os.getpid(), await run.step(pid_of, "x")]


@agent("sleeper")
async def sleeper(run: Run, log: str) -> Any:
    await run.step(note, log, "asleep")
    message = await run.receive("go")
    return message.body if message else None


@agent("misfit")
async def misfit(run: Run, how: str) -> int:
    if how == "type":
        return "no number"  # type: ignore[return-value]
    if how == "object":
        return object()  # type: ignore[return-value]
    if how == "large":
        return ["x" * 1_000_000]  # type: ignore[return-value]
    raise SystemExit(how)


@agent("patcher")
async def patcher(run: Run, log: str) -> list[Any]:
    await run.step(note, log, "first")
    is_new = run.patched("new-way")
    await run.step(note, log, "second")
    again = run.patched("new-way")
    message = await run.receive("go")
    return [is_new, again, run.patched("later"), message.body if message else None]


HOARD: list[bytearray] = []


@step
async def hoard(size: int) -> int:
    HOARD.append(bytearray(b"x") * size)
    return size


@agent("hoarder")
async def hoarder(run: Run, size: int) -> Any:
    await run.step(hoard, size)
    message = await run.receive("go")
    return message.body if message else None


@agent("shower")
async def shower(run: Run) -> list[Any]:
    found = []
    run.emit("token", 0)
    for _ in range(2):
        message = await run.receive("go")
        found.append(message.body if message else None)
        run.emit("token", found[-1])
    return found


@step
async def big(size: int) -> str:
    return "x" * size


@agent("wide")
async def wide(run: Run, count: int, size: int) -> int:
    found = await run.gather(*(run.step(big, size) for _ in range(count)))
    asked = await run.gather(*(run.receive(json.dumps("y" * 150)[:150], timeout=0.01) for _ in range(count)))
    return sum(len(item) for item in found) + sum(item is None for item in asked)


@step
def attack(data: str, runtime: int) -> dict[str, str]:
    """Try to get at the runtime, its files and the host's."""
    import signal
    import socket

    def tried(work: Any) -> str:
        try:
            return f"got {work()!r:.60}"
        except (OSError, PermissionError, AttributeError) as error:
            return f"refused: {type(error).__name__}"

    libc = ctypes.CDLL(None, use_errno=True)

    def called(name: str, *values: Any) -> Any:
        if getattr(libc, name)(*values) < 0:
            raise OSError(ctypes.get_errno(), name)
        return "done"

    return {
        "database": tried(lambda: Path(data, "perdure.db").read_bytes()[:15]),
        "keys": tried(lambda: os.listdir(data)),
        "shadow": tried(lambda: Path("/etc/shadow").read_text()),
        "home": tried(lambda: os.listdir(os.path.expanduser("~root/.ssh"))),
        "environ": tried(lambda: Path(f"/proc/{runtime}/environ").read_bytes()),
        "memory": tried(lambda: Path(f"/proc/{runtime}/maps").read_bytes()),
        "signal": tried(lambda: os.kill(runtime, 0)),
        "parent": tried(lambda: os.kill(os.getppid() or runtime, signal.SIGCONT)),
        "app": tried(lambda: Path(__file__).with_name("planted.py").write_text("x")),
        "system": tried(lambda: Path("/usr/planted").write_text("x")),
        "mount": tried(lambda: called("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
        "namespace": tried(lambda: called("unshare", 0x10000000)),
        "root": tried(lambda: os.setuid(0)),
        "trace": tried(lambda: called("ptrace", 16, runtime, 0, 0)),
        "raw": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)),
        "device": tried(lambda: os.mknod("/tmp/disk", 0o660 | 0o060000, os.makedev(8, 0))),
        "own": tried(lambda: Path("/tmp/mine").write_text("x")),
        "network": tried(lambda: socket.socket().getsockname()),
    }


@agent("attacker")
async def attacker(run: Run, data: str, runtime: int) -> dict[str, str]:
    return await run.step(attack, data, runtime)


ALL = [value for value in list(globals().values()) if type(value).__name__ == "Agent"]
