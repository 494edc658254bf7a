"""What the gates remember of a run: rebuilt from its journal, entry by entry, live as on replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.core import entries as e
from perdure.core.values import Payload

if TYPE_CHECKING:
    from perdure.gateway.gates.case import Case

BytesOf = Callable[[Payload], bytes]


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What the arguments of an action carry: labels such as ``untrusted``, and where they come from."""

    labels: frozenset[str]
    sources: frozenset[str]


class RunMemory:
    """What one run has seen and done, as far as gates ask for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._ahead: set[int] = set()  # entries that were taken in before the run itself has seen them

    def begin(self, given: bytes) -> None:
        """The run starts with this input, as JSON."""

    def flow_of(self, case: Case) -> FlowFacts | None:
        """What the arguments of an action carry; ``None`` if that is not tracked."""
        del case
        return None

    def see_ahead(self, entry: e.CallEntry) -> None:
        """An entry that is durable, but not delivered yet."""
        self._ahead.add(entry.seq)

    def see(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry about an action of the run."""
        del bytes_of
        if entry.seq in self._ahead:
            self._ahead.discard(entry.seq)
