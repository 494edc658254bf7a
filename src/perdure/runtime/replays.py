"""Pure replays: an attempt of a hosted program that is answered from the journal alone. Nothing is sent, nothing recorded."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from perdure.agents.hosting import Ended
from perdure.core import entries as e
from perdure.core.actions import ActionRecord, ActionState
from perdure.core.approvals import GrantRecord
from perdure.core.errors import DefinitionError, DivergedError
from perdure.core.principals import Chain, Risk
from perdure.core.values import Payload
from perdure.engines.embedded import works
from perdure.gateway.hosted import Attempt
from perdure.gateway.memory import RunMemory
from perdure.gateway.seat import Act, Make
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime


class ReplaySeat:
    """The seat of a run that may only be looked at. Implements ``HostedSeat``; whatever would be new is a divergence."""

    def __init__(self, runtime: Runtime, run: str, agent: str, show: Callable[[str, Any], None]) -> None:
        self._runtime = runtime
        self._show = show
        self.run_id = run
        self.agent = agent
        self.pins: Mapping[str, str] = _pins(runtime.run(run).journal())
        self.principals: Chain = ()
        self.risk: Risk = "medium"
        self.memory: RunMemory | None = None
        self.fence: int | None = 0  # no lease is needed to look

    def now_ms(self) -> int:
        """The time of day."""
        return self._runtime.now_ms()

    def budget_left(self) -> int | None:
        """None: nothing is judged in a replay."""
        return None

    async def write(self, make: Make) -> e.CallEntry:  # noqa: ARG002
        """Never: nothing is recorded."""
        raise self._new()

    async def pin(self, digests: Mapping[str, str]) -> None:
        """Nothing was pinned, so nothing is held against it."""

    def show(self, kind: str, data: Any) -> None:
        """Pass on what the program shows."""
        self._show(kind, data)

    def adopt(self, act: Act) -> int:
        """Never: no call is new.

        Raises:
            DivergedError: the program asks for something that the journal does not answer.
        """
        raise self._new(f" for {act.what} `{act.name}`")

    def _new(self, what: str = "") -> DivergedError:
        message = f"the program asks{what} beyond what run `{self.run_id}` recorded; a replay sends nothing"
        return DivergedError(message, run=self.run_id)

    def ledger(self) -> list[ActionRecord]:
        """The rows of the run."""
        return self._runtime.store.read(lambda tx: tx.run_actions(self.run_id))

    def entry(self, seq: int) -> e.Entry:
        """One entry of the journal."""
        return self._runtime.store.read(lambda tx: tx.journal(self.run_id, seq - 1, 1))[0]

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        return self._runtime.bytes_of(payload)

    def work(self, work: Coroutine[Any, Any, None], call: int) -> None:
        """Never: there is nothing to work on."""
        work.close()
        raise self._new(f" in call {call}")

    def held(self, call: int) -> e.ActionHeld | None:  # noqa: ARG002
        """None: nothing is released in a replay."""
        return None

    def grants(self, call: int) -> list[GrantRecord]:  # noqa: ARG002
        """None: nothing is released in a replay."""
        return []

    def later(self, work: Callable[[Transaction], Any]) -> None:
        """Nothing is written."""

    async def ended(self, call: int, told: Callable[[ActionState], None]) -> e.CallEntry:  # noqa: ARG002
        """Never: what has no end cannot be replayed."""
        raise self._new(f": call {call} has no recorded end")

    async def decided(self, call: int) -> e.CallEntry:
        """Never: what waits for a decision cannot be replayed."""
        raise self._new(f": call {call} waits for a decision")


async def replay(runtime: Runtime, run: str, show: Callable[[str, Any], None]) -> tuple[Ended, int]:
    """Start the program of a run once more, answered from its journal alone.

    Returns:
        How it ended, and how many calls were answered.

    Raises:
        DefinitionError: the run is not one of a hosted program, or this runtime drives no programs.
    """
    record = runtime.store.read(lambda tx: works.find(tx, run))
    program = runtime.agent(record.agent).program
    outside = runtime.engine.outside if runtime.engine is not None else None
    if program is None or outside is None or outside.programs is None:
        raise DefinitionError(f"run `{run}` is not the run of a hosted program that can be started here")
    started = runtime.run(run).journal(limit=1)[0]
    given = runtime.bytes_of(started.input) if isinstance(started, e.RunStarted) else b"null"
    seat = ReplaySeat(runtime, run, record.agent, show)
    catalogue = outside.catalogue(runtime.agent(record.agent))
    attempt = Attempt(outside.gateway, seat, 0, catalogue, divergence="fail")
    ended = await outside.programs.run(program, given, attempt, show)
    return ended, attempt.consumed


def _pins(journal: list[e.AnyEntry]) -> Mapping[str, str]:
    return next((entry.digests for entry in journal if isinstance(entry, e.ToolsPinned)), {})
