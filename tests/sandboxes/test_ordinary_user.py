"""The same wall without any right of root's: in a process that has given them up."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - before we cannot read where we are any more
import multiprocessing
import os
from multiprocessing.connection import Connection

import pytest

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxJob
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.attack import attacked
from perdure.testing.conformance.sandbox_attacks import ATTACKS

NOBODY = 65_534


async def _tried() -> tuple[list[str], dict[str, str], str]:
    sandboxes = NamespaceSandboxes(spare=2)
    await sandboxes.open()
    try:
        told = await sandboxes.run(
            SandboxJob(code="import os; print(os.getuid(), open('/proc/self/uid_map').read().split())")
        )
        return await attacked(sandboxes), dict(sandboxes.parts), told.stdout.decode()
    finally:
        await sandboxes.close()


def _in_child(told: Connection) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ["TMPDIR"] = "/tmp"  # noqa: S108 - where everybody may write
    try:
        told.send(asyncio.run(_tried()))
    except SandboxUnavailableError as error:
        told.send(str(error))
    except BaseException as error:
        told.send(error)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_attacks_without_roots_rights() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(theirs,))
    process.start()
    assert ours.poll(120), "it took too long"
    found = ours.recv()
    process.join(10)
    if isinstance(found, str):
        pytest.skip(f"no namespaces for an ordinary user: {found}")
    if isinstance(found, BaseException):
        raise found
    through, parts, said = found
    assert through == [], f"of {len(ATTACKS)} attacks"
    assert said.startswith("1000 ")
    assert parts["cgroups"].startswith("missing") or os.getuid() != 0
