"""Every failure that Perdure reports, in families that say who must act.

Each class has a stable ``code`` and one row in ``docs/errors.md``. Facts are attributes (``error.facts``), not only
text. Control flow that agent code must not swallow derives from ``BaseException``.
"""

from __future__ import annotations

from typing import Any

from perdure.core.failure import PerdureError as PerdureError
from perdure.core.refusals import ActionDeniedError as ActionDeniedError
from perdure.core.refusals import AddressRefusedError as AddressRefusedError
from perdure.core.refusals import ApprovalExpiredError as ApprovalExpiredError
from perdure.core.refusals import ApprovalRejectedError as ApprovalRejectedError
from perdure.core.refusals import BudgetExhaustedError as BudgetExhaustedError
from perdure.core.refusals import ContainedError as ContainedError
from perdure.core.refusals import DivergedError as DivergedError
from perdure.core.refusals import RefusedError as RefusedError
from perdure.core.refusals import SessionBusyError as SessionBusyError
from perdure.core.refusals import StatementRefusedError as StatementRefusedError
from perdure.core.refusals import TokenRefusedError as TokenRefusedError
from perdure.core.refusals import ToolChangedError as ToolChangedError
from perdure.core.refusals import UndoConflictError as UndoConflictError
from perdure.core.refusals import UnpricedError as UnpricedError


# -- the developer must act -------------------------------------------------------------------
class UsageError(PerdureError):
    """The call is wrong and will stay wrong: the developer changes it."""

    code = "usage"


class DefinitionError(UsageError):
    """An agent, step, schedule or setting is defined in a way that cannot work."""

    code = "definition-invalid"


class ResourcesTooLargeError(DefinitionError):
    """A run of an agent asks for more processors or memory than there are."""

    code = "resources-too-large"


class AgentUnknownError(UsageError):
    """No agent of that name is registered with this runtime."""

    code = "agent-unknown"


class RunUnknownError(UsageError):
    """No run has that id."""

    code = "run-unknown"


class InputInvalidError(UsageError):
    """The input does not fit the type hints of the agent or step."""

    code = "input-invalid"


class StepNotPortableError(UsageError):
    """A lambda, closure or bound method was given as a step; it cannot be found again after a restart."""

    code = "step-not-portable"


class PayloadTooLargeError(UsageError):
    """A payload is larger than the setting ``payload_bytes_max``."""

    code = "payload-too-large"


class ForkInvalidError(UsageError):
    """A fork names a position or a change that the journal does not have."""

    code = "fork-invalid"


class QuestionUnknownError(UsageError):
    """No open question of that run has that call number."""

    code = "question-unknown"


class RunEndedError(UsageError):
    """The run has ended, so it takes no message, cancellation or resumption."""

    code = "run-ended"


class DataDirLockedError(UsageError):
    """Another process runs on this data directory; the message names it."""

    code = "data-dir-locked"


class DataDirInvalidError(UsageError):
    """The data directory cannot be used: not writable, not a directory, or of a newer version."""

    code = "data-dir-invalid"


class ToolUnknownError(UsageError):
    """The agent's charter has no tool of that name."""

    code = "tool-unknown"


class ModelUnknownError(UsageError):
    """No upstream offers that model."""

    code = "model-unknown"


class ArgumentsInvalidError(UsageError):
    """The arguments do not fit the tool's JSON Schema."""

    code = "arguments-invalid"


class RequestInvalidError(UsageError):
    """A request to the gateway is not what its protocol asks for: not JSON, a missing field, too large."""

    code = "request-invalid"


class ActionUnknownError(UsageError):
    """No action has that id, or it is not in the state that the request needs."""

    code = "action-unknown"


class SecretUnknownError(UsageError):
    """A reference names a secret that is nowhere to be found."""

    code = "secret-unknown"


class OutsideRunError(UsageError):
    """A durable call was made by code that is not running inside the run."""

    code = "outside-run"


# -- something outside; retried ----------------------------------------------------------------
class UnavailableError(PerdureError):
    """Something outside did not answer. When a store raises it the outcome of the write is unknown."""

    code = "unavailable"


class StoreUnavailableError(UnavailableError):
    """The store did not confirm the write: it may or may not be durable."""

    code = "store-unavailable"


class StoreFullError(UnavailableError):
    """The disk is full: the write was not made."""

    code = "store-full"


class StoreReadOnlyError(UnavailableError):
    """The database or its folder cannot be written."""

    code = "store-read-only"


class SandboxUnavailableError(UnavailableError):
    """The wall that was asked for cannot be had here; nothing was executed, for a weaker one is never put in its place."""

    code = "sandbox-unavailable"


