"""Shared fixtures: a data directory and a way to open it with the agents of the tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime, Settings
from tests.runtime import agents

Open = Callable[..., AbstractAsyncContextManager[Runtime]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_runtime(data: Path) -> Open:
    """Opens the data directory; each call is a process's life."""

    def opened(extra: list[Any] | None = None, **settings: Any) -> AbstractAsyncContextManager[Runtime]:
        known = {item.name: item for item in [*agents.ALL, *(extra or [])]}
        chosen = Settings(**{"drain_ms": 500, "poll_ms": 50, **settings})
        return Runtime.open(data, agents=list(known.values()), settings=chosen)

    return opened
