"""The simulated store does what the port promises, on its own loop and with every fault switched off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import pytest

from perdure.testing.conformance import store
from perdure.testing.store import SimStore
from perdure.testing.world import World

# A simulated process owns nothing, so closing its store means nothing.
CASES = [case for case in store.CASES if case is not store.a_closed_store_refuses]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_simulated(case: Callable[..., Awaitable[None]], seed: int) -> None:
    world = World(seed, only=frozenset())
    world.oracle = Mock()  # it judges engines; the suite writes what no engine would
    simulated: Any = SimStore(world, "")
    world.loop.run_until_complete(case(simulated))
    world.loop.dispose()
    world.disk.connection.close()


@pytest.mark.parametrize("case", store.DAMAGE_CASES, ids=lambda case: case.__name__)
def test_simulated_damage(case: Callable[..., Awaitable[None]]) -> None:
    world = World(1, only=frozenset())
    world.oracle = Mock()

    def damage(run: str, seq: int) -> None:
        where = "run = (SELECT key FROM runs WHERE id = ?) AND seq = ?"
        world.disk.connection.execute(
            f"UPDATE journal SET body = CAST(body || x'20' AS BLOB) WHERE {where}", (run, seq)
        )

    simulated: Any = SimStore(world, "")
    world.loop.run_until_complete(case(simulated, damage))
    world.loop.dispose()
    world.disk.connection.close()
