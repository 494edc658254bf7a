"""Lint: policies that are legal and probably not what somebody meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from perdure.governance.policy import PolicySet
from perdure.governance.policy_obligations import OBLIGATIONS
from perdure.governance.policy_reading import Policy
from perdure.governance.policy_schema import MODEL, TOOL_CALL, WRITE


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding: its code, the policy, the file, and what to do."""

    code: str
    policy: str
    file: str
    message: str


def lint(policies: PolicySet) -> list[LintFinding]:
    """What looks wrong: first each policy by itself, then beside the others."""
    found: list[LintFinding] = []
    for policy in policies.policies.values():
        found += _alone(policy, policies)
    return found + list(_beside(policies))


def _alone(policy: Policy, policies: PolicySet) -> Iterator[LintFinding]:
    def finding(code: str, message: str) -> LintFinding:
        return LintFinding(code, policy.id, policy.file, message)

    if "id" not in policy.annotations:
        yield finding(
            "id-missing", "give it an `@id`, so that records keep their meaning when the file changes"
        )
    if policy.effect == "forbid" and "hold" in policy.annotations:
        yield finding("hold-on-forbid", "a `forbid` always denies; put `@hold` on a `permit`")
    if policy.effect == "forbid" and any(name in policy.annotations for name in OBLIGATIONS):
        yield finding("obligation-on-forbid", "what is denied has no obligations; put them on a `permit`")
    is_open = _is_open(policy) and not policy.data.get("conditions")
    if policy.effect == "permit" and is_open and policy.actions is None:
        yield finding(
            "too-broad", "it allows everything to everybody; name principals, actions or conditions"
        )
    elif policy.effect == "permit" and not policy.data.get("conditions") and "hold" not in policy.annotations:
        scope = policy.actions
        if (scope is None or scope & {TOOL_CALL, WRITE}) and _is_irreversible(policies):
            yield finding(
                "too-broad", "it allows tools that cannot be undone without a condition and without `@hold`"
            )
    if policy.effect == "forbid" and is_open and policy.actions is None:
        yield finding("forbids-all", "it forbids everything to everybody")


def _is_open(policy: Policy) -> bool:
    return bool(policy.data["principal"]["op"] == "All" and policy.data["resource"]["op"] == "All")


def _is_irreversible(policies: PolicySet) -> bool:
    return any(spec.effect == "irreversible" and not spec.undoable for spec in policies.tools.values())


def _beside(policies: PolicySet) -> Iterator[LintFinding]:
    walls = [
        policy for policy in policies.policies.values() if policy.effect == "forbid" and _is_wall(policy)
    ]
    first: dict[str, str] = {}
    for policy in policies.policies.values():
        if policy.effect == "permit":
            for wall in walls:
                if _covers(wall, policy, policies):
                    message = f"`{wall.id}` forbids everything that it allows, so it never counts"
                    yield LintFinding("unreachable", policy.id, policy.file, message)
        other = first.setdefault(_body(policy), policy.id)
        if other != policy.id:
            yield LintFinding("shadowed", policy.id, policy.file, f"it says the same as `{other}`")


def _is_wall(policy: Policy) -> bool:
    """Whether it counts for every principal and resource, whatever else is the case."""
    return _is_open(policy) and not policy.data.get("conditions")


def _covers(wall: Policy, permit: Policy, policies: PolicySet) -> bool:
    """Whether a ``forbid`` for everybody covers every action of a ``permit``."""
    names = [*policies.tools, MODEL]
    return all(policies.is_about(wall, name) for name in names if policies.is_about(permit, name))


def _body(policy: Policy) -> str:
    """What two policies have in common that say the same: ids and reasons do not matter, holds and other demands do."""
    asked = {name: text for name, text in policy.annotations.items() if name not in ("id", "reason")}
    parts = [policy.data[part] for part in ("effect", "principal", "action", "resource", "conditions")]
    return json.dumps([asked, parts], sort_keys=True)
