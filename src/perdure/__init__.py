"""Perdure: an agent runtime environment. Agents that do not die.

What authors and operators use is exported here; ports and test tools are in ``perdure.ports`` and
``perdure.testing``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        external,
        process,
        step,
        tool,
    )
    from perdure.agents.relabel import declassify, endorse
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
    from perdure.core.flows import Sink, ToolFlow
    from perdure.core.labels import Label
    from perdure.core.limits import Settings
    from perdure.core.models import Price, Upstream
    from perdure.core.principals import Principal
    from perdure.core.records import Status
    from perdure.core.resources import Limits, Requests, Resources
    from perdure.core.tools import Done
    from perdure.core.verdicts import Demand, Verdict
    from perdure.core.workers import WorkerRules
    from perdure.runtime import RunHandle, Runtime

# Where each name is: imported when it is first asked for, so that `perdure --help` imports nothing.
_WHERE = {
    "perdure.agents": (
        "Agent",
        "Child",
        "FunctionTool",
        "Message",
        "Run",
        "Step",
        "agent",
        "current_run",
        "current_use",
        "external",
        "process",
        "step",
        "tool",
    ),
    "perdure.agents.relabel": (
        "declassify",
        "endorse",
    ),
    "perdure.core.actions": (
        "ActionState",
        "Budget",
    ),
    "perdure.core.errors": (
        "ActionNotDoneError",
        "AgentFailedError",
        "AgentUnknownError",
        "BlockedError",
        "BudgetExhaustedError",
        "CorruptError",
        "DeadlineExceededError",
        "InputInvalidError",
        "PerdureError",
        "ProgramFailedError",
        "RefusedError",
        "ReplayError",
        "RunCancelledError",
        "StepError",
        "StepFailedError",
        "ToolFailedError",
        "UnavailableError",
        "UsageError",
    ),
    "perdure.core.flows": (
        "Sink",
        "ToolFlow",
    ),
    "perdure.core.labels": ("Label",),
    "perdure.core.limits": ("Settings",),
    "perdure.core.models": (
        "Price",
        "Upstream",
    ),
    "perdure.core.principals": ("Principal",),
    "perdure.core.records": ("Status",),
    "perdure.core.resources": (
        "Limits",
        "Requests",
        "Resources",
    ),
    "perdure.core.tools": ("Done",),
    "perdure.core.verdicts": (
        "Demand",
        "Verdict",
    ),
    "perdure.core.workers": ("WorkerRules",),
    "perdure.runtime": (
        "RunHandle",
        "Runtime",
    ),
}

__version__ = "0.4.0"
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
    "Label",
    "Limits",
    "Message",
    "PerdureError",
    "Price",
    "Principal",
    "ProgramFailedError",
    "RefusedError",
    "ReplayError",
    "Requests",
    "Resources",
    "Run",
    "RunCancelledError",
    "RunHandle",
    "Runtime",
    "Settings",
    "Sink",
    "Status",
    "Step",
    "StepError",
    "StepFailedError",
    "ToolFailedError",
    "ToolFlow",
    "UnavailableError",
    "Upstream",
    "UsageError",
    "Verdict",
    "WorkerRules",
    "__version__",
    "agent",
    "current_run",
    "current_use",
    "declassify",
    "endorse",
    "external",
    "process",
    "step",
    "tool",
]


def __getattr__(name: str) -> Any:
    """A name that is exported, imported now."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module `perdure` has no `{name}`")


def __dir__() -> list[str]:
    return __all__
