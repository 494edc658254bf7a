"""Acts of a run: a fresh one through the gateway; one of an earlier life by what it declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.agents.agent import Agent
from perdure.agents.hosting import Programs
from perdure.agents.requests import ActCall
from perdure.core import entries as e
from perdure.core.actions import ActionState, Spend
from perdure.core.errors import (
    DefinitionError,
    ModelUnknownError,
    PerdureError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from perdure.core.tools import ToolUse
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.seat import HostSeat
from perdure.gateway import ledger
from perdure.gateway.catalogue import Catalogue, check_pin, digests
from perdure.gateway.gates.walls import SANDBOX
from perdure.gateway.gateway import Gateway, lost
from perdure.gateway.seat import Act, Outcome
from perdure.gateway.wire import read_request
from perdure.kernel.actions import in_doubt
from perdure.ports import Tool

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker


@dataclass(slots=True)
class Outside:
    """What an engine reaches the world with: the gateway, the tools of each agent, and where programs run."""

    gateway: Gateway
    catalogues: Mapping[str, Catalogue]
    programs: Programs | None = None

    def catalogue(self, agent: Agent) -> Catalogue:
        """The tools of an agent."""
        return self.catalogues[agent.name]


async def act(worker: Worker, host: Host, open_call: OpenCall) -> None:
    """Take an act to its end, or to where it must wait for a decision."""
    request = open_call.request
    outside = worker.engine.outside
    if not isinstance(request, ActCall):
        return
    seat = HostSeat(worker, host)
    try:
        if outside is None:
            raise DefinitionError("this runtime has no gateway, so its runs cannot use tools or models")
        made, tool = await _prepared(outside, seat, host, open_call, request)
    except (UsageError, RefusedError, UnavailableError) as error:
        await _refused(seat, open_call, request, error)
        return
    gateway = outside.gateway
    intent = open_call.intent
    if intent is None:
        entry = await gateway.propose(seat, made)
        if not isinstance(entry, e.ActionIntended):
            open_call.task = None
            return
        outcome = await _dispatched(gateway, seat, made, tool)
    elif isinstance(intent, e.ActionHeld):  # and a decision lets it go on
        entry = await gateway.release(seat, made)
        if not isinstance(entry, e.ActionIntended):
            open_call.task = None
            return
        outcome = await _dispatched(gateway, seat, made, tool)
    elif open_call.is_decided:
        outcome = await _dispatched(gateway, seat, made, tool)
    else:
        outcome = await _recovered(gateway, seat, host, made, tool)
    open_call.task = None
    await gateway.conclude(seat, made, outcome)


async def _prepared(
    outside: Outside, seat: HostSeat, host: Host, open_call: OpenCall, request: ActCall
) -> tuple[Act, Tool | None]:
    """Everything that can be said against an act before it is proposed."""
    gateway = outside.gateway
    common: dict[str, Any] = {
        "what": request.what, "name": request.name, "digest": request.digest, "request": request.arguments,
        "call": open_call.number,
    }  # fmt: skip
    if request.what == "model":
        facts = read_request(request.endpoint, request.arguments)
        if facts.is_stream and host.agent.program is None:
            raise DefinitionError("`run.model` gives whole answers; leave `stream` out")
        if open_call.intent is None and not gateway.upstreams.offers(facts.model, request.endpoint):
            message = f"no upstream offers model `{facts.model}` for `{request.endpoint}`; configure one"
            raise ModelUnknownError(message, model=facts.model)
        estimate = gateway.estimate(facts, seat.now_ms())
        return Act(
            **common, recovery="pure", effect="read", estimate=estimate, endpoint=request.endpoint
        ), None
    tool = request.tool
    if tool is None:
        catalogue = outside.catalogue(host.agent)
        tool = await catalogue.find(request.name)
        if not host.pins:
            await seat.pin(digests(await catalogue.tools()))
        check_pin(host.pins, request.name, tool.spec)
    spec = tool.spec
    if open_call.intent is None:
        gateway.check_arguments(spec, msgspec.json.decode(request.arguments))
        recovery, effect = str(spec.recovery), str(spec.effect)
    else:  # what it declared when it was dispatched
        recovery, effect = open_call.intent.recovery, open_call.intent.effect
    made = Act(
        **common, recovery=recovery, effect=effect, estimate=Spend(calls=1), tool=tool, agent=seat.agent
    )
    if isinstance(open_call.intent, e.ActionIntended):
        made.tier = open_call.intent.obligations.get(SANDBOX, "")
    made.confidence = request.confidence
    made.undoes = getattr(tool, "undoes", "")
    if isinstance(open_call.intent, e.ActionIntended) and open_call.intent.changed:
        made.request = host.driver.bytes_of(
            open_call.intent.request
        )  # what was approved, not what was asked for
    return made, tool


async def _refused(seat: HostSeat, open_call: OpenCall, request: ActCall, error: PerdureError) -> None:
    """Nothing was sent. An act that was dispatched in an earlier life stays in doubt."""
    failure = e.Failure(code=error.code, message=error.message)
    open_call.task = None
    common: dict[str, Any] = {"call": open_call.number, "name": request.name, "digest": request.digest}
    if open_call.intent is None:
        await seat.write(
            lambda _, at: (e.ActionEnded(**{**common, **at}, state="refused", error=failure), {})
        )
        return
    state = ActionState.UNKNOWN if isinstance(open_call.intent, e.ActionIntended) else ActionState.REFUSED
    outcome = Outcome(state, Spend(), error=failure)
    await seat.write(
        lambda tx, at: ledger.conclude(
            tx, at, seat.run_id, open_call.number, request.digest, outcome, 1 << 24
        )
    )


async def _dispatched(gateway: Gateway, seat: HostSeat, made: Act, tool: Tool | None) -> Outcome:
    if tool is None:
        return await gateway.model(seat, made)
    return await gateway.use_tool(made, tool, seat.run_id)


async def _recovered(gateway: Gateway, seat: HostSeat, host: Host, made: Act, tool: Tool | None) -> Outcome:
    """An act that was intended in an earlier life and has no outcome."""
    if tool is None:
        if host.agent.program is None:
            return await gateway.model(seat, made)
        why = UnavailableError("the runtime died while the request was under way; the program asks again")
        return replace(lost(why), spent=Spend(unpriced=1))  # it may have been billed: unknown, never zero
    doubt = Outcome(
        ActionState.UNKNOWN,
        Spend(calls=1),
        error=e.Failure(
            code="action-doubtful",
            message=f"the runtime died between the dispatch of tool `{made.name}` and its answer; look whether it happened, "
            f"then `perdure actions settle {seat.run_id}/{made.call} happened|did-not-happen|retry`",
        ),
    )
    match in_doubt("tool", made.recovery):
        case "repeat":
            return await gateway.use_tool(made, tool, seat.run_id)
        case "probe":
            arguments: dict[str, Any] = msgspec.json.decode(made.request)
            use = ToolUse(run=seat.run_id, key=f"{seat.run_id}/{made.call}", arguments=arguments)
            return await gateway.probe(tool, use, doubt)
        case _:
            return doubt
