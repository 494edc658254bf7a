"""Forks: what may be changed in the copied part of a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.agents.codec import to_json
from perdure.core import entries as e
from perdure.core.errors import ForkInvalidError
from perdure.core.values import pack
from perdure.engines.embedded import works

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime


async def fork(runtime: Runtime, run: str, at: int, changes: Mapping[int, Any], *, chance: int) -> str:
    """Start a new run from the first ``at`` entries of another; its id.

    Raises:
        ForkInvalidError: no such entry, or it has nothing to change.
    """
    journal = runtime.run(run).journal(limit=max(0, at))
    replaced = changed_entries(run, journal, changes, at, runtime.settings.payload_bytes_max)
    now_ms, new_id = runtime.now_ms(), runtime.new_id()
    await runtime.store.transact(
        lambda tx: works.fork(tx, run, new_id, at, replaced, chance=chance, now_ms=now_ms)
    )
    return new_id


def changed_entries(
    run: str, journal: Sequence[e.Entry], changes: Mapping[int, Any], at: int, limit: int
) -> dict[int, e.Entry]:
    """Entries of the copied part with other results, by ``seq``.

    Raises:
        ForkInvalidError: no such entry, or it has nothing to change.
    """
    known = {entry.seq: entry for entry in journal}
    for seq in changes:
        if seq not in known:
            raise ForkInvalidError(
                f"entry {seq} is not among the first {at} of run `{run}`", run=run, seq=seq
            )
    return {seq: changed_entry(known[seq], value, limit) for seq, value in changes.items()}


def changed_entry(entry: e.Entry, value: Any, limit: int) -> e.Entry:
    """An entry with another result (or input); blobs are not made here, so up to 64 KiB."""
    payload, blobs = pack(to_json(value), limit)
    if blobs:
        raise ForkInvalidError("a changed value may have at most 64 KiB")
    match entry:
        case e.RunStarted():
            return msgspec.structs.replace(entry, input=payload)
        case e.StepCompleted():
            return msgspec.structs.replace(entry, result=payload)
        case e.MessageReceived() | e.QuestionAnswered():
            return msgspec.structs.replace(entry, body=payload)
        case _:
            kind = type(entry).__name__
            raise ForkInvalidError(
                f"entry {entry.seq} is `{kind}`, which has no result to change", seq=entry.seq
            )
