"""What is tortured: agents that use real tools under policies, conduct rules, budgets and approvals.

Each run goes wrong on purpose: it pays before it has looked (conduct), pays too much (policy), pays more than a clerk may
without a grant (held), pays too often (conduct, budget).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.torture.recorder import PROBE, document
from perdure import Budget, PerdureError, Run, Settings, agent, current_use, tool
from perdure.core.tools import Finding, ToolOutput
from perdure.runtime.rulebook import Rules
from perdure.tools.http import Call, HttpCaller
from perdure.tools.openapi import OpenApiToolset

SETTINGS = Settings(poll_ms=15, drain_ms=500, recoveries_max=1_000_000)  # every crash is ours, not the run's
HELD_FROM_CENTS = 1_000
NEVER_FROM_CENTS = 5_000
PAYMENTS_MAX = 4  # of one run, by its conduct rule
CALLS_MAX = 8  # of one run with its children, by its budget
TIMEOUT_S = 5.0

POLICIES = f"""
@id("reads") permit (principal, action in Action::"read", resource);
@id("writes") permit (principal, action in [Action::"order", Action::"readdress"], resource);
@id("small") permit (principal, action == Action::"pay", resource) when {{ context.input.cents < {HELD_FROM_CENTS} }};
@id("large") @hold("finance") @reason("finance looks at large payments")
permit (principal, action == Action::"pay", resource) when {{ context.input.cents >= {HELD_FROM_CENTS} }};
@id("never") forbid (principal, action == Action::"pay", resource) when {{ context.input.cents >= {NEVER_FROM_CENTS} }};
"""
CONDUCT = f"""
[[rule]]
id = "look-first"
kind = "require"
action = "pay"
needs = "look"
then = "deny"
reason = "look before you pay"

[[rule]]
id = "payments"
kind = "count"
action = "pay"
max = {PAYMENTS_MAX}
then = "deny"
reason = "no more payments"
"""

_place: dict[str, Any] = {}  # of this process: where the service is


def _caller() -> tuple[HttpCaller, str]:
    return _place["caller"], f"http://127.0.0.1:{_place['port']}"


@tool(recovery="queryable", timeout=TIMEOUT_S)
async def order(item: str) -> Any:
    """Order something; the service can be asked whether it was."""
    caller, base = _caller()
    call = Call("POST", f"{base}/orders?item={item}", {"idempotency-key": current_use().key})
    return await caller.send(call, timeout_s=TIMEOUT_S, limit=10_000)


@order.probe_with
async def was_ordered(item: str) -> Finding:
    """Ask the service."""
    caller, base = _caller()
    call = Call("GET", f"{base}{PROBE}{current_use().key}")
    found: Any = (await caller.send(call, timeout_s=TIMEOUT_S, limit=10_000)).value
    if found["receipt"] is None:
        return Finding(answer="did-not-happen")
    return Finding(answer="happened", output=ToolOutput(value=found))


async def _use(run: Run, name: str, **arguments: Any) -> list[str]:
    """One action: its name, and the receipt or the code of the refusal."""
    try:
        result = await run.act(name, **arguments)
    except PerdureError as error:
        return [name, error.code]
    return [name, result["receipt"]]


async def _pay(run: Run, least: int, most: int) -> list[str]:
    return await _use(run, "pay", to="acme", cents=least + int(run.random() * (most - least)))


@agent("buyer", tools=["shop", order], roles=["clerk"], budget=Budget(calls=CALLS_MAX))
async def buyer(run: Run) -> list[list[str]]:
    """A day of a clerk who tries everything."""
    done = [await _pay(run, 1, 900)] if run.random() < 0.3 else []
    done.append(await _use(run, "look", item="desk"))
    done += await run.gather(
        _pay(run, 1, 900),
        _use(run, "order", item="desk"),
        _use(run, "readdress", street="long"),
    )
    done.append(await _pay(run, HELD_FROM_CENTS, NEVER_FROM_CENTS - 1))
    if run.random() < 0.3:
        done.append(await _pay(run, NEVER_FROM_CENTS, 9_000))
    if run.random() < 0.5:
        done += await run.gather(*(_pay(run, 1, 1_300) for _ in range(3)))
    return done


@agent("office", tools=["shop"], roles=["clerk"], budget=Budget(calls=CALLS_MAX))
async def office(run: Run) -> list[Any]:
    """Two clerks who share what one of them would use up alone."""
    children = [await run.spawn("buyer") for _ in range(2)]
    return [await _use(run, "look", item="chair"), *[await child.result() for child in children]]


AGENTS = [buyer, office]


def rules(folder: Path) -> Rules:
    """What actions are judged by, from files."""
    policies = folder / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    (policies / "shop.cedar").write_text(POLICIES, encoding="utf-8")
    (folder / "conduct.toml").write_text(CONDUCT, encoding="utf-8")
    return Rules(policies=policies, conduct=folder / "conduct.toml")


def shop(port: int) -> OpenApiToolset:
    """The service as a toolset of this process."""
    place = [f"127.0.0.1:{port}"]
    _place.update(port=port, caller=HttpCaller(allow=place))
    return OpenApiToolset("shop", document(port), allow=place, timeout_ms=round(TIMEOUT_S * 1000))
