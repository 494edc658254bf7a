"""Sandboxes of services: the same cases for each, and what happens when a service fails at any point."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import SandboxJob, SandboxLimits
from perdure.runtime.walls import ConfiguredWalls, SandboxRules
from perdure.sandboxes import remote
from perdure.sandboxes.remote import RemoteSandboxes, RemoteService
from perdure.sandboxes.remote_calls import Key, checked_url
from perdure.sandboxes.remote_e2b import E2BService
from perdure.sandboxes.remote_kubernetes import KubernetesService
from perdure.sandboxes.remote_opensandbox import OpenSandboxService
from perdure.testing.conformance.sandboxes import CASES, LIMITS
from tests.sandboxes.services import e2b, kubernetes, opensandbox
from tests.sandboxes.services.machines import FOLDER, Machines, served


class Noon:
    def now_ms(self) -> int:
        return 1_700_000_000_000


def _e2b(url: str, key: str) -> RemoteService:
    return E2BService(key, api=url, sandbox_url=url, folder=FOLDER)


def _opensandbox(url: str, key: str) -> RemoteService:
    return OpenSandboxService(key, api=f"{url}/v1", folder=FOLDER)


def _kubernetes(url: str, key: str) -> RemoteService:
    return KubernetesService(
        router=url, api=url, warm_pool=kubernetes.POOL, clock=Noon(), namespace="agents", token=key
    )


KINDS: dict[str, tuple[Callable, str, Callable[[str, str], RemoteService]]] = {
    "e2b": (e2b.app, e2b.KEY, _e2b),
    "opensandbox": (opensandbox.app, opensandbox.KEY, _opensandbox),
    "kubernetes": (kubernetes.app, kubernetes.TOKEN, _kubernetes),
}


@dataclass
class Place:
    kind: str
    machines: Machines
    url: str
    sandboxes: RemoteSandboxes

    def with_key(self, key: str) -> RemoteSandboxes:
        return RemoteSandboxes(KINDS[self.kind][2](self.url, key), LIMITS)


@contextlib.asynccontextmanager
async def standing(kind: str) -> AsyncIterator[Place]:
    machines = Machines()
    try:
        await machines.walls.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here to execute in: {error}")
    app, key, make = KINDS[kind]
    try:
        async with served(app(machines)) as url:
            made = RemoteSandboxes(make(url, key), LIMITS)
            try:
                yield Place(kind, machines, url, made)
            finally:
                await made.close()
    finally:
        await machines.walls.close()


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with standing(request.param) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(place: Place, case: Callable) -> None:
    """The case of the limits takes about ten seconds for each service."""
    await case(place.sandboxes)
    assert place.machines.left == set()


async def test_it_opens_and_says_what_it_is(place: Place) -> None:
    await place.sandboxes.open()
    assert place.sandboxes.parts["network"] == "in force: none"
    found = await place.sandboxes.run(SandboxJob(code="print(1)"))
    host = place.url.removeprefix("http://")
    assert (found.tier, found.detail) == ("remote", f"{place.kind} at {host}")
    assert len(place.machines.made) == 2
    assert place.machines.left == set()


async def test_no_doors(place: Place) -> None:
    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with pytest.raises(SandboxUnavailableError, match="doors"):
        await place.sandboxes.run(SandboxJob(code="print(1)"), doors={8080: door})
    assert place.machines.made == []


async def test_a_wrong_key_is_never_shown(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    sandboxes = place.with_key("a-secret-of-ours")
    with pytest.raises(SandboxUnavailableError, match="401") as caught:
        await sandboxes.run(SandboxJob(code="print(1)"))
    await sandboxes.close()
    assert "a-secret-of-ours" not in f"{caught.value} {caught.value.__cause__!r} {caplog.text}"
    assert place.machines.made == []


async def test_nobody_there(place: Place) -> None:
    sandboxes = RemoteSandboxes(KINDS[place.kind][2]("http://127.0.0.1:9", "key"), LIMITS)
    with pytest.raises(SandboxUnavailableError, match="cannot be reached"):
        await sandboxes.run(SandboxJob(code="print(1)"))
    await sandboxes.close()


async def test_a_stream_that_breaks_after_the_start_is_lost(place: Place) -> None:
    place.machines.lose_commands = True
    found = await place.sandboxes.run(SandboxJob(code="print(1)"))
    assert (found.ending, found.exit_code) == ("lost", None)
    assert place.machines.left == set()


async def test_a_failed_delete_is_tried_again(place: Place) -> None:
    place.machines.fail_deletes = 2
    await place.sandboxes.run(SandboxJob(code="print(1)"))
    assert place.machines.left == set()
    assert place.sandboxes.left_behind == ()


async def test_what_cannot_be_deleted_is_reported(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DELETE_WAIT_S", 0.01)
    place.machines.fail_deletes = 100
    with caplog.at_level(logging.WARNING):
        found = await place.sandboxes.run(SandboxJob(code="print(1)"))
    assert found.stdout == b"1\n"
    assert place.sandboxes.left_behind == tuple(place.machines.left)
    assert "could not be deleted" in caplog.text
    assert KINDS[place.kind][1] not in caplog.text


async def test_a_lifetime_is_asked_for(place: Place) -> None:
    await place.sandboxes.run(SandboxJob(code="print(1)"), SandboxLimits(wall_ms=5_000))
    order = place.machines.orders[0]
    if place.kind == "kubernetes":
        assert order["spec"]["lifecycle"]["shutdownTime"] == "2023-11-14T22:15:30Z"  # noon, 5 s, 125 s
    else:
        assert order["timeout"] == 130


async def test_cancelled_while_it_is_made() -> None:
    async with standing("e2b") as place:
        place.machines.create_delay_s = 0.5
        task = asyncio.create_task(place.sandboxes.run(SandboxJob(code="print(1)")))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await place.sandboxes.close()
        assert place.machines.made == place.machines.deleted == ["box1"]


async def test_cancelled_while_it_works(place: Place) -> None:
    task = asyncio.create_task(place.sandboxes.run(SandboxJob(code="import time; time.sleep(60)")))
    while not place.machines.files or not any(place.machines._running.values()):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await place.sandboxes.close()
    assert place.machines.left == set()


async def test_a_program_inside_that_is_killed_by_the_job_is_lost_and_the_rest_is_cleaned_up(
    place: Place,
) -> None:
    found = await place.sandboxes.run(SandboxJob(code="import os; os.kill(os.getppid(), 9)"))
    assert found.ending == "lost"
    assert place.machines.left == set()


async def test_a_forged_report_is_held_against_the_limits(place: Place) -> None:
    code = """
