"""Authority by Cedar policies: default deny, an error is a denial, and every link of the delegation chain must be allowed.

Policies are Cedar (https://docs.cedarpolicy.com); annotations on the policies that decide say what must be done: ``@hold("role")``
with ``@quorum``, ``@deadline`` and ``@escalate``, and any of ``@sandbox``, ``@redact``, ``@limit``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.core.principals import Chain, Principal
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import HOLD_MS, Demand, Reason, Verdict, deny
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_schema import (
    GROUPS,
    MODEL,
    READ,
    TOOL_CALL,
    WRITE,
    fitted,
    input_of,
    schema_of,
)

OBLIGATIONS = ("sandbox", "redact", "limit")
ANNOTATIONS = frozenset(("id", "hold", "quorum", "deadline", "escalate", "reason", *OBLIGATIONS))
CACHED_MAX = 1_000  # sets of entities: one for each link and tool
DAY_S, HOUR_S = 86_400, 3_600
THURSDAY = 3  # 1970-01-01; Monday is 0
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TYPES = {"agent": "Agent", "user": "User", "service": "Service"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """One action to be judged. Everything but ``arguments`` comes from the runtime.

    Attributes:
        chain: the run, then who it acts for.
        name: the tool, or the model.
        is_model: it is a model request.
        arguments: of the tool.
        risk: the tier of the agent.
        at_ms: the time.
        labels: what the arguments carry, such as ``untrusted``.
        sources: where they come from.
        approved: whether it has been held and is judged again.
        confidence: in percent, if known.
        budget_left_usd_micros: if there is a budget of money.
    """

    chain: Chain
    name: str
    is_model: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    risk: str = "medium"
    at_ms: int = 0
    labels: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    approved: bool = False
    confidence: int | None = None
    budget_left_usd_micros: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy as it was written."""

    id: str
    file: str
    effect: str
    annotations: Mapping[str, str]
    data: Mapping[str, Any]

    @property
    def actions(self) -> frozenset[str] | None:
        """The actions and groups of actions in its scope; ``None`` is any."""
        scope = self.data["action"]
        if scope["op"] == "All":
            return None
        listed = scope.get("entities") or [scope["entity"]]
        return frozenset(item["id"] for item in listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDecision:
    """What the policies say for one link of the chain."""

    principal: Principal
    decision: str
    policies: tuple[str, ...]
    errors: tuple[str, ...]


class PolicySet:
    """Policies that were parsed and fit the tools. Made by :func:`load`."""

    def __init__(
        self, policies: Sequence[Policy], tools: Mapping[str, ToolSpec], schema: Any, digest: str
    ) -> None:
        self.policies = {policy.id: policy for policy in policies}
        self.tools = tools
        self.digest = digest
        self._schema = schema
        self._slices: dict[str, Any] = {}
        self._inputs = {
            name: {"type": "Record", "attributes": input_of(spec)} for name, spec in tools.items()
        }
        self._entities: OrderedDict[tuple[Principal, str], Any] = OrderedDict()

    # -- deciding
    def decide(self, request: PolicyRequest) -> Verdict:
        """The verdict for an action: that of all links of the chain together."""
        return msgspec.structs.replace(self._decided(request), policy=self.digest)

    def _decided(self, request: PolicyRequest) -> Verdict:
        if not request.is_model and request.name not in self.tools:
            return deny("policy-tool-unknown", f"the policies know no tool `{request.name}`")
        try:
            links = self.links(request)
        except ValueError as error:
            return deny("policy-error", f"the arguments of `{request.name}` cannot be judged: {error}")
        reasons: list[Reason] = []
        for link in links:
            if link.decision != "Allow" or link.errors:
                return _denied(link, self.policies)
            reasons += [
                Reason(code="policy-allowed", message=self._told(name), rule=name) for name in link.policies
            ]
        return self._obliged(links, reasons)

    def links(self, request: PolicyRequest) -> list[LinkDecision]:
        """What is decided for each link; the first that is not allowed is the last.

        Raises:
            ValueError: an argument does not fit its type.
        """
        import cedarpy

        action = MODEL if request.is_model else request.name
        context = self._context(request)
        resource = {"type": "Model" if request.is_model else "Tool", "id": request.name}
        found: list[LinkDecision] = []
        for principal in request.chain:
            asked = {
                "principal": {"type": _TYPES[principal.kind], "id": principal.name},
                "action": {"type": "Action", "id": action},
                "resource": resource,
                "context": context,
            }
            answer = cedarpy.is_authorized(
                asked, self._slice(action), self._known(principal, request), self._schema
            )
            diagnostics = answer.diagnostics
            link = LinkDecision(
                principal=principal,
                decision=answer.decision.name,
                policies=tuple(sorted(diagnostics.reasons)),
                errors=tuple(str(error) for error in diagnostics.errors),
            )
            found.append(link)
            if link.decision != "Allow" or link.errors:
                break
        return found

    def _context(self, request: PolicyRequest) -> dict[str, Any]:
        seconds = request.at_ms // 1000
        spec = self.tools.get(request.name)
        governance: dict[str, Any] = {
            "run": request.chain[0].run if request.chain else "",
            "agent": request.chain[0].name if request.chain else "",
            "risk": request.risk,
            "effect": "read" if request.is_model or spec is None else spec.effect,
            "on_behalf_of": [f"{item.kind}:{item.name}" for item in request.chain[1:]],
            "labels": sorted(request.labels),
            "sources": sorted(request.sources),
            "approved": request.approved,
            "time": seconds,
            "hour": seconds % DAY_S // HOUR_S,
            "weekday": (seconds // DAY_S + THURSDAY) % 7,
        }
        if request.confidence is not None:
            governance["confidence"] = request.confidence
        if request.budget_left_usd_micros is not None:
            governance["budget_left_usd_micros"] = request.budget_left_usd_micros
        arguments = {} if request.is_model else fitted(dict(request.arguments), self._inputs[request.name])
        return {"governance": governance, "input": arguments}

    def _slice(self, action: str) -> Any:
        """The policies that can be about an action: fewer are quicker, and the decision is the same."""
        known = self._slices.get(action)
        if known is None:
            known = self._slices[action] = _parsed(
                [item for item in self.policies.values() if self._is_about(item, action)]
            )
        return known

    def _is_about(self, policy: Policy, action: str) -> bool:
        scope = policy.actions
        if scope is None or action in scope:
            return True
        spec = self.tools.get(action)
        if spec is None or action == MODEL:
            return False
        return TOOL_CALL in scope or (READ if spec.effect == "read" else WRITE) in scope

    def _known(self, principal: Principal, request: PolicyRequest) -> Any:
        import cedarpy

        key = (msgspec.structs.replace(principal, run=""), request.name)
        known = self._entities.get(key)
        if known is None:
            known = cedarpy.Entities.from_json_str(
                json.dumps(self._entity_list(principal, request)), schema=self._schema
            )
            self._entities[key] = known
            if len(self._entities) > CACHED_MAX:
                self._entities.popitem(last=False)
        return known

    def _entity_list(self, principal: Principal, request: PolicyRequest) -> list[dict[str, Any]]:
        parent = "Role" if principal.kind == "agent" else "Group"
        uid = {"type": _TYPES[principal.kind], "id": principal.name}
        parents = [{"type": parent, "id": name} for name in principal.groups]
        found: list[dict[str, Any]] = [{"uid": uid, "attrs": {}, "parents": parents}]
        found += [{"uid": item, "attrs": {}, "parents": []} for item in parents]
        spec = self.tools.get(request.name)
        if request.is_model or spec is None:
            found.append({"uid": {"type": "Model", "id": request.name}, "attrs": {}, "parents": []})
        else:
            facts = {"effect": spec.effect, "recovery": spec.recovery, "source": spec.source}
            found.append({"uid": {"type": "Tool", "id": spec.name}, "attrs": facts, "parents": []})
        return found

    # -- obligations
    def _obliged(self, links: Sequence[LinkDecision], reasons: Sequence[Reason]) -> Verdict:
        demands: list[Demand] = []
        held: list[Reason] = []
        obligations: dict[str, str] = {}
        for name in dict.fromkeys(name for link in links for name in link.policies):
            annotations = self.policies[name].annotations
            for key in OBLIGATIONS:
                if key in annotations:
                    obligations[key] = annotations[key]
            if "hold" in annotations:
                demand = demand_of(annotations)
                if demand not in demands:
                    demands.append(demand)
                held.append(Reason(code="policy-hold", message=self._told(name), rule=name))
        if demands:
            return Verdict(kind="hold", reasons=tuple(held), demands=tuple(demands), obligations=obligations)
        return Verdict(kind="allow", reasons=tuple(reasons), obligations=obligations)

    def _told(self, name: str) -> str:
        return self.policies[name].annotations.get("reason") or f"policy `{name}`"


def _denied(link: LinkDecision, policies: Mapping[str, Policy]) -> Verdict:
    who = f"{link.principal.kind} `{link.principal.name}`"
    if link.errors:
        return deny("policy-error", f"the policies could not be asked for {who}: {link.errors[0][:300]}")
    forbidden = [name for name in link.policies if policies[name].effect == "forbid"]
    if not forbidden:
        return deny("policy-none", f"no policy allows it to {who}")
    reasons = tuple(
        Reason(
            code="policy-denied",
            message=policies[name].annotations.get("reason") or f"policy `{name}` forbids it to {who}",
            rule=name,
        )
        for name in forbidden
    )
    return Verdict(kind="deny", reasons=reasons)


def demand_of(annotations: Mapping[str, str]) -> Demand:
    """What the annotations of a policy ask for.

    Raises:
        PolicyInvalidError: a number or a time cannot be read.
    """
    roles = _listed(annotations["hold"]) or ("approver",)
    quorum = annotations.get("quorum", "1")
    if not quorum.isascii() or not quorum.isdigit() or not 1 <= int(quorum) <= 16:
        raise PolicyInvalidError(f"`@quorum({quorum!r})`: expected a number from 1 to 16")
    return Demand(
        roles=roles,
        quorum=int(quorum),
        deadline_ms=_span_ms(annotations["deadline"]) if "deadline" in annotations else HOLD_MS,
        escalation=_listed(annotations.get("escalate", "")),
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _span_ms(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text.strip())
    if found is None:
        raise PolicyInvalidError(f"`@deadline({text!r})`: expected a time such as `30m`, `4h` or `2d`")
    return int(found[1]) * _UNITS[found[2]]


# -- loading
def load(texts: Mapping[str, str], tools: Sequence[ToolSpec]) -> PolicySet:
    """Parse policies and hold them against the tools. All of them, or none.

    Args:
        texts: the content of each file by its name.
        tools: every tool that an agent may have.

    Raises:
        PolicyInvalidError: one cannot be used; the message says where and why.
    """
    import cedarpy

    known = {spec.name: spec for spec in tools}
    reserved = sorted(set(known) & {*GROUPS, MODEL})
    if reserved:
        raise PolicyInvalidError(
            f"a tool is called `{reserved[0]}`, which is a group of actions; give it another name"
        )
    written = schema_of(tools)
    try:
        schema = cedarpy.Schema.from_json_str(json.dumps(written))
    except ValueError as error:
        raise PolicyInvalidError(f"no schema can be made of the tools: {error}") from error
    policies: dict[str, Policy] = {}
    for file in sorted(texts):
        for policy in _read(file, texts[file], schema):
            if policy.id in policies:
                other = policies[policy.id].file
                raise PolicyInvalidError(f"two policies have the id `{policy.id}`, in `{other}` and `{file}`")
            policies[policy.id] = policy
    parts = [[name, texts[name]] for name in sorted(texts)]
    digest = hashlib.sha256(json.dumps([parts, written], sort_keys=True).encode()).hexdigest()
    made = PolicySet(list(policies.values()), known, schema, digest)
    _parsed(list(policies.values()))
    return made


def _read(file: str, text: str, schema: Any) -> list[Policy]:
    import cedarpy

    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise PolicyInvalidError(f"`{file}` cannot be read: {_first_line(error)}", file=file) from error
    if parsed.get("templates"):
        raise PolicyInvalidError(f"`{file}` has a template; write the policy for each principal", file=file)
    order = sorted(parsed["staticPolicies"].items(), key=lambda item: int(item[0].removeprefix("policy")))
    found: list[Policy] = []
    for number, (_, data) in enumerate(order, start=1):
        annotations = {name: value or "" for name, value in data.get("annotations", {}).items()}
        name = annotations.get("id") or f"{file}#{number}"
        if unknown := sorted(set(annotations) - ANNOTATIONS):
            message = (
                f"policy `{name}` of `{file}` has `@{unknown[0]}`; known are {', '.join(sorted(ANNOTATIONS))}"
            )
            raise PolicyInvalidError(message, file=file)
        if "hold" in annotations:
            demand_of(annotations)
        found.append(Policy(id=name, file=file, effect=data["effect"], annotations=annotations, data=data))
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        problem = result.errors[0]
        number = [key for key, _ in order].index(problem.policy_id) if problem.policy_id in dict(order) else 0
        name = found[number].id if found else file
        why = problem.error.replace(f"for policy `{problem.policy_id}`, ", "")
        raise PolicyInvalidError(
            f"policy `{name}` of `{file}` does not fit the tools: {why}", file=file, policy=name
        )
    return found


def _parsed(policies: Sequence[Policy]) -> Any:
    import cedarpy

    static = {policy.id: policy.data for policy in policies}
    return cedarpy.PolicySet.from_json_str(
        json.dumps({"staticPolicies": static, "templates": {}, "templateLinks": []})
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
