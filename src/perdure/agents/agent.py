"""Definitions of agents: a name, code or a model's configuration, and limits."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from perdure.agents.codec import Codec, Parameters, hints_of
from perdure.agents.program import Program
from perdure.core.actions import Budget
from perdure.core.errors import DefinitionError
from perdure.core.ids import checked_name, checked_topic
from perdure.core.principals import RISKS, Risk
from perdure.core.records import Conflict
from perdure.core.resources import Resources
from perdure.core.tools import AGENTS, ToolSpec
from perdure.governance.risk import RiskIndex, declared, risk_of, stricter

Handler = Callable[..., Awaitable[Any]]
CONFLICTS: tuple[Conflict, ...] = ("enqueue", "reject", "interrupt")


class Agent:
    """A definition from which runs are made.

    Give either a coroutine function (better: use ``@agent``) or a ``model``: then the agent is a model loop on
    Pydantic AI whose model requests and tool calls are durable (needs ``perdure[pydantic-ai]``).

    Args:
        name: how runs are started by; 1 to 200 characters.
        handler: ``async def handler(run, ...)``.
        model: a Pydantic AI model or its name, such as ``openai:gpt-5``.
        instructions: the system prompt of a model agent.
        tools: what the agent may use: tools, names of toolsets (``github``, or ``github.create_*`` for some of its
            tools); for a model agent also functions and steps.
        output: what a model agent returns.
        version: pins the code; by default a digest of the handler's source.
        concurrency: runs of this agent that execute at once in a process; ``None`` is without limit of its own.
        conflict: a second run of a busy session waits (``enqueue``), is refused (``reject``) or cancels the
            first (``interrupt``).
        subscribes: topics; each publication starts a run with the published body as its input.
        budget: what each run may use, with everything that it starts.
        resources: what must be free for a run to start, and what its sandboxes or programs may take.
        program: the command of a hosted program (better: use ``process``).
        command: of the worker program that has its code (better: use ``external``).
        roles: what policies may call it by, such as ``clerk``.
        agency: what it may do on its own: one word or 0 to 3 points for each of the twelve criteria of
            ``perdure.governance.risk.CRITERIA``, by fact. What is not said counts the most.
        risk: its tier, for policies, for holds and for how long an external judge may take; by default the one that
            follows from ``agency`` (``medium`` without). A lower one than that does not count.

    Raises:
        DefinitionError: this cannot work; the message says why.
    """

    def __init__(
        self,
        name: str,
        *,
        handler: Handler | None = None,
        model: Any = None,
        instructions: str = "",
        tools: Sequence[Any] = (),
        output: Any = str,
        version: str | None = None,
        concurrency: int | None = None,
        conflict: Conflict = "enqueue",
        subscribes: Sequence[str] = (),
        budget: Budget | None = None,
        resources: Resources | None = None,
        program: Program | None = None,
        command: Sequence[str] | None = None,
        roles: Sequence[str] = (),
        agency: Mapping[str, str | int] | None = None,
        risk: Risk | None = None,
    ) -> None:
        self.name = checked_name("the name of an agent", name)
        if (handler is None) == (model is None):
            raise DefinitionError(f"agent `{name}` needs either a handler or a model")
        self.budget = budget
        self.resources = resources
        self.program = program
        self.command = None if command is None else tuple(command)
        self.roles = tuple(checked_name("a role", role) for role in roles)
        if risk not in (None, *RISKS):
            raise DefinitionError(f"agent `{name}` has `risk={risk!r}`, expected one of {RISKS}")
        self.risk_index = None if agency is None else _index(name, agency, tools)
        least = None if self.risk_index is None else self.risk_index.tier
        self.risk: Risk = stricter(risk or "low", least) if least else risk or "medium"
        if concurrency is not None and concurrency < 1:
            raise DefinitionError(f"agent `{name}` has `concurrency={concurrency}`, expected 1 or more")
        if conflict not in CONFLICTS:
            raise DefinitionError(f"agent `{name}` has `conflict={conflict!r}`, expected one of {CONFLICTS}")
        self.model = model
        self.instructions = instructions
        self.tools = tuple(tools)
        self.output = output
        self.concurrency = concurrency
        self.conflict: Conflict = conflict
        self.subscribes = tuple(checked_topic(topic) for topic in subscribes)
        self.handler: Handler | None = None
        self._pinned = version
        if handler is not None:
            self.bind(handler)

    def bind(self, handler: Handler, *, version: str | None = None) -> None:
        """Give the definition its code (the runtime does it for model agents)."""
        if not inspect.iscoroutinefunction(handler):
            raise DefinitionError(f"agent `{self.name}` must be an `async def` function")
        if not inspect.signature(handler).parameters:
            raise DefinitionError(f"agent `{self.name}` must take the run as its first parameter")
        what = f"agent `{self.name}`"
        self.parameters = Parameters(handler, what, skip=1)
        self.result = Codec(hints_of(handler, skip=1).get("return", Any), f"the result of {what}")
        self.version = self._pinned or version or version_of(handler)
        self.handler = handler

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"


def agent(
    name: str,
    *,
    version: str | None = None,
    concurrency: int | None = None,
    conflict: Literal["enqueue", "reject", "interrupt"] = "enqueue",
    subscribes: Sequence[str] = (),
    tools: Sequence[Any] = (),
    budget: Budget | None = None,
    resources: Resources | None = None,
    roles: Sequence[str] = (),
    agency: Mapping[str, str | int] | None = None,
    risk: Risk | None = None,
) -> Callable[[Handler], Agent]:
    """Make ``async def handler(run, ...)`` an agent; the arguments are those of :class:`Agent`."""

    def define(handler: Handler) -> Agent:
        made = Agent(
            name,
            handler=handler,
            version=version,
            concurrency=concurrency,
            conflict=conflict,
            subscribes=subscribes,
            tools=tools,
            budget=budget,
            resources=resources,
            roles=roles,
            agency=agency,
            risk=risk,
        )
        made.__doc__ = handler.__doc__
        return made

    return define


def _index(name: str, agency: Mapping[str, str | int], tools: Sequence[Any]) -> RiskIndex:
    """The index of what was declared and of the tools that are known here; those of toolsets are not."""
    specs = [getattr(item, "spec", None) for item in tools]
    own = {spec.name: spec.effect for spec in specs if isinstance(spec, ToolSpec)}
    agents = sum(isinstance(item, str) and item.partition(".")[0] == AGENTS for item in tools)
    try:
        return risk_of(declared(agency, own, is_whole=len(own) == len(tools), agents=agents))
    except DefinitionError as error:
        raise DefinitionError(f"the agency of agent `{name}`: {error.message}", **error.facts) from error


def version_of(function: Callable[..., Any]) -> str:
    """A digest of a function's source that layout, comments and docstrings do not change."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        code = function.__code__
        return hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()[:12]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = []  # limits may change under a waiting run; code may not
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]