import json, os
told = {"ending": "ended", "exit": 0, "cpu_ms": 1.0, "memory": 1, "wall_ms": 1.0, "stdout": 200_000, "stderr": 0}
with open("../perdure.report", "wb") as file:
    file.write(json.dumps(told).encode() + b"\\n" + b"x" * 200_000)
os.kill(os.getppid(), 9)
"""
    found = await place.sandboxes.run(SandboxJob(code=code))
    assert (found.ending, found.stdout) == ("lost", b"")
    assert b"not whole" in found.stderr


async def test_a_warm_pool_that_is_not_there() -> None:
    async with standing("kubernetes") as place:
        service = KubernetesService(
            router=place.url,
            api=place.url,
            warm_pool="no-such",
            clock=Noon(),
            namespace="agents",
            token=kubernetes.TOKEN,
        )
        sandboxes = RemoteSandboxes(service, LIMITS)
        with pytest.raises(SandboxUnavailableError, match="WarmPoolNotFound"):
            await sandboxes.run(SandboxJob(code="print(1)"))
        await sandboxes.close()
        assert place.machines.left == set()


def test_keys_do_not_travel_in_the_clear() -> None:
    with pytest.raises(InputInvalidError, match="expected https"):
        checked_url("http://sandboxes.example")
    assert checked_url("https://sandboxes.example/v1/") == "https://sandboxes.example/v1"
    assert "abc" not in repr(Key("abc"))
    with pytest.raises(InputInvalidError, match="resolve"):
        Key("secret://e2b")


async def test_a_key_by_reference() -> None:
    class Known:
        def resolve(self, reference: str) -> str:
            assert reference == "secret://e2b"
            return e2b.KEY

        def known_values(self) -> tuple[str, ...]:
            return ()

    async with standing("e2b") as place:
        service = E2BService(
            "secret://e2b", secrets=Known(), api=place.url, sandbox_url=place.url, folder=FOLDER
        )
        sandboxes = RemoteSandboxes(service, LIMITS)
        assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"
        await sandboxes.close()


async def test_a_service_whose_sandboxes_reach_the_internet_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the probe tells it: there is no internet to reach here."""
    monkeypatch.setattr(remote, "PROBE", "print('reached 1.1.1.1')\nprint(42)")
    async with standing("e2b") as place:
        with pytest.raises(SandboxUnavailableError, match="reach the internet"):
            await place.sandboxes.open()
        service = E2BService(e2b.KEY, api=place.url, sandbox_url=place.url, folder=FOLDER)
        open_one = RemoteSandboxes(service, LIMITS, allows_network=True)
        await open_one.open()
        assert open_one.parts["network"].startswith("missing")
        await open_one.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_as_it_is_configured(kind: str) -> None:
    async with standing(kind) as place:
        key = KINDS[kind][1]
        options = {
            "e2b": {"key": key, "api": place.url, "sandbox_url": place.url, "folder": FOLDER},
            "opensandbox": {"key": key, "api": f"{place.url}/v1", "folder": FOLDER},
            "kubernetes": {
                "token": key, "router": place.url, "api": place.url, "warm_pool": kubernetes.POOL, "namespace": "agents",
            },
        }[kind]  # fmt: skip
        rules = SandboxRules(
            tiers=("remote",), limits=LIMITS, options={"remote": {"service": kind, **options}}
        )
        walls = ConfiguredWalls(rules)
        sandboxes = await walls.at_least("remote")
        assert (await sandboxes.run(SandboxJob(code="print(1)"))).tier == "remote"
        await walls.close()


