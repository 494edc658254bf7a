"""Lint: policies that are legal and probably not what somebody meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from perdure.governance.policy import PolicySet
from perdure.governance.policy_obligations import OBLIGATIONS
from perdure.governance.policy_reading import Policy
from perdure.governance.policy_schema import TOOL_CALL, WRITE


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding: its code, the policy, the file, and what to do."""

    code: str
    policy: str
    file: str
    message: str


def lint(policies: PolicySet) -> list[LintFinding]:
    """What looks wrong, by policy."""
    found: list[LintFinding] = []
    for policy in policies.policies.values():
        found += _alone(policy, policies)
        found += _beside(policy, policies)
    return found


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


def _beside(policy: Policy, policies: PolicySet) -> Iterator[LintFinding]:
    for other in policies.policies.values():
        if other.id == policy.id:
            continue
        if other.effect == "forbid" and policy.effect == "permit" and _covers(other, policy):
            message = f"`{other.id}` forbids everything that it allows, so it never counts"
            yield LintFinding("unreachable", policy.id, policy.file, message)
        same = _body(other) == _body(policy) and other.effect == policy.effect
        if same and list(policies.policies).index(other.id) < list(policies.policies).index(policy.id):
            yield LintFinding("shadowed", policy.id, policy.file, f"it says the same as `{other.id}`")


def _covers(forbid: Policy, permit: Policy) -> bool:
    """Whether an unconditional ``forbid`` covers the whole scope of a ``permit``."""
    if forbid.data.get("conditions") or not _is_open(forbid):
        return False
    return forbid.actions is None or (permit.actions is not None and permit.actions <= forbid.actions)


def _body(policy: Policy) -> str:
    return json.dumps(
        [policy.data[part] for part in ("principal", "action", "resource", "conditions")], sort_keys=True
    )
