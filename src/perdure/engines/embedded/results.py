"""What an agent gets for the end of a call: a value, or an exception to raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from perdure.agents.requests import Read
from perdure.agents.run import Message
from perdure.core import entries as e
from perdure.core.errors import ToolFailedError, error_for, step_failed
from perdure.core.values import Payload
from perdure.gateway.outputs import read_exchange, read_kept

Fetch = Callable[[Payload], bytes]


def value_of(entry: e.CallEntry, read: Read, fetch: Fetch) -> Any:
    """A value, or an exception to raise.

    Args:
        entry: the end of the call.
        read: reads JSON into the type that the call asked for.
        fetch: the JSON of a payload.
    """
    match entry:
        case e.StepCompleted(result=result):
            return read(result.inline if not result.blob else fetch(result))
        case e.StepFailed():
            return _failed_step(entry)
        case e.MessageReceived(message=message):
            if message is None:
                return None
            return Message(entry.name, read(fetch(entry.body)), entry.sender, entry.sent_ms)
        case e.QuestionAnswered(message=message):
            return None if message is None else read(fetch(entry.body))
        case e.ChildEnded() | e.ChildStarted():
            return _of_child(entry, read, fetch)
        case e.MessageSent(delivered=delivered):
            return delivered
        case e.Published(runs=runs):
            return list(runs)
        case e.StateRead(value=value):
            return None if value is None else fetch(value)
        case e.ActionEnded() | e.ProgramEnded():
            return _of_action(entry, fetch)
        case _:
            return None


def _of_child(entry: e.ChildEnded | e.ChildStarted, read: Read, fetch: Fetch) -> Any:
    if isinstance(entry, e.ChildStarted):
        return entry.child if entry.error is None else raised(entry.error)
    if entry.error is not None:
        return raised(entry.error, child=entry.child)
    return None if entry.result is None else read(fetch(entry.result))


def _of_action(entry: e.ActionEnded | e.ProgramEnded, fetch: Fetch) -> Any:
    if entry.error is not None:
        return raised(entry.error)
    if entry.result is None:
        return None
    data = fetch(entry.result)
    if isinstance(entry, e.ProgramEnded):
        return msgspec.json.decode(data)
    if entry.upstream:
        return msgspec.json.decode(read_exchange(data).body)
    kept = read_kept(data)
    if kept.is_error:
        return ToolFailedError(
            f"tool `{entry.name}` failed: {kept.value}", tool=entry.name, output=kept.value
        )
    return kept.value


def _failed_step(entry: e.StepFailed) -> Exception:
    error = entry.error
    if error.code == "step-failed":  # a foreign exception
        return step_failed(entry.name, entry.attempt, error.type, error.message)
    return raised(error, step=entry.name, attempts=entry.attempt)


def raised(failure: e.Failure, **facts: Any) -> Exception:
    """The exception for a recorded failure."""
    return error_for(failure.code)(failure.message, type=failure.type, **facts)
