"""The entries of a journal: what happened in a run, in the past tense, frozen and versioned.

An entry's ``type`` is its class name in JSON. Fields are only ever added, with a default; an entry that must change
its meaning gets a new class, so that journals of every landed version still replay.
"""

from __future__ import annotations

import msgspec

from perdure.core.action_entries import ActionDecided as ActionDecided
from perdure.core.action_entries import ActionDoubted as ActionDoubted
from perdure.core.action_entries import ActionEnded as ActionEnded
from perdure.core.action_entries import ActionHeld as ActionHeld
from perdure.core.action_entries import ActionIntended as ActionIntended
from perdure.core.action_entries import ProgramEnded as ProgramEnded
from perdure.core.action_entries import ProgramExited as ProgramExited
from perdure.core.action_entries import ProgramStarted as ProgramStarted
from perdure.core.action_entries import ProgramSuspended as ProgramSuspended
from perdure.core.action_entries import ToolsPinned as ToolsPinned
from perdure.core.entry import CallEntry as CallEntry
from perdure.core.entry import Entry as Entry
from perdure.core.entry import Failure as Failure
from perdure.core.entry import Wait as Wait
from perdure.core.principals import Principal
from perdure.core.values import NULL, Payload

JOURNAL_VERSION = 2  # written in RunStarted; raised when a class is added that older code cannot read


# -- the life of a run ---------------------------------------------------------------------------
class RunStarted(Entry, frozen=True, kw_only=True):
    """A run was accepted. ``chance`` seeds ``run.random`` and ``run.uuid``; ``version`` pins the agent's code.

    ``principals`` is who it acts for: the run that started it, and so on up to the user. ``goal`` is what it was started for,
    if that was said.
    """

    agent: str
    version: str
    input: Payload
    chance: int
    session: str | None = None
    parent: str | None = None
    deadline_ms: int | None = None
    origin: str | None = None
    principals: tuple[Principal, ...] = ()
    goal: str = ""
    journal: int = JOURNAL_VERSION


class RunForked(Entry, frozen=True, kw_only=True):
    """Everything before this entry was copied from ``origin``; from here on the run has chance of its own."""

    origin: str
    at: int
    chance: int
    changed: tuple[int, ...] = ()


class RunRecovered(Entry, frozen=True, kw_only=True):
    """A worker took the run over from one that had died or had lost its lease."""

    worker: str
    fence: int


class RunMigrated(Entry, frozen=True, kw_only=True):
    """An operator told the run to go on with another version of its agent."""

    version: str


class RunParked(Entry, frozen=True, kw_only=True):
    """Nothing is left to do until one of ``waits`` ends."""

    waits: tuple[Wait, ...]


class CancelRequested(Entry, frozen=True, kw_only=True):
    """The agent is told to stop: ``asyncio.CancelledError`` is raised where it waits."""

    reason: str
    code: str = "run-cancelled"


class RunCompleted(Entry, frozen=True, kw_only=True):
    """The agent returned."""

    result: Payload


class RunFailed(Entry, frozen=True, kw_only=True):
    """The agent raised, or its deadline passed."""

    error: Failure


class RunCancelled(Entry, frozen=True, kw_only=True):
    """The agent stopped because it was told to."""

    reason: str


class RunBlocked(Entry, frozen=True, kw_only=True):
    """The run cannot go on until an operator decides."""

    error: Failure
    expected: str = ""
    found: str = ""


class RunUnblocked(Entry, frozen=True, kw_only=True):
    """An operator let the run go on."""


# -- durable calls -------------------------------------------------------------------------------
class StepCompleted(CallEntry, frozen=True, kw_only=True):
    """A step returned; its result is never computed again."""

    kind = "step"
    result: Payload
    attempt: int = 1


class StepRetried(CallEntry, frozen=True, kw_only=True):
    """Attempt ``attempt`` of a step failed; the next begins at ``due_ms``."""

    kind = "step"
    attempt: int
    error: Failure
    due_ms: int


class StepFailed(CallEntry, frozen=True, kw_only=True):
    """The last attempt of a step failed."""

    kind = "step"
    attempt: int
    error: Failure


