"""The entries about actions and hosted programs."""

from __future__ import annotations

from typing import Literal

import msgspec

from perdure.core.entry import CallEntry, Entry, Failure
from perdure.core.values import Payload
from perdure.core.verdicts import Demand, Reason


# -- actions ---------------------------------------------------------------------------------------
class ActionIntended(CallEntry, frozen=True, kw_only=True):
    """An action passed every gate and its budget is reserved; from here on it may have been dispatched.

    ``policy`` is the digest of the policies that allowed it, ``obligations`` what they ask for, ``grant`` the id of the grant
    that released it; ``changed`` says that an approver changed its arguments, which are in ``request``; ``before`` is what the
    tool saw of the world, ``undoes`` the action that this one undoes.
    """

    kind = "act"
    what: Literal["tool", "model"]
    request: Payload
    recovery: str
    effect: str
    endpoint: str = ""
    attempt: int = 0
    reasons: tuple[Reason, ...] = ()
    obligations: dict[str, str] = msgspec.field(default_factory=dict)
    policy: str = ""
    grant: str = ""
    changed: bool = False
    before: Payload | None = None
    undoes: str = ""


class ActionHeld(CallEntry, frozen=True, kw_only=True):
    """An action waits for a decision; nothing was sent.

    With ``demands`` only a grant releases it, until ``due_ms``; ``asked`` counts how often it was escalated. ``tool`` is the
    digest of the tool and ``policy`` that of the policies when it was held.
    """

    kind = "act"
    what: Literal["tool", "model"]
    request: Payload
    recovery: str
    effect: str
    reason: Failure
    endpoint: str = ""
    attempt: int = 0
    reasons: tuple[Reason, ...] = ()
    demands: tuple[Demand, ...] = ()
    policy: str = ""
    tool: str = ""
    due_ms: int | None = None
    asked: int = 0
    confidence: int | None = None


class ActionDoubted(CallEntry, frozen=True, kw_only=True):
    """Whether a dispatched action happened is not known; it waits for a probe or a human."""

    kind = "act"
    error: Failure


class ActionDecided(CallEntry, frozen=True, kw_only=True):
    """A human or a probe decided about a held or doubtful action that goes on (the others end at once)."""

    kind = "act"
    decision: str
    by: str


class ActionEnded(CallEntry, frozen=True, kw_only=True):
    """The outcome of an action. ``state`` is ``succeeded``, ``failed``, ``lost`` or ``refused``.

    ``after`` is what the tool saw of the world then, if it can undo it.
    """

    kind = "act"
    state: str
    result: Payload | None = None
    error: Failure | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd_micros: int | None = None
    upstream: str = ""
    decided_by: str = ""
    after: Payload | None = None


class ToolsPinned(Entry, frozen=True, kw_only=True):
    """The tools that the run began with, as digests by name; one that changes is refused from here on."""

    digests: dict[str, str]


# -- hosted programs -------------------------------------------------------------------------------
class ProgramStarted(CallEntry, frozen=True, kw_only=True):
    """Attempt ``attempt`` of a hosted program was started."""

    kind = "program"
    attempt: int


class ProgramExited(CallEntry, frozen=True, kw_only=True):
    """An attempt ended without a result; the next one begins at ``due_ms``."""

    kind = "program"
    attempt: int
    error: Failure
    due_ms: int


class ProgramSuspended(CallEntry, frozen=True, kw_only=True):
    """A program that only waited for a decision was stopped; it is started again when there is one."""

    kind = "program"
    attempt: int


class ProgramEnded(CallEntry, frozen=True, kw_only=True):
    """A hosted program ended for good, with a result or an error."""

    kind = "program"
    attempt: int
    result: Payload | None = None
    error: Failure | None = None
