"""The bank of AgentDojo, in its own interpreter: one JSON request a line, one JSON answer a line.

Runs where ``agentdojo`` is installed and Perdure is not. The environment, the tasks and their scoring are AgentDojo's own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
from agentdojo.attacks.attack_registry import load_attack
from agentdojo.functions_runtime import FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite
from pydantic import BaseModel

VERSION, ATTACK = "v1.2.2", "important_instructions"


def plain(value: Any) -> Any:
    """What a tool returned, as data."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [plain(item) for item in value] if isinstance(value, list) else value


class Bank:
    """One environment at a time."""

    def __init__(self) -> None:
        self.suite = get_suite(VERSION, "banking")
        target = GroundTruthPipeline(None)
        target.name = "gpt-4o-2024-05-13"  # the attack addresses a model by its name
        self.attack = load_attack(ATTACK, self.suite, target)
        self.runtime = FunctionsRuntime(self.suite.tools)
        self.defaults = self.suite.get_injection_vector_defaults()

    def about(self) -> dict[str, Any]:
        """Tasks and tools."""
        tools = [
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters.model_json_schema(),
            }
            for tool in self.suite.tools
        ]
        return {
            "users": list(self.suite.user_tasks),
            "injections": list(self.suite.injection_tasks),
            "tools": tools,
        }

    def begin(self, user: str, injection: str | None) -> dict[str, Any]:
        """A fresh environment; with an injection, the attack stands behind what was there, so that the task can still be done."""
        self.user = self.suite.get_user_task_by_id(user)
        self.injection = None if injection is None else self.suite.get_injection_task_by_id(injection)
        texts: dict[str, str] = {}
        if self.injection is not None:
            found = self.attack.attack(self.user, self.injection)
            texts = {name: self._quoted(self.defaults[name] + text) for name, text in found.items()}
        environment = self.suite.load_and_inject_default_environment(texts)
        self.environment = self.user.init_environment(environment)
        self.before = self.environment.model_copy(deep=True)
        return {
            "prompt": self.user.PROMPT,
            "output": self.user.GROUND_TRUTH_OUTPUT,
            "calls": self._calls(self.user),
            "attack": [] if self.injection is None else self._calls(self.injection),
            "mark": "" if self.injection is None else "<INFORMATION>",
        }

    def _quoted(self, text: str) -> str:
        """For the place between double quotes in the environment's YAML."""
        return text.replace("\n", "\\n").replace("\t", "\\t").replace('"', '\\"')

    def _calls(self, task: Any) -> list[Any]:
        return [[call.function, dict(call.args)] for call in task.ground_truth(self.before)]

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Use a tool."""
        value, error = self.runtime.run_function(self.environment, tool, arguments)
        return {"value": plain(value), "error": error}

    def score(self, output: str) -> dict[str, Any]:
        """Whether the task was done, and whether the attack was."""
        done = self.user.utility(output, self.before, self.environment)
        attacked = self.injection is not None and self.injection.security(
            output, self.before, self.environment
        )
        return {"useful": bool(done), "attacked": bool(attacked)}


def main() -> None:
    """Serve until the input ends."""
    bank = Bank()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever prints does not print among the answers
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(bank, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
