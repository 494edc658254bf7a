"""What the gates remember of a run: rebuilt from its journal, entry by entry, live as on replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from perdure.core import entries as e
from perdure.core.tools import Effect
from perdure.core.values import Payload
from perdure.core.verdicts import Verdict
from perdure.governance.conduct import advance, judge
from perdure.governance.conduct_patterns import Event, EventState
from perdure.governance.conduct_rules import Rules
from perdure.governance.conduct_state import State

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
        rules: of conduct.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.state = State.fresh(rules)
        self.lock = asyncio.Lock()
        self._ahead: set[int] = set()  # entries that were taken in before the run itself has seen them
        self._open: dict[int, Event] = {}  # by call: as it was asked for

    def begin(self, given: bytes) -> None:
        """The run starts with this input, as JSON."""

    def flow_of(self, case: Case) -> FlowFacts | None:
        """What the arguments of an action carry; ``None`` if that is not tracked."""
        del case
        return None

    def judge(self, case: Case) -> Verdict:
        """What the rules of conduct say of an action; one that was held has been asked for already."""
        state: EventState = "intended" if case.is_release else "requested"
        return judge(
            self.rules, self.state, _event(case.name, case.effect, state, case.at_ms, case.arguments)
        )

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
            case e.ActionIntended(what="tool") | e.ActionHeld(what="tool"):
                arguments = msgspec.json.decode(bytes_of(entry.request))
                asked = _event(entry.name, entry.effect, "requested", entry.at_ms, arguments)
                if entry.call not in self._open:
                    self._advance(asked)
                self._open[entry.call] = asked
                if isinstance(entry, e.ActionIntended):
                    self._advance(asked, "intended", entry.at_ms)
            case e.ActionEnded(state="succeeded" | "failed" | "refused"):
                known = self._open.pop(entry.call, None)
                if known is None:  # refused at once: the journal does not have its arguments
                    known = _event(entry.name, "irreversible", "requested", entry.at_ms, {})
                    self._advance(known)
                self._advance(known, cast(EventState, entry.state), entry.at_ms)
            case _:
                pass

    def _advance(self, event: Event, state: EventState | None = None, at_ms: int | None = None) -> None:
        if state is not None and at_ms is not None:
            event = msgspec.structs.replace(event, state=state, at_ms=at_ms)
        advance(self.rules, self.state, event)


def _event(name: str, effect: str, state: EventState, at_ms: int, arguments: Mapping[str, Any]) -> Event:
    return Event(tool=name, effect=cast(Effect, effect), state=state, at_ms=at_ms, arguments=arguments)
