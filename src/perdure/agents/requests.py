"""Durable calls as values: what a run asks its engine to do and remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from perdure.agents.step import Step
from perdure.core.actions import What
from perdure.ports import Tool

Read = Callable[[bytes | msgspec.Raw], Any]


@dataclass(slots=True, eq=False)
class Request:
    """A durable call. ``kind``, ``name`` and ``digest`` must be the same on replay; ``read`` types its result."""

    kind: ClassVar[str] = ""
    name: str
    digest: str
    read: Read

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return 0


@dataclass(slots=True, eq=False)
class StepCall(Request):
    """Run a step."""

    kind = "step"
    step: Step[..., Any]
    arguments: bytes

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.arguments)


@dataclass(slots=True, eq=False)
class SleepCall(Request):
    """Wait."""

    kind = "sleep"
    ms: int


@dataclass(slots=True, eq=False)
class ReceiveCall(Request):
    """Wait for a message of topic ``name``; ``None`` when ``timeout_ms`` have passed."""

    kind = "receive"
    timeout_ms: int | None


@dataclass(slots=True, eq=False)
class AskCall(Request):
    """Wait for a human's answer."""

    kind = "ask"
    question: bytes
    timeout_ms: int | None

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.question)


@dataclass(slots=True, eq=False)
class SendCall(Request):
    """Put a message of topic ``name`` into the mailbox of run ``to``."""

    kind = "send"
    to: str
    body: bytes

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.body)


@dataclass(slots=True, eq=False)
class PublishCall(Request):
    """Start a run of every agent that subscribes to topic ``name``."""

    kind = "publish"
    body: bytes
    key: str | None

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.body)


@dataclass(slots=True, eq=False)
class SpawnCall(Request):
    """Start a child run of agent ``name``."""

    kind = "spawn"
    input: bytes
    session: str | None
    priority: int
    deadline_ms: int | None

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.input)


@dataclass(slots=True, eq=False)
class ResultCall(Request):
    """Wait for the end of run ``name``, a child."""

    kind = "result"


@dataclass(slots=True, eq=False)
class StateGetCall(Request):
    """Read key ``name`` of the session's state."""

    kind = "state.get"


@dataclass(slots=True, eq=False)
class StateSetCall(Request):
    """Set key ``name`` of the session's state, or delete it (``value`` is ``None``)."""

    kind = "state.set"
    value: bytes | None

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.value or b"")


@dataclass(slots=True, eq=False)
class ActCall(Request):
    """Use tool ``name``, or ask model ``name``, through the gateway. ``arguments`` is JSON: an object, or the body.

    ``tool`` is set where the agent's code has the tool at hand; otherwise the agent's charter has it.
    """

    kind = "act"
    what: What
    arguments: bytes
    endpoint: str = ""
    tool: Tool | None = None
    confidence: int | None = None

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.arguments)


@dataclass(slots=True, eq=False)
class ProgramCall(Request):
    """Run the agent's program until it has a result."""

    kind = "program"
    input: bytes

    @property
    def size_bytes(self) -> int:
        """How large its payload is."""
        return len(self.input)


WAITS = (SleepCall, ReceiveCall, AskCall, ResultCall)
ANSWER_TOPIC = "perdure.answer/"  # followed by the call's number: where answers to questions arrive
