"""Perdure: an agent runtime environment. Agents that do not die.

What authors and operators use is exported here; ports and test tools are in ``perdure.ports`` and
``perdure.testing``.
"""

from perdure.agents import (
    Agent,
    Child,
    FunctionTool,
    Message,
    Run,
    Step,
    agent,
    current_run,
    current_use,
    process,
    step,
    tool,
)
from perdure.core.actions import ActionState, Budget
from perdure.core.errors import (
    ActionNotDoneError,
    AgentFailedError,
    AgentUnknownError,
    BlockedError,
    BudgetExhaustedError,
    CorruptError,
    DeadlineExceededError,
    InputInvalidError,
    PerdureError,
    ProgramFailedError,
    RefusedError,
    ReplayError,
    RunCancelledError,
    StepError,
    StepFailedError,
    ToolFailedError,
    UnavailableError,
    UsageError,
)
from perdure.core.limits import Settings
from perdure.core.models import Price, Upstream
from perdure.core.principals import Principal
from perdure.core.records import Status
from perdure.core.tools import Done
from perdure.core.verdicts import Demand, Verdict
from perdure.runtime import RunHandle, Runtime

__version__ = "0.2.0"
__all__ = [
    "ActionNotDoneError",
    "ActionState",
    "Agent",
    "AgentFailedError",
    "AgentUnknownError",
    "BlockedError",
    "Budget",
    "BudgetExhaustedError",
    "Child",
    "CorruptError",
    "DeadlineExceededError",
    "Demand",
    "Done",
    "FunctionTool",
    "InputInvalidError",
    "Message",
    "PerdureError",
    "Price",
    "Principal",
    "ProgramFailedError",
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
    "ToolFailedError",
    "UnavailableError",
    "Upstream",
    "UsageError",
    "Verdict",
    "__version__",
    "agent",
    "current_run",
    "current_use",
    "process",
    "step",
    "tool",
]
