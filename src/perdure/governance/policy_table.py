"""Table tests of policies: who wants to do what, and what must come of it, in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.principals import Principal
from perdure.core.verdicts import Verdict
from perdure.governance.policy import PolicyRequest, PolicySet
from perdure.governance.policy_errors import PolicyInvalidError

UNJUDGED = frozenset({"policy-tool-unknown", "policy-error"})  # codes of a denial that no policy meant


class PolicyCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of a table.

    Attributes:
        name: what it shows.
        agent: who acts.
        roles: of the agent.
        user: on whose behalf; its ``groups``.
        service: on whose behalf, if it is a service; its ``groups``.
        groups: of the user or service.
        through: agents between the acting one and the user, the nearest first.
        tool: what it wants to use; or ``model``.
        model: the model that it wants to ask.
        arguments: of the tool.
        risk: the tier of the agent.
        labels: what the arguments carry.
        sources: where they come from.
        confidence: in percent.
        at_ms: when, in milliseconds of the epoch.
        approved: whether it was held and is judged again.
        budget_left_usd_micros: what is left of a budget of money, in millionths of a US dollar.
        expect: ``allow``, ``hold`` or ``deny``.
        asks: for ``hold``, the roles that must sign.
        rules: the policies that decide.
        code: that of a reason. A request that could not be judged at all (an unknown tool, arguments that do not fit, a
            condition that fails) is denied too; only a row that names that code here is met by it.
    """

    name: str
    agent: str
    expect: Literal["allow", "hold", "deny"]
    roles: tuple[str, ...] = ()
    user: str = ""
    service: str = ""
    groups: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    tool: str = ""
    model: str = ""
    arguments: dict[str, Any] = {}
    risk: str = "medium"
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    confidence: int | None = None
    at_ms: int = 0
    approved: bool = False
    budget_left_usd_micros: int | None = None
    asks: tuple[str, ...] | None = None
    rules: tuple[str, ...] | None = None
    code: str = ""

    def __post_init__(self) -> None:
        if bool(self.tool) == bool(self.model):
            raise ValueError(f"row `{self.name}` needs either a `tool` or a `model`")
        if self.user and self.service:
            raise ValueError(f"row `{self.name}` has a `user` and a `service`; write two rows")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A row, what came of it, and what is wrong with that; empty if nothing is."""

    case: PolicyCase
    verdict: Verdict
    problem: str


def read_cases(text: str) -> list[PolicyCase]:
    """The rows of a table.

    Raises:
        PolicyInvalidError: it is no list of rows as above.
        DefinitionError: the reader of YAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise DefinitionError("tables of policy tests are YAML; install `pyyaml`") from error
    try:
        # A safe loader, by its events first: of two equal keys it would silently take the second.
        _refuse_twins(yaml.compose(text, Loader=yaml.SafeLoader))
        return msgspec.convert(yaml.safe_load(text), list[PolicyCase])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PolicyInvalidError(f"the table cannot be read: {error}") from error


def _refuse_twins(node: Any) -> None:
    seen: set[int] = set()
    nodes = [node]
    while nodes:
        item = nodes.pop()
        if id(item) in seen or not isinstance(getattr(item, "value", None), list):
            continue
        seen.add(id(item))  # an alias may lead back to where it is
        keys = [pair[0].value for pair in item.value if isinstance(pair, tuple)]
        names = [key for key in keys if isinstance(key, str)]
        if len(names) != len(set(names)):
            twin = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"`{twin}` is given twice, line {item.start_mark.line + 1}")
        for part in item.value:
            nodes += list(part) if isinstance(part, tuple) else [part]


def run_cases(policies: PolicySet, cases: Sequence[PolicyCase]) -> list[CaseResult]:
    """Every row with what comes of it."""
    return [_run(policies, case) for case in cases]


def request_of(case: PolicyCase) -> PolicyRequest:
    """The request of a row."""
    chain = [Principal(kind="agent", name=case.agent, run="test", groups=case.roles)]
    chain += [Principal(kind="agent", name=name) for name in case.through]
    if case.user:
        chain.append(Principal(kind="user", name=case.user, groups=case.groups))
    if case.service:
        chain.append(Principal(kind="service", name=case.service, groups=case.groups))
    return PolicyRequest(
        chain=tuple(chain),
        name=case.model or case.tool,
        is_model=bool(case.model),
        arguments=case.arguments,
        risk=case.risk,
        at_ms=case.at_ms,
        labels=frozenset(case.labels),
        sources=frozenset(case.sources),
        confidence=case.confidence,
        approved=case.approved,
        budget_left_usd_micros=case.budget_left_usd_micros,
    )


def _run(policies: PolicySet, case: PolicyCase) -> CaseResult:
    verdict = policies.decide(request_of(case))
    problems: list[str] = []
    codes = {reason.code for reason in verdict.reasons}
    why = "; ".join(f"{reason.message} ({reason.code})" for reason in verdict.reasons)
    if verdict.kind != case.expect:
        problems.append(f"expected {case.expect}, found {verdict.kind}: {why}")
    elif case.code and case.code not in codes:
        problems.append(f"expected the code `{case.code}`: {why}")
    elif codes & UNJUDGED and case.code not in UNJUDGED:  # a row with a misspelt tool would be met for ever
        problems.append(f"it could not be judged at all: {why}; correct the row, or name the `code`")
    asked = {role for demand in verdict.demands for role in demand.roles}
    if case.asks is not None and asked != set(case.asks):
        problems.append(f"expected to ask {sorted(case.asks)}, asks {sorted(asked)}")
    rules = {reason.rule for reason in verdict.reasons if reason.rule}
    if case.rules is not None and rules != set(case.rules):
        problems.append(f"expected {sorted(case.rules)} to decide, it was {sorted(rules)}")
    return CaseResult(case, verdict, "; ".join(problems))
