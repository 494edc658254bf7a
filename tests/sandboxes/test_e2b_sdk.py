"""The vendor's unmodified SDK against the same local service: server and client speak what it speaks.

The SDK lives in an environment of its own, which the first run makes (about ten seconds).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxFile, SandboxJob
from perdure.sandboxes.remote import RemoteSandboxes
from perdure.sandboxes.remote_e2b import E2BService
from tests.sandboxes.services import e2b
from tests.sandboxes.services.machines import FOLDER, Machines, served

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import json, os, sys
from e2b import AuthenticationException, CommandExitException, Sandbox

url, key, folder = sys.argv[1:]
where = {"api_url": url, "sandbox_url": url, "api_key": key}
box = Sandbox.create(timeout=120, allow_internet_access=False, **where)
found = {"id": box.sandbox_id}
box.files.write(f"{folder}/given.txt", "six times seven")
found["ran"] = box.commands.run(f"cat {folder}/given.txt; python3 -c 'print(6*7)' | tee {folder}/out.txt").stdout
found["out"] = box.files.read(f"{folder}/out.txt")
try:
    box.commands.run("echo oops >&2; exit 3")
except CommandExitException as error:
    found["failed"] = [error.exit_code, error.stderr]
found["killed"] = box.kill()
found["again"] = box.kill()
try:
    Sandbox.create(**{**where, "api_key": "e2b_" + "0" * 16})
except AuthenticationException:
    found["refused"] = True
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python() -> str:
    made = subprocess.run(
        ["sh", str(ROOT / "scripts" / "environments"), "e2b"], capture_output=True, text=True, timeout=280
    )
    if made.returncode:
        pytest.skip(f"the SDK cannot be installed here: {made.stderr[-200:]}")
    return str(ROOT / ".setup" / "environments" / "e2b" / "env" / "bin" / "python")


async def test_the_sdk_and_our_client_use_the_same_service(python: str) -> None:
    machines = Machines()
    try:
        await machines.walls.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here to execute in: {error}")
    try:
        async with served(e2b.app(machines)) as url:
            env = {"PATH": os.environ["PATH"], "E2B_HTTP_VERSION": "1.1"}
            process = await asyncio.create_subprocess_exec(
                python, "-I", "-c", PROGRAM, url, e2b.KEY, FOLDER, env=env,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, err.decode()
            assert json.loads(out) == {
                "id": "box1", "ran": "six times seven42\n", "out": "42\n", "failed": [3, "oops\n"], "killed": True,
                "again": False, "refused": True,
            }  # fmt: skip
            service = E2BService(e2b.KEY, api=url, sandbox_url=url, folder=FOLDER)
            sandboxes = RemoteSandboxes(service)
            found = await sandboxes.run(
                SandboxJob(
                    code="print(open('given').read())", files=(SandboxFile(name="given", data=b"ours"),)
                )
            )
            await sandboxes.close()
            assert found.stdout == b"ours\n"
            assert machines.deleted == ["box1", "box2"]
            theirs, ours = machines.orders
            shared = set(theirs) & set(ours)
            assert {"templateID", "timeout", "allow_internet_access", "metadata"} <= shared
            assert ours["allow_internet_access"] is theirs["allow_internet_access"] is False
            assert ours["templateID"] == theirs["templateID"]
    finally:
        await machines.walls.close()
