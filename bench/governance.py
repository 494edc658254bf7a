"""What governance costs: ``python -m bench.governance``.

The gates beside the bare decisions of Cedar that they make; actions with and without policies; a backtest.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cedarpy
import msgspec
from rich.console import Console
from rich.table import Table

from perdure import Budget, Label, Principal, Run, Runtime, Settings, ToolFlow, agent, tool
from perdure.core.actions import Account, Spend
from perdure.core.audit import AuditRecord, encode_record
from perdure.core.labels import USER as USER_SAID
from perdure.core.principals import Chain
from perdure.core.tools import ToolSpec
from perdure.gateway.gates.authority import AuthorityGate
from perdure.gateway.gates.case import Case
from perdure.gateway.gates.chain import Gates
from perdure.gateway.gates.conduct import ConductGate
from perdure.gateway.gates.flow import FlowGate
from perdure.gateway.memory import RunMemory
from perdure.gateway.schema import ArgumentSchema
from perdure.governance.conduct import advance, judge
from perdure.governance.conduct_patterns import Event
from perdure.governance.conduct_rules import Rules as ConductRules
from perdure.governance.conduct_state import State
from perdure.governance.flow import FlowRules
from perdure.governance.merkle import Frontier, leaf_hash
from perdure.governance.policy import PolicyRequest, PolicySet, load
from perdure.kernel.budget import judge as room
from perdure.runtime.judging import Judging
from perdure.runtime.policies import specs_of
from perdure.runtime.rulebook import Rules

POLICIES = 50
ROUNDS = 5
DECISIONS = 2_000
IN_FLIGHT = 64
ACTS = 40  # of each run
FLOW = """
[tools.pay]
sinks = { to = "recipient", cents = "amount" }
[tools.look]
output = { sources = ["own"], integrity = "trusted" }
"""
USER = Principal(kind="user", name="ute", groups=("service",))


@tool
async def pay(to: str, cents: int) -> str:
    """Pay."""
    return "paid"


@tool(effect="read")
async def look() -> str:
    """Looks."""
    return "acme"


@agent("payer", tools=[pay, look], roles=["clerk"])
async def payer(run: Run) -> None:
    """Pays again and again."""
    await run.act(look)
    for number in range(ACTS):
        await run.act(pay, to="acme", cents=number)


def policies() -> str:
    """Fifty policies, ten of which can be about a payment."""
    text = [
        '@id("look") permit (principal, action == Action::"look", resource);',
        '@id("pay") permit (principal, action == Action::"pay", resource) when { context.input.cents < 1000 };',
    ]
    for number in range(9):
        text.append(
            f'@id("no{number}") forbid (principal, action == Action::"pay", resource) '
            f'when {{ context.input.to == "blocked{number}" && context.governance.risk == "critical" }};'
        )
    for number in range(POLICIES - len(text)):
        text.append(
            f'@id("other{number}") permit (principal, action == Action::"tool{number % 20}", resource);'
        )
    return "\n".join(text)


def made() -> PolicySet:
    """The policies, held against the tools."""
    others = [ToolSpec(name=f"tool{number}") for number in range(20)]
    return load({"bench.cedar": policies()}, [pay.spec, look.spec, *others])


class Fixed:
    """Policies that never change."""

    def __init__(self, found: PolicySet) -> None:
        self._found = found
        self.digest = found.digest

    async def current(self) -> PolicySet:
        """They."""
        return self._found


def _rules() -> ConductRules:
    return ConductRules.load(_rules_text(), ["pay", "look"])


def _rules_text() -> str:
    """Twenty rules of conduct about one tool."""
    common = 'action="pay"\nthen="deny"\nreason="r"'
    parts = []
    for number in range(5):
        parts += [
            f'[[rule]]\nid="r{number}"\nkind="require"\nneeds="look"\n{common}',
            f'[[rule]]\nid="c{number}"\nkind="count"\nmax=1000\nwithin="1m"\n{common}',
            f'[[rule]]\nid="s{number}"\nkind="sum"\nof="cents"\nmax=1000000000\n{common}',
            f'[[rule]]\nid="d{number}"\nkind="distinct"\nof="to"\nmax=100\n{common}',
        ]
    return "\n".join(parts)


def _memory() -> RunMemory:
    """A run that was asked something, has looked something up, and has read 50 KB of a stranger's text."""
    flow = FlowRules(tools={"pay": ToolFlow(sinks={"to": "recipient", "cents": "amount"})})
    memory = RunMemory(_rules(), flow)
    seen = memory.seen
    assert seen is not None
    assert memory.rules is not None
    assert memory.state is not None
    seen.context.learn("input", -1, "input", "pay acme what we owe them", (("", USER_SAID),))
    seen.context.learn(
        "output", 1, "tool:mail", "a stranger's words. " * 2_500, (("", Label(sources=("tool:mail",))),)
    )
    advance(memory.rules, memory.state, Event(tool="look", effect="read", at_ms=0, state="succeeded"))
    return memory


