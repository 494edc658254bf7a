"""What authors import: Agent, step, Run and the words of their durable calls."""

from perdure.agents.agent import Agent, agent
from perdure.agents.run import Child, Message, Run, current_run
from perdure.agents.step import Step, step

__all__ = ["Agent", "Child", "Message", "Run", "Step", "agent", "current_run", "step"]
