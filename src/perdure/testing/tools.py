"""Doubles of what a runtime reaches the world with: a tool of each recovery class and a model upstream.

They fail on both sides of their effect, hang past their time-out, answer late or too much, are not reachable, or take
their process down with them, as the chance of the world says in which they are used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from perdure.agents.agent import Agent
from perdure.core.errors import ToolDoubtfulError, ToolUnreachableError, UpstreamError
from perdure.core.limits import Settings
from perdure.core.models import ModelRequest, Price
from perdure.core.tools import RECOVERIES, Finding, Recovery, ToolOutput, ToolSpec, ToolUse
from perdure.engines.embedded.acts import Outside
from perdure.gateway.catalogue import Catalogue, Toolbox
from perdure.gateway.gateway import Gateway
from perdure.gateway.redact import Redactor
from perdure.ports import Answer
from perdure.testing.loop import INCARNATION
from perdure.testing.world import ToolError, World, here

TIMEOUT_MS = 1_500  # far below the standstill that the oracle allows, with every repeat
OUTPUT_BYTES_MAX = 256  # so that a long output is cheap
ANSWER_TOKENS_MAX = 40
PRICED, UNPRICED = "sim-priced", "sim-unpriced"
PRICE = Price(input="1.00", output="3.00")


class SimTool:
    """A tool that leaves a trace in the world under its idempotency key. Implements ``Tool`` and ``Probe``.

    Args:
        recovery: what it declares, and its name.
    """

    def __init__(self, recovery: Recovery) -> None:
        self.recovery = recovery
        self._spec = ToolSpec(
            name=recovery,
            parameters={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
            recovery=recovery,
            effect="read" if recovery == "pure" else "irreversible",
            timeout_ms=TIMEOUT_MS,
            output_bytes_max=OUTPUT_BYTES_MAX,
        )

    @property
    def spec(self) -> ToolSpec:
        """What it declares."""
        return self._spec

    async def call(self, use: ToolUse) -> ToolOutput:
        """Reach the world, or fail on either side of that."""
        world = here()
        chance, swarm = world.chance, world.swarm
        await asyncio.sleep(chance.between("tool ms", 0, min(swarm.step_ms, 400)) / 1000)
        if chance.fault("tool unreachable", swarm.tool_unreachable):
            world.sometimes["tool unreachable"] += 1
            raise ToolUnreachableError("nobody listens (simulated)")
        if chance.fault("tool fails before", swarm.tool_fails):
            world.sometimes["tool failed before its effect"] += 1
            raise ToolError("before the effect")
        if chance.fault("tool hangs before", swarm.tool_hangs):
            world.sometimes["tool hung before its effect"] += 1
            await asyncio.sleep(3_600)
        world.ledger.effect(self.recovery, use.key)
        await self._after_the_effect(world)
        if chance.fault("tool says too much", swarm.tool_fails):
            world.sometimes["tool answered too much"] += 1
            return ToolOutput(value=use.key * OUTPUT_BYTES_MAX)
        return ToolOutput(value=use.key)

    async def _after_the_effect(self, world: World) -> None:
        chance, swarm = world.chance, world.swarm
        if chance.fault("crash in tool", swarm.crash_in_step):
            world.crash(INCARNATION.get() or "", "in a tool")
            await world.loop.create_future()
        if chance.fault("tool answers late", swarm.tool_hangs):
            world.sometimes["tool answered late"] += 1
            await asyncio.sleep(2 * TIMEOUT_MS / 1000)
        if chance.fault("tool loses its answer", swarm.tool_fails):
            world.sometimes["tool lost its answer"] += 1
            raise ToolDoubtfulError("the connection broke (simulated)")
        if chance.fault("tool fails after", swarm.tool_fails):
            world.sometimes["tool failed after its effect"] += 1
            raise ToolError("after the effect")

    async def probe(self, use: ToolUse) -> Finding:
        """The truth, unless the probe itself fails or cannot tell."""
        world = here()
        await asyncio.sleep(world.chance.between("probe ms", 0, 50) / 1000)
        if world.chance.fault("probe fails", world.swarm.tool_fails):
            world.sometimes["probe failed"] += 1
            raise ToolError("nobody knows")
        if world.chance.fault("probe cannot tell", world.swarm.tool_fails):
            world.sometimes["probe could not tell"] += 1
            return Finding(answer="unknown")
        if world.ledger.touched[use.key]:
            world.sometimes["probe found that it happened"] += 1
            return Finding(answer="happened", output=ToolOutput(value=use.key))
        world.sometimes["probe found that it did not happen"] += 1
        return Finding(answer="did-not-happen")


class SimUpstreams:
    """Answers model requests. Implements ``Upstreams``."""

    def offers(self, model: str, endpoint: str) -> bool:
        """Two models, one wire format."""
        return model in (PRICED, UNPRICED) and endpoint == "chat/completions"

    def names(self) -> list[str]:
        """Both."""
        return [PRICED, UNPRICED]

    def price(self, model: str) -> Price | None:
        """One has a price."""
        return PRICE if model == PRICED else None

    @contextlib.asynccontextmanager
    async def open(self, request: ModelRequest) -> AsyncIterator[Answer]:
        """Answer, late, not at all, with 429, or with a refusal."""
        world = here()
        chance, swarm = world.chance, world.swarm
        world.ledger.asked(request.key)
        slow = chance.fault("model slow", swarm.model_fails)
        world.sometimes["model slow"] += slow
        await asyncio.sleep(chance.between("model ms", 0, 5_000 if slow else 100) / 1000)
        if chance.fault("model busy", swarm.model_fails):
            world.sometimes["model answered 429"] += 1
            raise UpstreamError("status 429 (simulated)", status=429)
        refuses = chance.fault("model refuses", swarm.model_fails)
        world.sometimes["model refused"] += refuses
        breaks = chance.fault("model breaks off", swarm.model_fails)
        yield Answer(
            status=400 if refuses else 200,
            content_type="application/json",
            headers=(),
            chunks=_chunks(world, request, breaks=breaks),
            upstream="sim",
            model=request.model,
        )


async def _chunks(world: World, request: ModelRequest, *, breaks: bool) -> AsyncIterator[bytes]:
    tokens = world.chance.between("answer tokens", 1, ANSWER_TOKENS_MAX)
    message = {"role": "assistant", "content": request.key}
    answer: dict[str, Any] = {
        "id": "a",
        "object": "chat.completion",
        "model": request.model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
    }
    data = msgspec.json.encode(answer)
    yield data[:20]
    await asyncio.sleep(0.01)
    if breaks:
        world.sometimes["model broke off"] += 1
        raise UpstreamError("the answer broke off (simulated)")
    yield data[20:]


TOOLS: tuple[SimTool, ...] = tuple(SimTool(recovery) for recovery in RECOVERIES)


def outside_of(agents: dict[str, Agent]) -> Outside:
    """The gateway of a simulated process."""
    gateway = Gateway(
        upstreams=SimUpstreams(),
        redactor=Redactor(lambda: ()),
        payload_bytes_max=Settings().payload_bytes_max,
    )
    toolbox = Toolbox(())
    catalogues = {name: Catalogue(agent.tools, (), toolbox) for name, agent in agents.items()}
    return Outside(gateway, catalogues)