async def gates() -> dict[str, Any]:
    """Microseconds of all gates, the budget and the audit leaf for one action, and of the bare decisions of Cedar, in turn."""
    found = made()
    chain: Chain = (Principal(kind="agent", name="payer", run="r", groups=("clerk",)), USER)
    arguments = {"to": "acme", "cents": 5}
    case = Case(
        run="r", call=1, agent="payer", risk="medium", chain=chain, what="tool", name="pay", at_ms=1, arguments=arguments,
        spec=pay.spec, memory=_memory(),
    )  # fmt: skip
    chained = Gates([AuthorityGate(Fixed(found)), FlowGate(), ConductGate()])
    schema = ArgumentSchema(pay.spec.parameters)
    budget = Budget(usd_micros=10**9, calls=10**6)
    accounts = [Account(run=name, budget=budget) for name in "ab"]
    tree = Frontier(0, b"")

    async def ours() -> None:
        nonlocal tree
        schema.check(arguments, "pay")
        verdict = await chained.judge(replace(case))  # another action each time: nothing is known of it
        assert verdict.kind == "allow"
        assert room(accounts, Spend(calls=1), 1).refusal is None
        codes = tuple(f"{item.code}:{item.rule}" for item in verdict.reasons)
        record = AuditRecord(
            kind="intended", at_ms=1, run="r", call=1, agent="payer", what="tool", name="pay", state="intended",
            verdict="allow", codes=codes, policy=verdict.policy,
        )  # fmt: skip
        tree, _ = tree.append(leaf_hash(encode_record(record)))

    bare = _bare(found, case)
    own: list[float] = []
    remembered: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(DECISIONS):
            found._decided_before.clear()  # as if no action had been like it before
            await ours()
        own.append((time.perf_counter() - begin) / DECISIONS * 1e6)
        begin = time.perf_counter()
        for _ in range(DECISIONS):
            await ours()
        remembered.append((time.perf_counter() - begin) / DECISIONS * 1e6)
        begin = time.perf_counter()
        for _ in range(DECISIONS):
            bare()
        theirs.append((time.perf_counter() - begin) / DECISIONS * 1e6)
    return {
        "gates_us": median(own),
        "remembered_us": median(remembered),
        "bare_us": median(theirs),
        "ratio": median(a / b for a, b in zip(own, theirs, strict=True)),
    }


def _bare(found: PolicySet, case: Case) -> Any:
    """The same decisions by Cedar alone: all fifty policies, everything parsed before, told the same."""
    seen = None if case.memory is None else case.memory.seen
    assert seen is not None
    facts = seen.facts(case)
    request = PolicyRequest(
        chain=case.chain,
        name="pay",
        arguments=case.arguments,
        at_ms=1,
        labels=facts.labels,
        sources=facts.sources,
    )
    whole = cedarpy.PolicySet.from_str(policies())
    context = json.loads(found.context_of(request))
    asked = []
    for principal in case.chain:
        one = {
            "principal": {"type": "Agent" if principal.kind == "agent" else "User", "id": principal.name},
            "action": {"type": "Action", "id": "pay"},
            "resource": {"type": "Tool", "id": "pay"},
            "context": context,
        }
        asked.append((one, found._known(principal, request)))

    def decide() -> None:
        for one, entities in asked:
            answer = cedarpy.is_authorized(one, whole, entities, found._schema)
            assert answer.allowed

    return decide


def conduct() -> dict[str, Any]:
    """Microseconds to judge and take in one action by twenty rules, after histories of three lengths."""
    rules = _rules()
    found: dict[str, Any] = {}
    for length in (10, 1_000, 100_000):
        state = State.fresh(rules)
        advance(rules, state, Event(tool="look", effect="read", at_ms=0, state="succeeded"))
        times = []
        for number in range(length + 2_000):
            arguments = {"to": str(number % 50), "cents": 1}
            asked = Event(
                tool="pay",
                effect="irreversible",
                state="requested",
                at_ms=number * 1_000,
                arguments=arguments,
            )
            intended = msgspec.structs.replace(asked, state="intended")
            begin = time.perf_counter()
            assert judge(rules, state, asked).kind == "allow"
            advance(rules, state, asked)
            advance(rules, state, intended)
            if number >= length:
                times.append((time.perf_counter() - begin) * 1e6)
        found[str(length)] = median(times)
    found["ratio"] = found["100000"] / found["10"]
    return found


