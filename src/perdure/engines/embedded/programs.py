"""Hosted programs of a run: one attempt after the other, until there is a result or the policy says enough."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perdure.agents.hosting import Ended
from perdure.agents.program import Program
from perdure.agents.requests import ProgramCall
from perdure.core import entries as e
from perdure.core.errors import DefinitionError, PerdureError
from perdure.core.values import pack
from perdure.engines.embedded.attempts import failure_of
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.seat import HostSeat
from perdure.engines.embedded.steps import PARK_BACKOFF_MS
from perdure.gateway.hosted import Attempt
from perdure.gateway.seat import Make
from perdure.kernel.retry import JITTER_BITS, delay_ms

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker

RESTART_MS_MAX = 30_000


async def run_program(worker: Worker, host: Host, open_call: OpenCall) -> None:
    """Run attempts of the agent's program; each start, exit and the end is recorded."""
    request, program = open_call.request, host.agent.program
    if not isinstance(request, ProgramCall) or program is None:
        return
    seat = HostSeat(worker, host)
    common: dict[str, Any] = {"call": open_call.number, "name": request.name, "digest": request.digest}
    while True:
        number = open_call.attempt + 1
        await seat.write(_note(e.ProgramStarted, {**common, "attempt": number}))
        open_call.attempt = number
        rows = host.next_call
        ended = await _attempt(worker, host, seat, program, request.input, number)
        if host.is_closed:
            return
        if ended.how == "suspended":
            open_call.task = None
            host.let_go_of_held()
            await seat.write(_note(e.ProgramSuspended, {**common, "attempt": number}))
            return
        if host.next_call > rows:
            open_call.failures = 0  # it got further than before
        open_call.failures += 1
        if ended.how == "result" or open_call.failures > program.restarts_max or _is_final(ended):
            await _finish(worker, seat, common, number, ended)
            return
        wait_ms = delay_ms(
            open_call.failures, first_ms=program.backoff_ms, max_ms=RESTART_MS_MAX,
            chance=worker.engine.entropy.bits(JITTER_BITS),
        )  # fmt: skip
        due_ms = worker.wall_ms() + wait_ms
        error = ended.error or e.Failure(code="program-failed", message="the program ended without a result")
        if wait_ms >= PARK_BACKOFF_MS:
            open_call.task = None
        told = {**common, "attempt": number, "error": error, "due_ms": due_ms}
        await seat.write(_note(e.ProgramExited, told))
        if wait_ms >= PARK_BACKOFF_MS:
            return
        await asyncio.sleep(wait_ms / 1000)
        open_call.due_ms = None


def _note(kind: type[e.CallEntry], fields: dict[str, Any]) -> Make:
    """An entry with these fields, at whatever position it gets."""
    return lambda _, at: (kind(**{**fields, **at}), {})


def _is_final(ended: Ended) -> bool:
    """Whether starting it again cannot help."""
    return ended.error is not None and ended.error.code in (
        "definition-invalid", "budget-exhausted", "sandbox-unavailable",
    )  # fmt: skip


async def _attempt(
    worker: Worker, host: Host, seat: HostSeat, program: Program, given: bytes, number: int
) -> Ended:
    outside = worker.engine.outside
    try:
        if outside is None or outside.programs is None:
            raise DefinitionError("this runtime does not run programs")
        attempt = Attempt(
            outside.gateway,
            seat,
            number,
            outside.catalogue(host.agent),
            divergence=program.divergence,
            before=host.attempt,
        )
        host.attempt = attempt
        try:
            return await outside.programs.run(program, given, attempt, seat.show)
        finally:
            attempt.is_over = True
    except PerdureError as error:
        return Ended("failed", error=failure_of(error, error.code))


async def _finish(worker: Worker, seat: HostSeat, common: dict[str, Any], number: int, ended: Ended) -> None:
    blobs: dict[str, bytes] = {}
    result, error = None, None
    if ended.how == "result":
        try:
            result, blobs = pack(ended.result, worker.payload_bytes_max)
        except PerdureError as problem:
            error = failure_of(problem, problem.code)
    else:
        error = ended.error or e.Failure(code="program-failed", message="the program ended without a result")
    await seat.write(
        lambda _, at: (e.ProgramEnded(**{**common, **at}, attempt=number, result=result, error=error), blobs)
    )
