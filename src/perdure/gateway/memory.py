"""What the gates remember of a run: rebuilt from its journal, entry by entry, live as on replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from perdure.core import entries as e
from perdure.core.tools import Effect
from perdure.core.values import Payload
from perdure.core.verdicts import ALLOW, Verdict
from perdure.gateway.seen import Seen
from perdure.governance.conduct import advance, judge
from perdure.governance.conduct_patterns import Event, EventState
from perdure.governance.conduct_rules import Rules
from perdure.governance.conduct_state import State
from perdure.governance.flow import FlowFacts, FlowRules

if TYPE_CHECKING:
    from perdure.gateway.gates.case import Case

BytesOf = Callable[[Payload], bytes]


class RunMemory:
    """What one run has seen and done, as far as gates ask for it.

    Args:
        conduct: rules over the sequence of its actions, if there are any.
        flow: what is declared of the flow of information; ``None`` if it is not tracked.
    """

    def __init__(self, conduct: Rules | None = None, flow: FlowRules | None = None) -> None:
        self.rules = conduct
        self.state = None if conduct is None else State.fresh(conduct)
        self.seen = None if flow is None else Seen(flow)
        self.lock = asyncio.Lock()
        self._ahead: set[int] = set()  # entries that were taken in before the run itself has seen them
        self._open: dict[int, Event] = {}  # by call: as it was asked for

    def begin(
        self, run: str, agent: str, started: e.RunStarted, bytes_of: BytesOf, *, is_hosted: bool = False
    ) -> None:
        """The run starts; a hosted one is a program that may know things which nobody has seen come in."""
        if self.seen is not None:
            self.seen.begin(run, agent, started, bytes_of(started.input), is_hosted=is_hosted)

    def flow_of(self, case: Case) -> FlowFacts | None:
        """What the arguments of an action carry; ``None`` if that is not tracked."""
        return None if self.seen is None else self.seen.facts(case)

    def judge(self, case: Case) -> Verdict:
        """What the rules of conduct say of an action; one that was held has been asked for already."""
        if self.rules is None or self.state is None:
            return ALLOW
        state: EventState = "intended" if case.is_release else "requested"
        return judge(
            self.rules, self.state, _event(case.name, case.effect, state, case.at_ms, case.arguments)
        )

    def see_ahead(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry that is durable, but not delivered yet."""
        self._take(entry, bytes_of)
        self._ahead.add(entry.seq)

    def see(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry of the run, in the order of its journal."""
        if entry.seq in self._ahead:
            self._ahead.discard(entry.seq)
        else:
            self._take(entry, bytes_of)

    def _take(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        if self.seen is not None:
            self.seen.take(entry, bytes_of)
        if self.rules is None:
            return
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
        if self.rules is None or self.state is None:
            return
        if state is not None and at_ms is not None:
            event = msgspec.structs.replace(event, state=state, at_ms=at_ms)
        advance(self.rules, self.state, event)


def _event(name: str, effect: str, state: EventState, at_ms: int, arguments: Mapping[str, Any]) -> Event:
    return Event(tool=name, effect=cast(Effect, effect), state=state, at_ms=at_ms, arguments=arguments)
