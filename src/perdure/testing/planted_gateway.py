"""Bugs that a gateway must not have, planted to see that simulated worlds find them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from perdure.core import entries as e
from perdure.core.actions import Account, Spend
from perdure.core.values import pack
from perdure.engines.embedded import acts
from perdure.engines.embedded.open_call import OpenCall
from perdure.gateway import intents
from perdure.gateway.gateway import Gateway
from perdure.gateway.seat import Act, Seat
from perdure.kernel.actions import in_doubt
from perdure.kernel.budget import Room, judge
from perdure.stores.sqlite.transaction import SqliteTransaction
from perdure.testing.world import World

DISPATCH_BEFORE_INTENT = "dispatch-before-intent"
OPAQUE_REPEATED = "opaque-repeated"
RESERVATION_KEPT = "reservation-kept"
BUDGET_OF_CHILD_ONLY = "budget-of-child-only"
STALE_DECISION = "stale-decision"
GATEWAY_BUGS = (
    DISPATCH_BEFORE_INTENT, OPAQUE_REPEATED, RESERVATION_KEPT, BUDGET_OF_CHILD_ONLY, STALE_DECISION,
)  # fmt: skip


@contextmanager
def planted_in_gateway(bug: str) -> Iterator[Any]:
    """What makes worlds (seed, faults) with this bug."""
    if bug == RESERVATION_KEPT:
        yield lambda seed, only=None: World(seed, only, transaction=_Hoarding)
    elif bug == DISPATCH_BEFORE_INTENT:
        with mock.patch.object(Gateway, "propose", _propose_later(Gateway.propose)):
            yield World
    elif bug == OPAQUE_REPEATED:
        with mock.patch.object(acts, "in_doubt", _repeat_opaque):
            yield World
    elif bug == STALE_DECISION:
        with mock.patch.object(OpenCall, "is_decided", _Always()):
            yield World
    else:
        with mock.patch.object(intents, "judge", _own_budget_only):
            yield World


class _Hoarding(SqliteTransaction):
    """Never gives back what was reserved."""

    def book(self, run_id: str, reserved: Spend, spent: Spend) -> None:
        """Book only what is taken."""
        super().book(run_id, reserved if reserved.calls > 0 else Spend(), spent)


class _Always:
    """An attribute that is true, whatever it is set to: each act counts as decided a moment ago."""

    def __get__(self, instance: Any, owner: Any) -> bool:
        return True

    def __set__(self, instance: Any, value: Any) -> None:
        return


def _propose_later(propose: Any) -> Any:
    """Propose without waiting until the intent is durable."""

    async def propose_later(
        self: Gateway, seat: Seat, act: Act, *, hold: e.Failure | None = None
    ) -> e.CallEntry:
        task = asyncio.ensure_future(propose(self, seat, act, hold=hold))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        request, _ = pack(act.request, self.payload_bytes_max)
        return e.ActionIntended(
            seq=0, at_ms=seat.now_ms(), call=act.call, name=act.name, digest=act.digest, what=act.what,
            request=request, recovery=act.recovery, effect=act.effect,
        )  # fmt: skip

    return propose_later


def _repeat_opaque(what: str, recovery: str) -> str:
    found = in_doubt(what, recovery)
    return "repeat" if found == "doubt" else found


def _own_budget_only(chain: Sequence[Account], estimate: Spend, now_ms: int) -> Room:
    return judge(chain[:1], estimate, now_ms)
