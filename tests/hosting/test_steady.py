"""Programs whose chance and time of day are the same on every attempt."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from perdure import Runtime, process

PYTHON = """
import datetime, json, os, random, secrets, time, uuid
from datetime import datetime as moment
drawn = [random.random(), os.urandom(4).hex(), str(uuid.uuid4()), secrets.token_hex(4), hash("text"), list({"a", "b", "c", "d"})]
told = [time.time(), moment.now().isoformat(), datetime.datetime.utcnow().isoformat(), isinstance(moment.now(), datetime.datetime)]
time.sleep(0.01)
again = [time.time(), random.random()]
marker = os.path.join(%r, "tried")
if not os.path.exists(marker):
    open(marker, "w").write(json.dumps([drawn, told, again]))
    os.kill(os.getpid(), 9)
print(json.dumps([drawn, told, again]))
"""
NODE = """
const crypto = require("crypto"), fs = require("fs");
const drawn = [Math.random(), crypto.randomUUID(), globalThis.crypto.randomUUID(), crypto.randomBytes(4).toString("hex"),
  Array.from(globalThis.crypto.getRandomValues(new Uint8Array(4))), Date.now(), new Date().toISOString(), new Date(0).getTime(), new Date() instanceof Date];
const marker = %r + "/tried";
if (!fs.existsSync(marker)) { fs.writeFileSync(marker, JSON.stringify(drawn)); process.kill(process.pid, "SIGKILL"); }
else console.log(JSON.stringify(drawn));
"""


async def both(folder: Path, command: list[str], *, steady: bool) -> tuple[str, str, int]:
    """What the first and the second attempt have drawn, and when the run began."""
    agent = process("p", command, steady=steady, backoff=0.001, writes=[str(folder)])
    async with Runtime.open(folder / "data", agents=[agent]) as runtime:
        handle = await runtime.start("p")
        second = await handle.result(60)
        return (folder / "tried").read_text(), second, handle.record().created_ms


async def test_python(tmp_path: Path) -> None:
    first, second, created_ms = await both(
        tmp_path, [sys.executable, "-c", PYTHON % str(tmp_path)], steady=True
    )
    assert json.loads(first) == json.loads(second)
    (random, *_), (now, *_, is_one), (later, _) = json.loads(second)
    assert 0 <= random < 1
    assert is_one is True
    assert abs(now * 1000 - created_ms) < 10_000
    assert 0.01 < later - now < 1


async def test_every_run_has_chance_of_its_own(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _, second, _ = await both(
            tmp_path / name, [sys.executable, "-c", PYTHON % str(tmp_path / name)], steady=True
        )
        drawn.append(json.loads(second)[0])
    assert drawn[0][:4] != drawn[1][:4]


async def test_only_who_asks_for_it(tmp_path: Path) -> None:
    first, second, _ = await both(tmp_path, [sys.executable, "-c", PYTHON % str(tmp_path)], steady=False)
    assert json.loads(first)[0][:4] != json.loads(second)[0][:4]


async def test_node(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node.js here")
    (tmp_path / "main.cjs").write_text(NODE % str(tmp_path))
    first, second, created_ms = await both(tmp_path, [node, str(tmp_path / "main.cjs")], steady=True)
    assert json.loads(first) == json.loads(second)
    found = json.loads(second)
    assert abs(found[5] - created_ms) < 10_000
    assert found[7:] == [0, True]
