"""Authority by Cedar policies: default deny, an error is a denial, and every link of the delegation chain must be allowed.

Policies are Cedar (https://docs.cedarpolicy.com); annotations on the policies that decide say what must be done: ``@hold("role")``
with ``@quorum``, ``@deadline`` and ``@escalate``, and any of ``@sandbox``, ``@redact``, ``@limit``. All policies that decide count: a
permit with ``@hold`` holds, whatever permits beside it say.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.core.principals import Chain, Principal
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import Demand, Reason, Verdict, deny
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_obligations import demand_of, obligations_of
from perdure.governance.policy_reading import Policy, parsed, read
from perdure.governance.policy_reads import key_of, reads_of
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

DECISIONS_MAX = 10_000  # that are remembered: a few hundred bytes each
CACHED_MAX = 1_000  # sets of entities: one for each link and tool
DAY_S, HOUR_S = 86_400, 3_600
THURSDAY = 3  # 1970-01-01; Monday is 0
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
class LinkDecision:
    """What the policies say for one link of the chain."""

    principal: Principal
    decision: str
    policies: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def is_allowed(self) -> bool:
        """Whether it may: Cedar skips a ``forbid`` that fails and allows, so an error is a no."""
        return self.decision == "Allow" and not self.errors


class PolicySet:
    """Policies that were parsed and fit the tools. Made by :func:`load`."""

    def __init__(
        self, policies: Sequence[Policy], tools: Mapping[str, ToolSpec], schema: Any, digest: str
    ) -> None:
        self.policies = {policy.id: policy for policy in policies}
        self.tools = tools
        self.digest = digest
        self.asks_for_budget = any("budget_left_usd_micros" in str(policy.data) for policy in policies)
        self._schema = schema
        self._slices: dict[str, Any] = {}
        self._reads: dict[str, tuple[tuple[str, ...], ...]] = {}
        self._decided_before: dict[Any, LinkDecision] = {}
        self._inputs = {
            name: {"type": "Record", "attributes": input_of(spec)} for name, spec in tools.items()
        }
        self._entities: OrderedDict[tuple[Principal, bool, str], Any] = OrderedDict()

    # -- deciding
    def decide(self, request: PolicyRequest) -> Verdict:
        """The verdict for an action: that of all links of the chain together."""
        return msgspec.structs.replace(self._decided(request), policy=self.digest)

    def _decided(self, request: PolicyRequest) -> Verdict:
        if not request.chain:  # nobody has been allowed anything, and there is nobody to ask for
            return deny("policy-none", "nobody is named who acts")
        if not request.is_model and request.name not in self.tools:
            return deny("policy-tool-unknown", f"the policies know no tool `{request.name}`")
        try:
            links = self.links(request)
        except ValueError as error:
            return deny("policy-error", f"the use of `{request.name}` cannot be judged: {error}")
        reasons: list[Reason] = []
        for link in links:
            if not link.is_allowed:
                return _denied(link, self.policies)
            reasons += [
                Reason(code="policy-allowed", message=self._told(name), rule=name) for name in link.policies
            ]
        return self._obliged(links, reasons)

    def links(self, request: PolicyRequest) -> list[LinkDecision]:
        """What is decided for each link; the first that is not allowed is the last.

        Raises:
            ValueError: there is no such tool, or an argument does not fit its type.
        """
        action = MODEL if request.is_model else request.name
        context = self._context(request)
        key = (request.is_model, request.name, key_of(context, self._reads_of(action)))
        written = ""
        found: list[LinkDecision] = []
        for principal in request.chain:
            who = (principal.kind, principal.name, principal.groups, key)  # whatever run it is
            known = self._decided_before.get(who)
            if known is None:
                written = written or _json(context)
                known = self.ask(principal, request, self.slice_of(action), written)
                self._remember(who, known)
            found.append(known)
            if not known.is_allowed:
                break
        return found

    def _remember(self, key: Any, decision: LinkDecision) -> None:
        if len(self._decided_before) >= DECISIONS_MAX:
            self._decided_before.pop(next(iter(self._decided_before)))  # the oldest
        self._decided_before[key] = decision

    def _reads_of(self, action: str) -> tuple[tuple[str, ...], ...]:
        """What of the context the policies about an action look at."""
        known = self._reads.get(action)
        if known is None:
            about = [policy for policy in self.policies.values() if self.is_about(policy, action)]
            known = self._reads[action] = reads_of(policy.data.get("conditions") for policy in about)
        return known

    def ask(self, principal: Principal, request: PolicyRequest, handle: Any, context: str) -> LinkDecision:
        """What some of the policies say for one link.

        Args:
            principal: the link.
            request: the action.
            handle: the policies, as Cedar's own set.
            context: that of the request, see :meth:`context_of`.

        Raises:
            ValueError: a name cannot be told to Cedar.
        """
        import cedarpy

        is_model = request.is_model
        asked = {
            "principal": {"type": _TYPES[principal.kind], "id": principal.name},
            "action": {"type": "Action", "id": MODEL if is_model else request.name},
            "resource": {"type": "Model" if is_model else "Tool", "id": request.name},
            "context": context,
        }
        answer = cedarpy.is_authorized(asked, handle, self._known(principal, request), self._schema)
        diagnostics = answer.diagnostics
        return LinkDecision(
            principal=principal,
            decision=answer.decision.name,
            policies=tuple(sorted(diagnostics.reasons)),
            errors=tuple(str(error) for error in diagnostics.errors),
        )

    def context_of(self, request: PolicyRequest) -> str:
        """What Cedar is told beside principal, action and resource, as JSON.

        Raises:
            ValueError: there is no such tool, or an argument does not fit its type.
        """
        return _json(self._context(request))

    def _context(self, request: PolicyRequest) -> dict[str, Any]:
        if not request.is_model and request.name not in self.tools:
            raise ValueError(f"there is no tool `{request.name}`")
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

    def slice_of(self, action: str) -> Any:
        """The policies that can be about an action: fewer are quicker, and the decision is the same."""
        known = self._slices.get(action)
        if known is None:
            known = self._slices[action] = parsed(
                [item for item in self.policies.values() if self.is_about(item, action)]
            )
        return known

    def is_about(self, policy: Policy, action: str) -> bool:
        """Whether the scope of a policy has an action, or a group that it is in."""
        scope = policy.actions
        if scope is None or action in scope:
            return True
        spec = self.tools.get(action)
        if spec is None or action == MODEL:
            return False
        return TOOL_CALL in scope or (READ if spec.effect == "read" else WRITE) in scope

    def _known(self, principal: Principal, request: PolicyRequest) -> Any:
        import cedarpy

        # A model may have the name of a tool; what is known of the one must not stand for the other.
        key = (msgspec.structs.replace(principal, run=""), request.is_model, request.name)
        known = self._entities.get(key)
        if known is not None:
            self._entities.move_to_end(key)
        else:
            known = cedarpy.Entities.from_json_str(
                json.dumps(self._entity_list(principal, request)), schema=self._schema
            )
            self._entities[key] = known
            if len(self._entities) > CACHED_MAX:
                self._entities.popitem(last=False)  # the one that was not asked for the longest
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
        deciding = list(dict.fromkeys(name for link in links for name in link.policies))
        obligations = obligations_of(self.policies[name].annotations for name in deciding)
        for name in deciding:
            annotations = self.policies[name].annotations
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


def _json(context: Mapping[str, Any]) -> str:
    return msgspec.json.encode(context).decode()


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
        for policy in read(file, texts[file], schema):
            if policy.id in policies:
                other = policies[policy.id].file
                raise PolicyInvalidError(f"two policies have the id `{policy.id}`, in `{other}` and `{file}`")
            policies[policy.id] = policy
    parts = [[name, texts[name]] for name in sorted(texts)]
    digest = hashlib.sha256(json.dumps([parts, written], sort_keys=True).encode()).hexdigest()
    made = PolicySet(list(policies.values()), known, schema, digest)
    parsed(list(policies.values()))  # whatever Cedar cannot hold is refused now, not when it is asked
    return made
