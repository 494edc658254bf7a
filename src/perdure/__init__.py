"""Perdure: an agent runtime environment. Agents that do not die.

What authors and operators use is exported here; ports and test tools are in ``perdure.ports`` and
``perdure.testing``.
"""

from perdure.agents import Agent, Child, Message, Run, Step, agent, current_run, step
from perdure.core.errors import (
    AgentFailedError,
    AgentUnknownError,
    BlockedError,
    CorruptError,
    DeadlineExceededError,
    InputInvalidError,
    PerdureError,
    RefusedError,
    ReplayError,
    RunCancelledError,
    StepError,
    StepFailedError,
    UnavailableError,
    UsageError,
)
from perdure.core.limits import Settings
from perdure.core.records import Status
from perdure.runtime import RunHandle, Runtime

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "AgentFailedError",
    "AgentUnknownError",
    "BlockedError",
    "Child",
    "CorruptError",
    "DeadlineExceededError",
    "InputInvalidError",
    "Message",
    "PerdureError",
    "RefusedError",
    "ReplayError",
    "Run",
    "RunCancelledError",
    "RunHandle",
    "Runtime",
    "Settings",
    "Status",
    "Step",
    "StepError",
    "StepFailedError",
    "UnavailableError",
    "UsageError",
    "__version__",
    "agent",
    "current_run",
    "step",
]
