"""What every entry of a journal has: its place, its time, and for the end of a durable call which call that was."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from perdure.core.labels import Labels


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something failed: a stable code, the foreign type's name and its message, with what that was made from if it is known."""

    code: str
    message: str
    type: str = ""
    labels: Labels = ()


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """An open durable call of a parked run: what it waits for and until when (milliseconds of the epoch)."""

    call: int
    kind: str
    name: str
    digest: str = ""
    due_ms: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, tag_field="type"):
    """One record of a journal at position ``seq`` (1, 2, 3 ...), written at ``at_ms``, never earlier than the last."""

    seq: int
    at_ms: int


class CallEntry(Entry, frozen=True, kw_only=True):
    """The end of durable call number ``call``, made with this ``name`` and input ``digest``."""

    kind: ClassVar[str] = ""
    call: int
    name: str
    digest: str = ""