class Slept(CallEntry, frozen=True, kw_only=True):
    """A ``run.sleep`` ended."""

    kind = "sleep"


class TimerFired(Entry, frozen=True, kw_only=True):
    """A plain asyncio timer of the agent (``asyncio.sleep``, ``asyncio.timeout``) fired; they count from 1."""

    timer: int


class MessageReceived(CallEntry, frozen=True, kw_only=True):
    """A ``run.receive`` ended with a message, or with none because its time was up."""

    kind = "receive"
    message: int | None = None
    body: Payload = NULL
    sender: str = ""
    sent_ms: int = 0


class MessageSent(CallEntry, frozen=True, kw_only=True):
    """A message was put into the mailbox of run ``to`` (``delivered`` is false if that run had ended)."""

    kind = "send"
    to: str
    delivered: bool = True


class Published(CallEntry, frozen=True, kw_only=True):
    """A publication started these runs of the agents that subscribe to its topic."""

    kind = "publish"
    runs: tuple[str, ...] = ()


class ChildStarted(CallEntry, frozen=True, kw_only=True):
    """A child run was accepted, or refused with an error."""

    kind = "spawn"
    child: str = ""
    error: Failure | None = None


class ChildEnded(CallEntry, frozen=True, kw_only=True):
    """A child run ended, with a result or an error."""

    kind = "result"
    child: str
    result: Payload | None = None
    error: Failure | None = None


class QuestionAsked(CallEntry, frozen=True, kw_only=True):
    """A question waits for a human; the call ends with :class:`QuestionAnswered`."""

    kind = "ask"
    question: Payload
    due_ms: int | None = None


class QuestionAnswered(CallEntry, frozen=True, kw_only=True):
    """A human answered, or the time was up (``message`` is ``None``)."""

    kind = "ask"
    message: int | None = None
    body: Payload = NULL
    sender: str = ""


class StateRead(CallEntry, frozen=True, kw_only=True):
    """The first read of a key of the session's state (``value`` is ``None`` where it had none)."""

    kind = "state.get"
    value: Payload | None = None


class StateChanged(CallEntry, frozen=True, kw_only=True):
    """A key of the session's state was set, or deleted where ``value`` is ``None``."""

    kind = "state.set"
    value: Payload | None = None


class PatchApplied(Entry, frozen=True, kw_only=True):
    """``run.patched(name)`` answered yes here."""

    name: str


AnyEntry = (
    RunStarted
    | RunForked
    | RunRecovered
    | RunMigrated
    | RunParked
    | CancelRequested
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunBlocked
    | RunUnblocked
    | StepCompleted
    | StepRetried
    | StepFailed
    | Slept
    | TimerFired
    | MessageReceived
    | MessageSent
    | Published
    | ChildStarted
    | ChildEnded
    | QuestionAsked
    | QuestionAnswered
    | StateRead
    | StateChanged
    | ActionIntended
    | ActionHeld
    | ActionDoubted
    | ActionDecided
    | ActionEnded
    | ToolsPinned
    | ProgramStarted
    | ProgramExited
    | ProgramSuspended
    | ProgramEnded
    | PatchApplied
)

ENTRY_TYPES: tuple[type[Entry], ...] = AnyEntry.__args__
ENDINGS = (RunCompleted, RunFailed, RunCancelled)
NOTES = (  # about a call that stays open
    StepRetried,
    QuestionAsked,
    ActionIntended,
    ActionHeld,
    ActionDoubted,
    ActionDecided,
    ProgramStarted,
    ProgramExited,
    ProgramSuspended,
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


def encode_entry(entry: Entry) -> bytes:
    """The entry as one JSON object."""
    return _encoder.encode(entry)


def decode_entry(body: bytes) -> AnyEntry:
    """The entry that :func:`encode_entry` wrote.

    Raises:
        msgspec.ValidationError: ``body`` is not an entry of this or an earlier version.
    """
    return _decoder.decode(body)


def payloads(entry: Entry) -> tuple[Payload, ...]:
    """The payloads that an entry carries, for stores that keep large ones as blobs."""
    found = (
        getattr(entry, name, None) for name in ("input", "result", "body", "question", "value", "request")
    )
    return tuple(item for item in found if isinstance(item, Payload))
