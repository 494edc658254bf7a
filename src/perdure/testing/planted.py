"""Bugs that a durable runtime must not have, planted to see that simulated worlds find them.

They are put into parts of the engine from outside, for as long as a ``with planted(...)`` block lasts; nothing in the
runtime knows of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

import msgspec

from perdure.core import entries as e
from perdure.core.entries import Entry, encode_entry
from perdure.core.values import Payload
from perdure.engines.embedded import steps, worker
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.waits import position
from perdure.stores.sqlite.transaction import SqliteTransaction
from perdure.testing.planted_gateway import GATEWAY_BUGS, planted_in_gateway
from perdure.testing.world import World

ACK_BEFORE_JOURNAL = "ack-before-journal"
ATTEMPT_IN_KEY = "attempt-in-key"
NO_FENCE = "no-fence"
BUGS = (ACK_BEFORE_JOURNAL, ATTEMPT_IN_KEY, NO_FENCE, *GATEWAY_BUGS)

_call: ContextVar[OpenCall | None] = ContextVar("perdure_planted_call", default=None)


@contextmanager
def planted(bug: str) -> Iterator[Any]:
    """What makes worlds (seed, faults) with this bug; with an empty name, worlds without one.

    Raises:
        ValueError: no bug has this name.
    """
    if not bug:
        yield World
    elif bug in GATEWAY_BUGS:
        with planted_in_gateway(bug) as kind:
            yield kind
    elif bug == NO_FENCE:
        yield lambda seed, only=None: World(seed, only, transaction=_Unfenced)
    elif bug == ATTEMPT_IN_KEY:
        with mock.patch.object(worker, "run_step", _run_step_noted):
            yield _KeyPerAttempt
    elif bug == ACK_BEFORE_JOURNAL:
        with (
            mock.patch.object(steps, "pack", _pack_and_tell),
            mock.patch.object(worker, "run_step", _run_step_noted),
            mock.patch.object(Host, "_resolve", _resolve_once(Host._resolve)),
        ):
            yield World
    else:
        raise ValueError(f"no bug is called `{bug}`")


class _Unfenced(SqliteTransaction):
    """Appends to whatever position is free, whoever asks."""

    def append(self, run_id: str, fence: int, entries: Sequence[Entry], blobs: Mapping[str, bytes]) -> None:  # noqa: ARG002
        """Append without looking at the lease."""
        self.put_blobs(blobs)
        for entry in entries:
            row = self._execute(
                "SELECT key, (SELECT max(seq) FROM journal WHERE run = runs.key) FROM runs WHERE id = ?",
                (run_id,),
            ).fetchone()
            moved = msgspec.structs.replace(entry, seq=row[1] + 1)
            body = encode_entry(moved)
            self._execute(
                "INSERT INTO journal VALUES (?, ?, ?, ?)", (row[0], moved.seq, zlib.crc32(body), body)
            )


async def _run_step_noted(engine_worker: Any, host: Host, open_call: OpenCall) -> None:
    """Run a step, with its call where the planted code can see it."""
    _call.set(open_call)
    await steps.run_step(engine_worker, host, open_call)


class _KeyPerAttempt(World):
    """Effects are keyed by attempt: a retry is another effect."""

    def key_of(self, action: str) -> str:
        """The idempotency key, with the number of the attempt."""
        open_call = _call.get()
        return f"{action}/{open_call.attempt + 1 if open_call is not None else 0}"


def _pack_and_tell(data: bytes, limit: int) -> tuple[Payload, dict[str, bytes]]:
    """Pack a step's result, and tell the agent before it is written."""
    from perdure.core.values import pack

    result, blobs = pack(data, limit)
    open_call = _call.get()
    if open_call is not None and not open_call.future.done():
        host = open_call.host
        request = open_call.request
        told = e.StepCompleted(
            **position(host, host.at_ms), call=open_call.number, name=request.name, digest=request.digest,
            result=result,
        )  # fmt: skip
        open_call.is_recording = True
        host._resolve(open_call, told)
        host.loop.drain()
    return result, blobs


def _resolve_once(resolve: Any) -> Any:
    def once(host: Host, open_call: OpenCall, entry: e.CallEntry) -> None:
        if not open_call.future.done():
            resolve(host, open_call, entry)

    return once
