"""Schedules: from a cron expression to a row."""

from __future__ import annotations

from typing import Any

from perdure.agents.codec import to_json
from perdure.core.errors import DefinitionError
from perdure.core.ids import checked_name
from perdure.core.limits import BLOB_BYTES_MIN
from perdure.core.records import Schedule
from perdure.core.values import pack
from perdure.engines.embedded.dispatch import next_time_ms


def schedule_row(
    name: str, cron: str, agent: str, input: Any, timezone: str, *, now_ms: int, limit: int
) -> Schedule:
    """The row of a schedule, with the time of its next occurrence.

    Raises:
        DefinitionError: the expression or the time zone is wrong.
        PayloadTooLargeError: the input is over 64 KiB.
    """
    payload, _ = pack(to_json(input), min(limit, BLOB_BYTES_MIN))
    try:
        next_ms = next_time_ms(cron, timezone, now_ms)
    except Exception as error:  # whatever the parser or the time zone database says: the expression is wrong
        message = (
            f"schedule `{name}`: `{cron}` in `{timezone}` is no cron expression in a known time zone: {error}"
        )
        raise DefinitionError(message) from error
    return Schedule(
        name=checked_name("a schedule", name), agent=agent, cron=cron, timezone=timezone, input=payload,
        next_ms=next_ms,
    )  # fmt: skip
