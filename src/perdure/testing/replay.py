"""Replaying finished journals beside any engine: the agent must ask for the same calls and come to the same end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.agents.codec import to_json
from perdure.core import entries as e
from perdure.core.errors import BlockedError
from perdure.core.records import RunRecord
from perdure.core.values import Payload
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall

if TYPE_CHECKING:
    from perdure.testing.world import World


class _NoDriver:
    """A driver that only reads."""

    payload_bytes_max = 1 << 30

    def __init__(self, world: World) -> None:
        self._world = world

    def launch(self, host: Host, open_call: OpenCall) -> None:
        """Nothing is begun."""

    def drop_call(self, host: Host, open_call: OpenCall) -> None:
        """Nothing is working."""

    def bytes_of(self, payload: Payload) -> bytes:
        """The JSON of a payload."""
        if not payload.blob:
            return bytes(payload.inline)
        return self._world.disk.read(lambda tx: tx.blob(payload.blob))

    def show(self, host: Host, kind: str, data: Any) -> None:
        """Nobody watches."""

    def record_patch(self, host: Host, name: str) -> None:
        """Nothing is written."""

    def wall_ms(self) -> int:
        """No time passes."""
        return 0


def replayed(world: World, row: RunRecord, journal: list[e.AnyEntry]) -> None:
    """Replay an ended run up to its end and compare that.

    Raises:
        ReplayError, BlockedError: the agent asks for other calls, or comes to another result.
    """
    last = journal[-1]
    host = Host(_NoDriver(world), row, world.agents[row.agent])
    try:
        host.begin(journal[:-1])
        main = host.main
        if not isinstance(last, e.RunCompleted):
            return
        if main is None or not main.done():
            raise BlockedError("the agent does not come to its end on replay")
        if main.cancelled() or main.exception() is not None:
            raise BlockedError("the agent returned live and raises on replay")
        if to_json(main.result()) != bytes(last.result.inline):
            raise BlockedError(
                f"the agent returned {last.result.inline!r} live and {main.result()} on replay"
            )
    finally:
        host.close()
