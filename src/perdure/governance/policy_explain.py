"""Why policies decide as they do: for each link of the chain what counted, and which permits would have, had a condition been true.

For people, not for deciding: it asks Cedar three times for each link, and goes on after a link that is not allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perdure.core.principals import Principal
from perdure.core.verdicts import Verdict
from perdure.governance.policy import PolicyRequest, PolicySet
from perdure.governance.policy_reading import Policy, parsed
from perdure.governance.policy_schema import MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """One policy: its id, where it is written, and what it says without its comments."""

    id: str
    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkExplained:
    """What counted for one link of the chain.

    Attributes:
        principal: the link.
        is_allowed: whether the policies allow it.
        decision: what Cedar says: ``Allow``, ``Deny``, or ``NoDecision`` when it could not be asked.
        deciding: the policies that decided; none if nothing allows it.
        near: permits whose scope fits and whose condition did not hold.
        errors: what failed; with one the answer is no.
    """

    principal: Principal
    is_allowed: bool
    decision: str
    deciding: tuple[PolicyText, ...]
    near: tuple[PolicyText, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The verdict, and each link of the chain; no links if nothing could be asked, the verdict then says why."""

    verdict: Verdict
    links: tuple[LinkExplained, ...]


def explain(policies: PolicySet, request: PolicyRequest) -> Explanation:
    """Why an action is decided as it is. Raises nothing: what cannot be asked is in the verdict."""
    verdict = policies.decide(request)
    action = MODEL if request.is_model else request.name
    about = [policy for policy in policies.policies.values() if policies.is_about(policy, action)]
    permits = [policy for policy in about if policy.effect == "permit"]
    handles = (parsed(about), parsed(permits), parsed([_scope_of(policy) for policy in permits]))
    try:
        context = policies.context_of(request)
        links = tuple(_link(policies, request, principal, handles, context) for principal in request.chain)
    except ValueError:
        links = ()
    return Explanation(verdict=verdict, links=links)


def _link(
    policies: PolicySet, request: PolicyRequest, principal: Principal, handles: Sequence[Any], context: str
) -> LinkExplained:
    answer, permitted, fitting = (policies.ask(principal, request, handle, context) for handle in handles)
    near = sorted(set(fitting.policies) - set(permitted.policies))
    return LinkExplained(
        principal=principal,
        is_allowed=answer.is_allowed,
        decision=answer.decision,
        deciding=tuple(_told(policies.policies[name]) for name in answer.policies),
        near=tuple(_told(policies.policies[name]) for name in near),
        errors=answer.errors,
    )


def _scope_of(policy: Policy) -> Policy:
    """A policy without its conditions: it counts wherever its scope fits."""
    data = {**policy.data, "conditions": []}
    return Policy(
        id=policy.id, file=policy.file, line=policy.line, effect=policy.effect, annotations=policy.annotations, data=data
    )  # fmt: skip


def _told(policy: Policy) -> PolicyText:
    return PolicyText(id=policy.id, file=policy.file, line=policy.line, text=policy.text)