class DrainingError(UnavailableError):
    """The runtime is stopping and takes no new run."""

    code = "runtime-draining"


class StepTimeoutError(UnavailableError):
    """One attempt of a step took longer than its ``timeout``."""

    code = "step-timed-out"


class UpstreamError(UnavailableError):
    """A model's upstream did not answer, or answered with 429 or 5xx: as if the call had not been made."""

    code = "upstream-unavailable"


class UpstreamInvalidError(UnavailableError):
    """A model's upstream answered with something that its protocol does not allow."""

    code = "upstream-invalid"


class ToolUnreachableError(UnavailableError):
    """The tool could not be reached: nothing was sent."""

    code = "tool-unreachable"


class ToolDoubtfulError(UnavailableError):
    """The request was sent and no answer came: what it did is not known."""

    code = "action-doubtful"


class FenceError(UnavailableError):
    """The write carries the fence of a lease that was lost; another worker owns the run."""

    code = "fence-stale"


# -- the agent's own code ----------------------------------------------------------------------
class StepError(PerdureError):
    """The agent's own code failed."""

    code = "step-error"


class StepFailedError(StepError):
    """A step raised on its last attempt; ``facts`` has the step, attempts, type and message."""

    code = "step-failed"


class ToolFailedError(StepError):
    """A tool said that it failed; ``facts`` has the tool and what it said."""

    code = "tool-failed"


class ActionNotDoneError(StepError):
    """A doubtful action was decided: it did not happen."""

    code = "action-not-done"


class ProgramFailedError(StepError):
    """A hosted program ended with an error more often than its policy allows."""

    code = "program-failed"


class ResultInvalidError(StepError):
    """A result cannot be serialised or does not fit the type hint of the step or agent."""

    code = "result-invalid"


class AgentFailedError(StepError):
    """The agent raised; ``facts`` has the type and the message."""

    code = "agent-failed"


class RunCancelledError(StepError):
    """The run was cancelled; ``facts`` has the reason."""

    code = "run-cancelled"


class DeadlineExceededError(StepError):
    """The run did not finish before its deadline."""

    code = "deadline-exceeded"


# -- an operator must act; the run is blocked ----------------------------------------------------
class BlockedError(PerdureError):
    """The run is blocked until an operator decides; nothing recorded is lost."""

    code = "run-blocked"


class ReplayError(BlockedError):
    """On replay the agent made another call than its journal has; ``facts`` has expected and found."""

    code = "replay-mismatch"


class AgentChangedError(ReplayError):
    """The run was started by another version of the agent's code."""

    code = "agent-changed"


class QuarantinedError(BlockedError):
    """The run was in flight at several crashes of its worker in a row and is kept apart."""

    code = "run-quarantined"


class AwaitNotDurableError(BlockedError):
    """The agent waits for something that no entry can end, so nothing could ever wake it."""

    code = "await-not-durable"


class CorruptError(BlockedError):
    """Stored data is damaged."""

    code = "store-corrupt"


class JournalCorruptError(CorruptError):
    """An entry of the run's journal does not have the checksum it was written with."""

    code = "journal-corrupt"


class AuditInvalidError(CorruptError):
    """A record, proof, checkpoint or sealed detail of the audit log is not what was written or signed."""

    code = "audit-invalid"


class BrokenInvariantError(BlockedError):
    """A rule that must always hold was found broken: a bug in Perdure."""

    code = "invariant-broken"


def step_failed(step: str, attempt: int, kind: str, message: str) -> StepFailedError:
    """What an agent gets for a foreign exception of a step's last attempt: it says whose it was."""
    text = f"step `{step}` failed on attempt {attempt}: {kind}: {message}"
    return StepFailedError(text, step=step, attempts=attempt, type=kind)


# -- control flow --------------------------------------------------------------------------------
class Suspended(BaseException):
    """Raised by durable calls of a run that was evicted from memory, so that no ``finally`` acts on the world."""


def invariant(condition: object, message: str, **facts: Any) -> None:
    """Raise :class:`BrokenInvariantError` unless ``condition`` holds (never stripped, unlike ``assert``)."""
    if not condition:
        raise BrokenInvariantError(message, **facts)


def error_for(code: str) -> type[PerdureError]:
    """The class of the error with this stable code; :class:`PerdureError` for a code of another version."""
    stack: list[type[PerdureError]] = [PerdureError]
    while stack:
        kind = stack.pop()
        if kind.code == code:
            return kind
        stack.extend(kind.__subclasses__())
    return PerdureError
