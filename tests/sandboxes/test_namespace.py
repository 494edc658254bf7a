"""The namespace backend keeps the promises of the port; its doors are the only ways out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import SandboxJob, SandboxLimits
from perdure.ports import Sandboxes
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.conformance.sandboxes import CASES, LIMITS
from tests.sandboxes.doors import CASES as DOORS


@pytest.fixture
async def sandboxes() -> AsyncIterator[NamespaceSandboxes]:
    made = NamespaceSandboxes(LIMITS, spare=2)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    await made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(
    sandboxes: NamespaceSandboxes, case: Callable[[Sandboxes], Awaitable[None]]
) -> None:
    await case(sandboxes)


@pytest.mark.parametrize("case", DOORS, ids=lambda case: case.__name__)
async def test_doors(sandboxes: NamespaceSandboxes, case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(sandboxes)


async def test_a_zygote_that_was_killed_is_replaced(sandboxes: NamespaceSandboxes) -> None:
    zygote = sandboxes._zygote
    assert zygote is not None
    zygote._process.kill()
    for _ in range(4):
        found = await _patiently(sandboxes)
        assert found == b"1\n"
    assert sandboxes._zygote is not zygote


async def _patiently(sandboxes: NamespaceSandboxes) -> bytes:
    """What was made before it died has died with it: such a job was never begun, or is lost."""
    for _ in range(20):
        try:
            found = await sandboxes.run(SandboxJob(code="print(1)"))
        except SandboxUnavailableError:
            continue
        if found.ending == "ended":
            return found.stdout
        await asyncio.sleep(0.05)
    return b""


async def test_a_zygote_makes_so_many_and_no_more(
    sandboxes: NamespaceSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sandboxes._zygote
    monkeypatch.setattr("perdure.sandboxes.namespace.RECYCLED_AFTER", 3)
    found = [await sandboxes.run(SandboxJob(code="print(1)")) for _ in range(12)]
    assert [item.stdout for item in found] == [b"1\n"] * 12
    assert sandboxes._zygote is not first


async def test_the_pool_grows_with_demand_and_shrinks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.sandboxes.namespace.IDLE_S", 0.05)
    pool = NamespaceSandboxes(LIMITS, spare=1, spare_max=8)
    try:
        await pool.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    try:
        await asyncio.gather(*(pool.run(SandboxJob(code="print(1)")) for _ in range(30)))
        assert 1 < pool._wanted <= 8
        for _ in range(100):
            await asyncio.sleep(0.05)
            if pool._wanted == 1 and len(pool._spare) <= 1:
                return
        raise AssertionError(f"{pool._wanted} spare ones are still wanted, {len(pool._spare)} are there")
    finally:
        await pool.close()


def test_what_it_consists_of_is_told(sandboxes: NamespaceSandboxes) -> None:
    assert set(sandboxes.parts) == {"namespaces", "system calls", "privileges", "landlock", "cgroups"}


async def test_groups_of_runtimes_that_were_killed_are_removed(sandboxes: NamespaceSandboxes) -> None:
    groups = sandboxes._groups
    if groups is None:
        pytest.skip("no control group may be written here")
    left = groups._bases[0].parent / "perdure-4194305-1"  # no process has so high a number
    (left / "1").mkdir(parents=True)
    mine = groups._bases[0]
    other = NamespaceSandboxes(LIMITS, spare=0)
    await other.open()
    await other.close()
    assert not left.exists()
    assert mine.exists(), "that of a living one stays"


@pytest.mark.parametrize(
    "wrong", [{"memory_bytes": -1}, {"processes": 0}, {"cpu_share": float("nan")}, {"wall_ms": 1 << 63}]
)
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(InputInvalidError):
        SandboxLimits(**wrong)  # type: ignore[arg-type]
