"""From what a caller asks for to the run that is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.agents.codec import to_json
from perdure.core.actions import Budget
from perdure.core.ids import checked_name, run_id
from perdure.core.principals import Principal, checked_chain
from perdure.core.records import Conflict
from perdure.core.values import pack
from perdure.engines.embedded.engine import SEED_BITS
from perdure.engines.embedded.works import NewRun

if TYPE_CHECKING:
    from perdure.agents.agent import Agent
    from perdure.runtime.runtime import Runtime


def new_run(
    runtime: Runtime,
    agent: Agent,
    input: Any,
    *,
    session: str | None,
    idempotency_key: str | None,
    priority: int,
    deadline: float | None,
    conflict: Conflict | None,
    budget: Budget | None,
    principals: Sequence[Principal],
    goal: str | None,
) -> NewRun:
    """The run, with an id and chance of its own; the arguments are those of ``Runtime.start``.

    Raises:
        UsageError, InputInvalidError, PayloadTooLargeError: it cannot be accepted.
    """
    data = to_json(input)
    agent.parameters.read_input(data)
    payload, blobs = pack(data, runtime.settings.payload_bytes_max)
    now_ms = runtime.now_ms()
    return NewRun(
        id=run_id(now_ms, runtime.entropy.bits(60)),
        agent=agent.name,
        version=agent.version,
        input=payload,
        chance=runtime.entropy.bits(SEED_BITS),
        blobs=blobs,
        session=None if session is None else checked_name("a session", session),
        idempotency_key=None
        if idempotency_key is None
        else checked_name("an idempotency key", idempotency_key),
        priority=priority,
        deadline_ms=None if deadline is None else now_ms + round(deadline * 1000),
        conflict=conflict or agent.conflict,
        budget=budget or agent.budget,
        principals=checked_chain(principals),
        goal="" if goal is None else checked_name("a goal", goal),
    )
