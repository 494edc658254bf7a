"""The embedded engine does what every engine must, also with its agents in worker processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from perdure.testing.conformance import engine
from tests.engines import harness

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def isolated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[harness.Embedded]:
    async with harness.embedded(tmp_path_factory.mktemp("isolated"), "isolated") as opened:
        yield opened


@pytest.mark.parametrize("case", engine.BASIC, ids=lambda case: case.__name__)
async def test_basic(case: Callable[..., Awaitable[None]], isolated: harness.Embedded) -> None:
    await case(isolated)
