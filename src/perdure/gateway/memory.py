"""What the gates remember of a run: rebuilt from its journal, entry by entry, live as on replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from perdure.core import entries as e
from perdure.core.values import Payload
from perdure.governance.conduct import Conduct, Event

if TYPE_CHECKING:
    from perdure.gateway.gates.case import Case

BytesOf = Callable[[Payload], bytes]


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What the arguments of an action carry: labels such as ``untrusted``, and where they come from."""

    labels: frozenset[str]
    sources: frozenset[str]


class RunMemory:
    """What one run has seen and done, as far as gates ask for it.

    Args:
        conduct: the automata of its conduct rules.
    """

    def __init__(self, conduct: Conduct) -> None:
        self.conduct = conduct
        self.lock = asyncio.Lock()
        self._ahead: set[int] = set()  # entries that were taken in before the run itself has seen them
        self._open: dict[int, Event] = {}  # by call: as it was intended

    def begin(self, given: bytes) -> None:
        """The run starts with this input, as JSON."""

    def flow_of(self, case: Case) -> FlowFacts | None:
        """What the arguments of an action carry; ``None`` if that is not tracked."""
        del case
        return None

    def see_ahead(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry that is durable, but not delivered yet."""
        self._take(entry, bytes_of)
        self._ahead.add(entry.seq)

    def see(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry about an action of the run."""
        if entry.seq in self._ahead:
            self._ahead.discard(entry.seq)
        else:
            self._take(entry, bytes_of)

    def _take(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        match entry:
            case e.ActionIntended(what="tool"):
                arguments = msgspec.json.decode(bytes_of(entry.request))
                event = Event(name=entry.name, effect=entry.effect, at_ms=entry.at_ms, arguments=arguments)
                self._open[entry.call] = event
                self.conduct.advance(event)
            case e.ActionEnded():
                intended = self._open.pop(entry.call, None)
                if intended is not None:
                    self.conduct.advance(replace(intended, state=entry.state, at_ms=entry.at_ms))
            case _:
                pass
