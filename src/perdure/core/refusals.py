"""Refusals: a rule says no, or not now. Trying again without a change gives the same answer."""

from __future__ import annotations

from perdure.core.failure import PerdureError


class RefusedError(PerdureError):
    """A rule said no; asking again without a change gives the same answer."""

    code = "refused"


class SessionBusyError(RefusedError):
    """The session has an unfinished run and its policy is ``reject``."""

    code = "session-busy"


class BudgetExhaustedError(RefusedError):
    """The run, or a run above it, has used up its budget; nothing was sent."""

    code = "budget-exhausted"


class UnpricedError(RefusedError):
    """The model has no known price and a budget of money is in force, so the cost cannot be checked."""

    code = "model-unpriced"


class ActionDeniedError(RefusedError):
    """A gate denies the action; the reasons have codes of their own."""

    code = "action-denied"


class ApprovalRejectedError(RefusedError):
    """An approver rejected the held action; the message has the reason."""

    code = "approval-rejected"


class ApprovalExpiredError(RefusedError):
    """Nobody approved the held action in time."""

    code = "approval-expired"


class ContainedError(RefusedError):
    """A containment in force does not let the action through."""

    code = "contained"


class UndoConflictError(RefusedError):
    """The world is not as the action left it, so undoing it would destroy somebody else's change."""

    code = "undo-conflict"


class ToolChangedError(RefusedError):
    """A tool's description or schema is not the one that the run began with."""

    code = "tool-changed"


class AddressRefusedError(RefusedError):
    """The address is private, local or otherwise not for agents."""

    code = "address-refused"


class StatementRefusedError(RefusedError):
    """The SQL statement does what the tool does not allow."""

    code = "statement-refused"


class TokenRefusedError(RefusedError):
    """The run token is missing, forged, of another run, or its run's attempt has ended."""

    code = "token-refused"


class DivergedError(RefusedError):
    """A restarted program asked for something else than it did before, and the setting says to stop there."""

    code = "program-diverged"
