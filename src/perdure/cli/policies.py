"""What ``policy ...`` does."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from perdure.agents import Agent
from perdure.cli import views
from perdure.cli.apps import load as load_app
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.errors import UsageError
from perdure.gateway.catalogue import Toolbox
from perdure.governance.policy import PolicySet, load
from perdure.governance.policy_explain import Explanation, LinkExplained, PolicyText
from perdure.governance.policy_explain import explain as explained
from perdure.governance.policy_lint import lint
from perdure.governance.policy_table import read_cases, run_cases
from perdure.runtime import Runtime
from perdure.runtime.config import world_from
from perdure.runtime.judging import Judging, Replayed
from perdure.runtime.outside import catalogue_of
from perdure.runtime.policies import read_folder, specs_of
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.walls import with_built_in

UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SHOWN = 1_000  # changed verdicts in a table; `--json` gives all


def _loaded(folder: Path, app: str, config: Path | None, data: Path) -> tuple[PolicySet, list[Agent]]:
    """The policies of a folder, held against the tools of an app."""
    agents = load_app(app)
    world = world_from(config, os.environ, LocalSecrets.default(data))

    async def go() -> PolicySet:
        toolbox = Toolbox(with_built_in(world.toolsets, world.sandboxes, data, world.secrets))
        try:
            specs = await specs_of({agent.name: catalogue_of(agent, toolbox) for agent in agents})
            return load(read_folder(folder), specs)
        finally:
            await toolbox.close()

    return asyncio.run(go()), agents


def check(folder: Path, app: str, config: Path | None, data: Path, out: Out) -> int:
    """Check policies; 1 if the lint has found something."""
    policies, _ = _loaded(folder, app, config, data)
    findings = lint(policies)
    if out.json:
        out.emit(
            {
                "policies": len(policies.policies),
                "digest": policies.digest,
                "findings": [_finding(item) for item in findings],
            }
        )
    else:
        out.text(
            f"{len(policies.policies)} policies fit {len(policies.tools)} tools; digest {policies.digest[:16]}"
        )
        rows = [[item.code, item.policy, item.file, item.message] for item in findings]
        out.table(("finding", "policy", "file", "what to do"), rows, empty="nothing else to say")
    return 1 if findings else 0


def _finding(item: Any) -> dict[str, str]:
    return {"code": item.code, "policy": item.policy, "file": item.file, "message": item.message}


def test(folder: Path, app: str, cases: Path, config: Path | None, data: Path, out: Out) -> int:
    """Run table tests; 1 if one fails."""
    policies, _ = _loaded(folder, app, config, data)
    try:
        rows = read_cases(cases.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{cases}` cannot be read: {error}") from error
    results = run_cases(policies, rows)
    failed = [item for item in results if item.problem]
    if out.json:
        for item in results:
            out.emit({"name": item.case.name, "verdict": item.verdict.kind, "problem": item.problem})
    else:
        table = [[item.case.name, item.verdict.kind, item.problem or "as expected"] for item in results]
        out.table(("case", "verdict", ""), table, empty="the table is empty")
        out.text(f"{len(results) - len(failed)} of {len(results)} as expected")
    return 1 if failed else 0


def explain(folder: Path, app: str, action: str, config: Path | None, data: Path, out: Out) -> None:
    """Explain the decision about an action."""
    policies, agents = _loaded(folder, app, config, data)

    async def work(runtime: Runtime) -> Explanation:
        return explained(policies, Judging(runtime).request(action))

    found = beside(data, work, agents=agents)
    if out.json:
        for link in found.links:
            out.emit(_link_json(link))
        return
    rows = [
        [
            f"{link.principal.kind} {link.principal.name}", "allowed" if link.is_allowed else "denied", _listed(link.deciding) or "no policy",
            _listed(link.near), "; ".join(link.errors),
        ]
        for link in found.links
    ]  # fmt: skip
    out.table(("for", "decision", "by", "near misses", "errors"), rows, empty="nothing could be asked")
    reasons = "; ".join(f"{reason.message} ({reason.code})" for reason in found.verdict.reasons)
    out.text(f"together: {found.verdict.kind}: {reasons}. Every link must be allowed.")


def _listed(policies: Sequence[PolicyText]) -> str:
    return ", ".join(f"{item.id} ({item.file}:{item.line})" for item in policies)


def _link_json(link: LinkExplained) -> dict[str, Any]:
    return {
        "principal": msgspec.to_builtins(link.principal),
        "allowed": link.is_allowed,
        "policies": [item.id for item in link.deciding],
        "near": [item.id for item in link.near],
        "errors": list(link.errors),
    }


def backtest(folder: Path, app: str, since: str, config: Path | None, data: Path, out: Out) -> None:
    """Try other policies on what was done."""
    policies, agents = _loaded(folder, app, config, data)
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", since)
    if found is None:
        raise UsageError(f"`{since}` is no time; expected such as `12h` or `30d`")
    back_ms = int(found[1]) * UNITS[found[2]]

    async def work(runtime: Runtime) -> tuple[int, list[Replayed]]:
        total, changed = 0, []
        for item in Judging(runtime).backtest(policies, since_ms=runtime.now_ms() - back_ms):
            total += 1
            if item.is_changed:
                changed.append(item)
        return total, changed

    total, changed = beside(data, work, agents=agents)
    if out.json:
        for item in changed:
            reasons = [msgspec.to_builtins(reason) for reason in item.after.reasons]
            out.emit(
                {
                    "action": item.action,
                    "name": item.name,
                    "before": item.before,
                    "after": item.after.kind,
                    "reasons": reasons,
                }
            )
        return
    rows = [
        [
            item.action,
            item.name,
            views.when(item.at_ms),
            item.before,
            item.after.kind,
            "; ".join(reason.message for reason in item.after.reasons),
        ]
        for item in changed[:SHOWN]
    ]
    out.table(("action", "tool", "when", "then", "now", "why"), rows, empty="no verdict would change")
    out.text(f"{len(changed)} of {total} verdicts would change")
