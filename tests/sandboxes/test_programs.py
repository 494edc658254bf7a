"""Hosted programs behind a wall: they reach the gateway and what they are shown, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime, process
from perdure.core.errors import AgentFailedError, ProgramFailedError, SandboxUnavailableError
from perdure.runtime.walls import SandboxRules
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.conformance.sandbox_attacks import ATTACKS, PRELUDE

# A program has been given variables, descriptors of its own and a process tree that are its to look at.
ITS_OWN = {
    "inherited-descriptors",
    "parent-variables",
    "other-processes",
    "shared-memory",
    "host-home",
    "walk-up",
}


@pytest.fixture(autouse=True)
async def _namespaces() -> None:
    sandboxes = NamespaceSandboxes(spare=0)
    try:
        await sandboxes.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    await sandboxes.close()


@pytest.fixture
async def listening() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def result(folder: Path, text: str, **options: Any) -> Any:
    """What a Python program says in the end."""
    home = folder / "agent"
    home.mkdir(exist_ok=True)
    (home / "main.py").write_text(text)
    agent = process("p", [sys.executable, "-S", str(home / "main.py")], restarts_max=0, **options)
    async with Runtime.open(folder / "data", agents=[agent]) as runtime:
        handle = await runtime.start("p", {"x": 1})
        return json.loads(await handle.result(60))


EACH = """
import json, os, sys, traceback
def attack(name, code):
    print("--", name, flush=True)
    if os.fork() == 0:
        try:
            exec(compile(PRELUDE + chr(10) + code, name, "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
for name, code in ATTACKS.items():
    attack(name, code)
print(json.dumps(len(ATTACKS)))
"""


async def test_attacks(tmp_path: Path, listening: int) -> None:
    """All of them in one program, each in a process of its own."""
    secret = tmp_path / "secret"
    secret.write_text("host-secret")
    env = {
        "HOST_FILE": str(secret),
        "HOST_PORT": str(listening),
        "HOST_PID": str(os.getpid()),
        "HOST_ABSTRACT": "nobody",
    }
    attacks = {name: code for name, code in ATTACKS.items() if name not in ITS_OWN}
    text = f"PRELUDE = {PRELUDE!r}\nATTACKS = {attacks!r}\n{EACH}"
    assert await result(tmp_path, text, env=env) == len(attacks)
    log = next((tmp_path / "data" / "programs").glob("*/output.log")).read_text()
    assert log.count("-- ") >= len(attacks)
    assert "ESCAPED" not in log, log


async def test_of_a_home_folder_it_sees_its_interpreter_only(tmp_path: Path) -> None:
    interpreter = Path(sys.executable).resolve()
    text = "import json, os; print(json.dumps([os.listdir(p) if os.path.isdir(p) else [] for p in ('/root', '/home', '/etc')]))"
    root, home, settings = await result(tmp_path, text)
    assert set(root) <= {interpreter.parts[2]}
    assert set(home) <= {interpreter.parts[2]}
    assert "shadow" not in settings


async def test_it_reads_its_folder_and_cannot_change_it(tmp_path: Path) -> None:
    text = """
import json, os
here = os.path.dirname(os.path.abspath(__file__))
def tried(act):
    try: return act() or "done"
    except OSError as error: return type(error).__name__
print(json.dumps([os.listdir(here), tried(lambda: open(here + "/new", "w").close()), tried(lambda: os.listdir(here + "/../data")),
    tried(lambda: open("mine", "w").close()), tried(lambda: open("/tmp/mine", "w").close())]))
"""
    found = await result(tmp_path, text)
    assert found[0] == ["main.py"]
    assert found[1] in ("OSError", "PermissionError")
    assert found[2] != "done" and "perdure.db" not in str(found[2])
    assert found[3:] == ["done", "done"]


async def test_what_is_shown_and_what_may_be_changed(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "a").write_text("a")
    (tmp_path / "changed").mkdir()
    text = f"open({str(tmp_path / 'changed' / 'b')!r}, 'w').write(open({str(tmp_path / 'seen' / 'a')!r}).read() * 2); print(1)"
    assert (
        await result(tmp_path, text, shows=[str(tmp_path / "seen")], writes=[str(tmp_path / "changed")]) == 1
    )
    made = tmp_path / "changed" / "b"
    assert made.read_text() == "aa"
    assert made.stat().st_uid in (os.getuid(), 65_534)
    with pytest.raises(AgentFailedError, match="is not there"):
        await result(tmp_path, text, shows=[str(tmp_path / "nothing")])


async def test_as_a_plain_process_only_where_somebody_says_so(tmp_path: Path) -> None:
    agent = process("p", [sys.executable, "-S", "-c", "import os; print(os.getppid())"])
    rules = SandboxRules(programs="process")
    async with Runtime.open(tmp_path / "plain", agents=[agent], sandboxes=rules) as runtime:
        assert await (await runtime.start("p")).result(60) == str(os.getpid())


async def test_the_records_say_which_wall_it_was(tmp_path: Path) -> None:
    agent = process("p", [sys.executable, "-S", "-c", "print(1)"])
    async with Runtime.open(tmp_path / "data", agents=[agent]) as runtime:
        handle = await runtime.start("p")
        assert await handle.result(60) == "1"
        said = [leaf.record for leaf in runtime.audit.records(run=handle.id) if leaf.record.kind == "sandbox"]
        assert [record.tier for record in said] == ["namespace"]


async def test_it_ends_with_its_attempt(tmp_path: Path) -> None:
    text = """
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    os.environ.clear()
    ctypes.CDLL(None).prctl(15, b"program-left", 0, 0, 0)
    os.closerange(0, 3)
    time.sleep(600)
time.sleep(0.2)
print(1)
"""
    assert await result(tmp_path, text) == 1
    for _ in range(200):
        if not _named("program-left"):
            return
        time.sleep(0.02)
    raise AssertionError("a process of an ended program is still there")


def _named(name: str) -> bool:
    found = subprocess.run(
        ["grep", "-lsx", name, *map(str, Path("/proc").glob("[0-9]*/comm"))], capture_output=True, check=False
    )
    return bool(found.stdout)


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit(7)", "exit code 7"), ("import os; os.kill(os.getpid(), 11)", "SIGSEGV")],
)
async def test_how_it_ended_is_told(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(ProgramFailedError, match=said):
        await result(tmp_path, code)
