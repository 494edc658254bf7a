"""The entries of a journal: what happened in a run, in the past tense, frozen and versioned.

An entry's ``type`` is its class name in JSON. Fields are only ever added, with a default; an entry that must change
its meaning gets a new class, so that journals of every landed version still replay.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from perdure.core.values import NULL, Payload

JOURNAL_VERSION = 2  # written in RunStarted; raised when a class is added that older code cannot read


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something failed: a stable code, the foreign type's name and its message."""

    code: str
    message: str
    type: str = ""


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """An open durable call of a parked run: what it waits for and until when (milliseconds of the epoch)."""

    call: int
    kind: str
    name: str
    digest: str = ""
    due_ms: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, tag_field="type"):
    """One record of a journal at position ``seq`` (1, 2, 3 ...), written at ``at_ms``, never earlier than the last."""

    seq: int
    at_ms: int


class CallEntry(Entry, frozen=True, kw_only=True):
    """The end of durable call number ``call``, made with this ``name`` and input ``digest``."""

    kind: ClassVar[str] = ""
    call: int
    name: str
    digest: str = ""


# -- the life of a run ---------------------------------------------------------------------------
class RunStarted(Entry, frozen=True, kw_only=True):
    """A run was accepted. ``chance`` seeds ``run.random`` and ``run.uuid``; ``version`` pins the agent's code."""

    agent: str
    version: str
    input: Payload
    chance: int
    session: str | None = None
    parent: str | None = None
    deadline_ms: int | None = None
    origin: str | None = None
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


# -- actions ---------------------------------------------------------------------------------------
class ActionIntended(CallEntry, frozen=True, kw_only=True):
    """An action passed every gate and its budget is reserved; from here on it may have been dispatched."""

    kind = "act"
    what: Literal["tool", "model"]
    request: Payload
    recovery: str
    effect: str
    endpoint: str = ""
    attempt: int = 0


class ActionHeld(CallEntry, frozen=True, kw_only=True):
    """An action waits for a decision; nothing was sent."""

    kind = "act"
    what: Literal["tool", "model"]
    request: Payload
    recovery: str
    effect: str
    reason: Failure
    endpoint: str = ""
    attempt: int = 0


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
    """The outcome of an action. ``state`` is ``succeeded``, ``failed``, ``lost`` or ``refused``."""

    kind = "act"
    state: str
    result: Payload | None = None
    error: Failure | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd_micros: int | None = None
    upstream: str = ""
    decided_by: str = ""


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
