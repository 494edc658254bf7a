"""Actions: one governed use of a tool or model by a run, as the ledger keeps it, and what it spends."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

What = Literal["tool", "model"]
Decision = Literal["happened", "did-not-happen", "retry", "live", "fail", "grant", "reject", "expire"]
Level = Literal["live", "exact", "masked", "causal", "ordinal", "retry"]
ACTION_TOPIC = "perdure.action/"  # followed by the call's number: where decisions about an action arrive


class ActionState(StrEnum):
    """Where an action is; the table of transitions is ``perdure.kernel.actions``."""

    HELD = "held"  # waits for a decision before anything is sent
    INTENDED = "intended"  # durable; from here on it may have been dispatched
    UNKNOWN = "unknown"  # dispatched, no answer: never repeated on its own
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # it is known that it failed, or was decided not to have happened
    LOST = (
        "lost"  # as if it had not been made: a model request without an answer, or answered with 429 or 5xx
    )
    REFUSED = "refused"  # a gate said no; nothing was sent

    @property
    def is_fact(self) -> bool:
        """Whether a restarted program is answered from it."""
        return self in (ActionState.SUCCEEDED, ActionState.FAILED)

    @property
    def is_open(self) -> bool:
        """Whether its end is still to come."""
        return self in (ActionState.HELD, ActionState.INTENDED, ActionState.UNKNOWN)


class Spend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was or may be used. Money in millionths of a US dollar.

    Attributes:
        tokens: of input and output together.
        usd_micros: the known part of the cost.
        calls: actions, of models and tools.
        unpriced: actions whose cost is not known.
    """

    tokens: int = 0
    usd_micros: int = 0
    calls: int = 0
    unpriced: int = 0

    def plus(self, other: Spend) -> Spend:
        """Both together."""
        return Spend(
            tokens=self.tokens + other.tokens,
            usd_micros=self.usd_micros + other.usd_micros,
            calls=self.calls + other.calls,
            unpriced=self.unpriced + other.unpriced,
        )

    def minus(self, other: Spend) -> Spend:
        """Without the other."""
        return Spend(
            tokens=self.tokens - other.tokens,
            usd_micros=self.usd_micros - other.usd_micros,
            calls=self.calls - other.calls,
            unpriced=self.unpriced - other.unpriced,
        )


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a run and everything that it starts may use; ``None`` is without limit.

    Attributes:
        tokens: of input and output together.
        usd_micros: millionths of a US dollar.
        calls: actions, of models and tools.
        wall_ms: from the start of the run.
        warn_percent: from this share on a warning is shown (the soft limit).
        exhausted: ``fail`` refuses what would go over the limit, ``hold`` lets it wait until the budget is raised.
        unpriced: whether models without a known price are refused while ``usd_micros`` is set (``refuse``), or
            used and counted as unpriced (``allow``).
    """

    tokens: int | None = None
    usd_micros: int | None = None
    calls: int | None = None
    wall_ms: int | None = None
    warn_percent: int = 80
    exhausted: Literal["fail", "hold"] = "fail"
    unpriced: Literal["refuse", "allow"] = "refuse"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The spend of one run and its children: its budget if it has one, what is reserved, what was spent."""

    run: str
    budget: Budget | None = None
    reserved: Spend = Spend()
    spent: Spend = Spend()
    since_ms: int = 0


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger. Its request and result are in the run's journal, at ``intent_seq`` and ``end_seq``."""

    run: str
    call: int
    agent: str
    what: What
    name: str
    state: ActionState
    recovery: str
    effect: str
    intended_ms: int
    intent_seq: int
    endpoint: str = ""
    exact: str = ""
    masked: str = ""
    causal: str = ""
    ordinal: str = ""
    attempt: int = 0
    end_seq: int | None = None
    ended_ms: int | None = None
    reserved: Spend = Spend()
    spent: Spend = Spend()
    input_tokens: int | None = None
    output_tokens: int | None = None
    upstream: str = ""
    code: str = ""
    undoes: str = ""

    @property
    def key(self) -> str:
        """Its id and idempotency key."""
        return f"{self.run}/{self.call}"


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Attempt ``attempt`` of a hosted program was answered with row ``call``, found at this level."""

    run: str
    attempt: int
    call: int
    level: Level
    at_ms: int


class ActionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which actions to list, newest first; ``None`` means any."""

    run: str | None = None
    state: tuple[ActionState, ...] | None = None
    name: str | None = None
    limit: int = 100
