"""What the gateway needs of a run, and what it makes of a call: an act, then an outcome."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from perdure.core.actions import ActionRecord, ActionState, Spend, What
from perdure.core.approvals import GrantRecord
from perdure.core.entries import ActionHeld, CallEntry, Entry, Failure
from perdure.core.labels import Labels
from perdure.core.models import Usage
from perdure.core.principals import Chain, Risk
from perdure.core.tools import ToolSpec
from perdure.core.values import Payload
from perdure.core.verdicts import Reason
from perdure.gateway.memory import RunMemory
from perdure.kernel.identity import Identity
from perdure.ports import Tool, Transaction

Blobs = Mapping[str, bytes]
Make = Callable[[Transaction, dict[str, int]], tuple[CallEntry, Blobs]]


class Seat(Protocol):
    """One run in memory, under its lease. Implemented by the engine."""

    @property
    def run_id(self) -> str:
        """The run."""
        ...

    @property
    def agent(self) -> str:
        """The name of its agent."""
        ...

    @property
    def principals(self) -> Chain:
        """The run, then who it acts for."""
        ...

    @property
    def risk(self) -> Risk:
        """The tier of its agent."""
        ...

    @property
    def memory(self) -> RunMemory | None:
        """What gates remember of the run; ``None`` where they need not."""
        ...

    @property
    def pins(self) -> Mapping[str, str]:
        """Digests of the tools that the run began with, by name; empty before they are pinned."""
        ...

    def now_ms(self) -> int:
        """The time of day."""
        ...

    def budget_left(self) -> int | None:
        """What is left of the tightest budget of money of the run and those above it, in millionths of a dollar."""
        ...

    async def write(self, make: Make) -> CallEntry:
        """Record what ``make`` returns at the run's next position, in one transaction with what it writes.

        Raises:
            FenceError: another worker has the run.
            UnavailableError: the outcome of the write is unknown; the run is dropped and goes on from its journal.
        """
        ...

    async def pin(self, digests: Mapping[str, str]) -> None:
        """Record the tools that the run goes by from now on."""
        ...

    def show(self, kind: str, data: Any) -> None:
        """Show something to live watchers."""
        ...

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        ...

    def held(self, call: int) -> ActionHeld | None:
        """How a call was held the last time."""
        ...

    def grants(self, call: int) -> list[GrantRecord]:
        """What was signed about a held call, oldest first."""
        ...


class HostedSeat(Seat, Protocol):
    """The run of a hosted program, whose calls are made outside the run's own code."""

    @property
    def fence(self) -> int | None:
        """The fence of the lease under which it acts; ``None`` when it does not any more."""
        ...

    def adopt(self, act: Act) -> int:
        """Give a call the next number."""
        ...

    def ledger(self) -> list[ActionRecord]:
        """The rows of the run."""
        ...

    def entry(self, seq: int) -> Entry:
        """One entry of the journal."""
        ...

    def work(self, work: Coroutine[Any, Any, None], call: int) -> None:
        """Run something that belongs to the run and not to whoever asked for it."""
        ...

    def later(self, work: Callable[[Transaction], Any]) -> None:
        """Write something that nobody waits for."""
        ...

    async def ended(self, call: int, told: Callable[[ActionState], None]) -> CallEntry:
        """Wait for the end of an open call; ``told`` hears of its states before that.

        Raises:
            RunEndedError: the run leaves memory first.
        """
        ...

    async def decided(self, call: int) -> CallEntry:
        """Wait for the decision about a held call (``ActionDecided`` or ``ActionEnded``).

        Raises:
            RunEndedError: the run leaves memory first.
        """
        ...


@dataclass(slots=True)
class Act:
    """A call on its way through the gateway. ``request`` is the tool's arguments or the model request's body, as JSON."""

    what: What
    name: str
    digest: str
    request: bytes
    recovery: str
    effect: str
    estimate: Spend
    endpoint: str = ""
    call: int = 0
    attempt: int = 0
    identity: Identity | None = None
    headers: tuple[tuple[str, str], ...] = field(default=())
    metered: bytes = b""  # the request as it is sent where the client did not ask for the usage
    stored: bytes = b""  # the request as it is kept, without secrets
    tool: Tool | None = None
    before: bytes | None = None  # what the tool saw of the world, as JSON
    undoes: str = ""  # the action that it undoes
    confidence: int | None = None  # in percent, where the agent or a checker has said so
    shown: tuple[Reason, ...] = ()  # why it is held, as an approver was shown
    asked: int = 0  # how often it was escalated
    seal: Callable[[Transaction], tuple[str, bytes]] | None = (
        None  # makes the details beside the audit record
    )
    is_changed: bool = False  # an approver changed the arguments
    tier: str = ""  # the weakest wall that the policies let it be put behind
    agent: str = ""  # who acts
    within: str = ""  # the wall around whoever acts

    @property
    def spec(self) -> ToolSpec | None:
        """Of a tool: what it declares."""
        return None if self.tool is None else self.tool.spec


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an act ended, to be recorded. ``spent`` is what it really used."""

    state: ActionState
    spent: Spend
    result: bytes | None = None
    error: Failure | None = None
    usage: Usage | None = None
    usd_micros: int | None = None
    upstream: str = ""
    decided_by: str = ""
    after: bytes | None = None  # what the tool saw of the world then, as JSON
    labels: Labels = ()  # of the parts of the result
    tier: str = ""  # the wall that was really in force
    breach: str = ""  # the limit that it met
    blobs: Blobs = field(default_factory=dict)
