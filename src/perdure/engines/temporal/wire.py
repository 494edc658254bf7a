"""What crosses the wire to Temporal: names, headers, the size limit, and errors in both directions."""

from __future__ import annotations

from dataclasses import dataclass

from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from perdure.core.errors import (
    PayloadTooLargeError,
    PerdureError,
    ReplayError,
    StepError,
    error_for,
)
from perdure.core.limits import ERROR_TEXT_MAX

WORKFLOW = "perdure.run"
STEP = "perdure.step"
MESSAGE = "perdure.message"
QUESTIONS = "perdure.questions"
ANSWER = "perdure.answer"
NONDETERMINISM = "[TMPRL1100]"  # how Temporal's messages about a replay that does not match begin
PAYLOAD_BYTES_MAX = 1_900_000  # a cluster refuses single payloads over 2 MB; the rest is for headers


@dataclass(frozen=True, slots=True)
class Head:
    """How a run begins, beside its input. ``lease_ms``: how long a worker that runs a step may be silent."""

    agent: str
    deadline_ms: int | None = None
    lease_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class MailHead:
    """What is known of a message beside its body; a second one with the same ``key`` is dropped."""

    topic: str
    sender: str = ""
    key: str | None = None


def bounded(data: bytes) -> bytes:
    """``data`` if a cluster takes it.

    Raises:
        PayloadTooLargeError: it is over 1.9 MB.
    """
    if len(data) > PAYLOAD_BYTES_MAX:
        message = (
            f"a payload of {len(data)} bytes is over the {PAYLOAD_BYTES_MAX} that the Temporal engine takes; "
            "store it elsewhere and pass a reference"
        )
        raise PayloadTooLargeError(message, size_bytes=len(data), limit_bytes=PAYLOAD_BYTES_MAX)
    return data


def to_failure(error: BaseException, code: str, *, is_final: bool = True) -> ApplicationError:
    """An exception as Temporal keeps it: our code as its type, then the foreign type and whether to try again."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, PerdureError):
        code, text = error.code, error.message
    else:
        text = str(error) or name
    return ApplicationError(text[:ERROR_TEXT_MAX], name, is_final, type=code, non_retryable=True)


def from_failure(cause: BaseException | None, code: str, **facts: object) -> PerdureError:
    """The error of ours for what Temporal gives as the cause of a failed step (``step-failed``) or run."""
    if isinstance(cause, CancelledError):
        return error_for("run-cancelled")(cause.message or "cancelled", **facts)
    if isinstance(cause, TerminatedError):
        return error_for("run-cancelled")(f"terminated: {cause.message}", **facts)
    if isinstance(cause, TemporalTimeoutError):
        return error_for("deadline-exceeded" if code == "agent-failed" else code)(cause.message, **facts)
    if not isinstance(cause, ApplicationError):
        return error_for(code)(str(cause), **facts)
    found = error_for(cause.type or code)
    if cause.message.startswith(NONDETERMINISM):
        found = ReplayError
    elif found is PerdureError or (code == "agent-failed" and not issubclass(found, StepError | ReplayError)):
        found = error_for(code)
    name = cause.details[0] if cause.details else cause.type or ""
    return found(cause.message, type=name, **facts)