async def throughput(folder: Path, *, governed: bool) -> float:
    """Durable actions a second, ``IN_FLIGHT`` runs at a time."""
    rules = Rules()
    if governed:
        (folder / "policies").mkdir()
        text = "\n".join(line for line in policies().splitlines() if "other" not in line)
        (folder / "policies" / "a.cedar").write_text(text)
        (folder / "flow.toml").write_text(FLOW)
        (folder / "conduct.toml").write_text(_rules_text())
        rules = Rules(
            policies=folder / "policies", flow=folder / "flow.toml", conduct=folder / "conduct.toml"
        )
    settings = Settings(concurrency=IN_FLIGHT)
    async with Runtime.open(folder / "data", agents=[payer], settings=settings, rules=rules) as runtime:
        await (await runtime.start("payer", principals=[USER])).result()  # loads what is loaded once
        begin = time.perf_counter()
        handles = [await runtime.start("payer", principals=[USER]) for _ in range(IN_FLIGHT)]
        await asyncio.gather(*(handle.result() for handle in handles))
        return IN_FLIGHT * (ACTS + 1) / (time.perf_counter() - begin)


async def backtest(folder: Path, runs: int) -> dict[str, Any]:
    """Seconds to judge recorded actions by other policies."""
    async with Runtime.open(
        folder / "data", agents=[payer], settings=Settings(concurrency=IN_FLIGHT)
    ) as runtime:
        for _ in range(runs // IN_FLIGHT):
            handles = [await runtime.start("payer", principals=[USER]) for _ in range(IN_FLIGHT)]
            await asyncio.gather(*(handle.result() for handle in handles))
        assert runtime.engine is not None
        assert runtime.engine.outside is not None
        specs = await specs_of(runtime.engine.outside.catalogues)
        text = "\n".join(line for line in policies().splitlines() if "other" not in line)
        candidate = load({"b.cedar": text}, specs)
        begin = time.perf_counter()
        count = sum(1 for _ in Judging(runtime).backtest(candidate))
        seconds = time.perf_counter() - begin
    return {"actions": count, "seconds": seconds, "per_100000_s": seconds / count * 100_000}


async def measure() -> dict[str, Any]:
    """Everything."""
    found: dict[str, Any] = {"gates": await gates(), "conduct": conduct()}
    plain: list[float] = []
    governed: list[float] = []
    for _ in range(3):
        for kind, into in ((False, plain), (True, governed)):
            with tempfile.TemporaryDirectory(dir=".") as name:
                into.append(await throughput(Path(name), governed=kind))
    found["actions"] = {
        "ungoverned_per_s": median(plain), "governed_per_s": median(governed),
        "ratio": median(a / b for a, b in zip(governed, plain, strict=True)),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=".") as name:
        found["backtest"] = await backtest(Path(name), 256)
    return found


def main() -> None:
    """Measure and show."""
    found = asyncio.run(measure())
    targets = (
        (
            "all gates, labels, 20 conduct rules, budget and audit leaf over the bare decisions of Cedar, 50 policies, chain of two",
            "at most 1.5x",
            f"{found['gates']['ratio']:.2f}x ({found['gates']['remembered_us']:.0f} us where the decision is remembered)",
            found["gates"]["ratio"] <= 1.5,
        ),
        (
            "all gates, microseconds",
            "under 1,000",
            f"{found['gates']['gates_us']:.0f}",
            found["gates"]["gates_us"] < 1_000,
        ),
        (
            "governed actions/s over ungoverned ones, 64 in flight",
            "at least 0.5x",
            f"{found['actions']['ratio']:.2f}x ({found['actions']['governed_per_s']:.0f}/s)",
            found["actions"]["ratio"] >= 0.5,
        ),
        (
            "backtest of 100,000 actions",
            "under 30 s",
            f"{found['backtest']['per_100000_s']:.1f} s (from {found['backtest']['actions']:,})",
            found["backtest"]["per_100000_s"] < 30,
        ),
        (
            "conduct, 20 rules: an action after 100,000 others over one after 10",
            "flat",
            f"{found['conduct']['ratio']:.2f}x ({found['conduct']['100000']:.0f} us)",
            found["conduct"]["ratio"] < 1.2,
        ),
    )
    table = Table("what", "target", "measured", "")
    for what, target, measured, is_met in targets:
        table.add_row(what, target, measured, "met" if is_met else "MISSED")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
