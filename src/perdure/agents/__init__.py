"""What authors import: Agent, step, Run and the words of their durable calls."""

from perdure.agents.agent import Agent, agent
from perdure.agents.external import external
from perdure.agents.process import process
from perdure.agents.run import Child, Message, Run, current_run
from perdure.agents.step import Step, step
from perdure.agents.tool import FunctionTool, current_use, tool

__all__ = [
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
]