async def test_a_service_that_nobody_knows() -> None:
    walls = ConfiguredWalls(SandboxRules(tiers=("remote",), options={"remote": {"service": "other"}}))
    with pytest.raises(SandboxUnavailableError, match="found `other`"):
        await walls.at_least()


async def test_cancelled_again_while_it_is_deleted() -> None:
    async with standing("e2b") as place:
        task = asyncio.create_task(place.sandboxes.run(SandboxJob(code="import time; time.sleep(60)")))
        while not any(place.machines._running.values()):
            await asyncio.sleep(0.02)
        place.machines.fail_deletes = 1
        task.cancel()
        while place.machines.fail_deletes:
            await asyncio.sleep(0.02)
        task.cancel()  # while it waits to try again
        with pytest.raises(asyncio.CancelledError):
            await task
        await place.sandboxes.close()
        assert place.machines.left == set()


async def test_closing_stops_what_runs(place: Place) -> None:
    task = asyncio.create_task(place.sandboxes.run(SandboxJob(code="import time; time.sleep(60)")))
    while not any(place.machines._running.values()):
        await asyncio.sleep(0.02)
    await asyncio.wait_for(place.sandboxes.close(), 10)
    assert place.machines.left == set()
    assert (await task).ending == "lost"
    with pytest.raises(SandboxUnavailableError, match="closed"):
        await place.sandboxes.run(SandboxJob(code="print(1)"))
