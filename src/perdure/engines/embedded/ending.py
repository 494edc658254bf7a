"""The end of a run: its result or error, and what that sets free, in one transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perdure.agents.codec import to_json
from perdure.core import entries as e
from perdure.core.errors import BlockedError, InputInvalidError, PayloadTooLargeError, PerdureError
from perdure.core.records import Status
from perdure.core.values import pack
from perdure.engines.embedded.attempts import failure_of
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.waits import position, record
from perdure.engines.embedded.works import end_effects
from perdure.gateway import ledger
from perdure.kernel.machine import transition
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker


async def finish(worker: Worker, host: Host, *, failure: e.Failure | None = None) -> None:
    """Record how the agent's code ended (or that it could not begin, with ``failure``)."""
    blobs: dict[str, bytes] = {}
    kind: type[e.Entry]
    fields: dict[str, Any]
    if failure is not None:
        kind, event, fields = e.RunFailed, "fail", {"error": failure}
    else:
        try:
            kind, event, fields, blobs = _outcome(worker, host)
        except BlockedError as error:  # a broken invariant or replay mismatch that came out through the agent
            await worker._block(host, error, error.code)
            return
    await _end(worker, host, kind, event, fields, blobs)


async def stop_at_once(worker: Worker, host: Host, reason: str, code: str) -> None:
    """End a run that was cancelled before its code ever ran, or while it was blocked."""
    if code == "deadline-exceeded":
        await _end(worker, host, e.RunFailed, "fail", {"error": e.Failure(code=code, message=reason)}, {})
    else:
        await _end(worker, host, e.RunCancelled, "cancel", {"reason": reason}, {})


def _outcome(worker: Worker, host: Host) -> tuple[type[e.Entry], str, dict[str, Any], dict[str, bytes]]:
    """What the main task of the agent came to."""
    main = host.main
    if main is None:
        raise BlockedError("a run without code came to its end")
    if main.cancelled():
        return _cancelled(host)
    error = main.exception()
    if isinstance(error, BlockedError):
        raise error
    if error is not None:
        if host.cancel is not None and isinstance(error, TimeoutError | asyncio.CancelledError):
            return _cancelled(host)
        return e.RunFailed, "fail", {"error": host.labelled_failure(failure_of(error, "agent-failed"))}, {}
    try:
        data = to_json(main.result())
        host.agent.result.read(data)
        result, blobs = pack(data, worker.engine.settings.payload_bytes_max)
        result = host.labelled(result, data)
    except (InputInvalidError, ValueError, PayloadTooLargeError) as problem:
        text = problem.message if isinstance(problem, PerdureError) else str(problem)
        code = "payload-too-large" if isinstance(problem, PayloadTooLargeError) else "result-invalid"
        failure = e.Failure(
            code=code, message=f"the result of agent `{host.agent.name}` does not fit: {text}"
        )
        return e.RunFailed, "fail", {"error": failure}, {}
    return e.RunCompleted, "complete", {"result": result}, blobs


def _cancelled(host: Host) -> tuple[type[e.Entry], str, dict[str, Any], dict[str, bytes]]:
    cancel = host.cancel
    if cancel is not None and cancel.code == "deadline-exceeded":
        return e.RunFailed, "fail", {"error": e.Failure(code=cancel.code, message=cancel.reason)}, {}
    reason = cancel.reason if cancel is not None else "the agent cancelled itself"
    return e.RunCancelled, "cancel", {"reason": reason}, {}


async def _end(
    worker: Worker,
    host: Host,
    kind: type[e.Entry],
    event: str,
    fields: dict[str, Any],
    blobs: dict[str, bytes],
) -> None:
    host.is_ending = True
    engine = worker.engine
    now_ms = worker.wall_ms()
    after = transition(Status.RUNNING, event)
    code = fields["error"].code if "error" in fields else None

    def work(tx: Transaction) -> list[str]:
        record(tx, host, kind(**position(host, now_ms), **fields), blobs)
        for question in tx.questions(host.run_id):
            tx.close_question(host.run_id, question.call)
        if host.has_acted or host.main is None:  # stopped before its journal was replayed: not known
            ledger.close_run(tx, host.run_id, now_ms)
        tx.move(host.run_id, host.fence, after, now_ms=now_ms, code=code)
        return end_effects(tx, host.run_id, host.agent.name, host.session, host.parent, now_ms)

    touched = await engine.store.transact(work)
    if engine.telemetry.is_on:
        engine.telemetry.count("perdure.runs.ended", 1, {"agent": host.agent.name, "status": after.value})
    engine.forget(host)
    engine.watchers.end(host.run_id)
    engine.look_after(touched)
