"""What the gateway goes by: the gates, the policies in force, and what was signed about held actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from perdure.core.errors import RefusedError
from perdure.core.verdicts import Demand, Verdict
from perdure.gateway.gates.case import Case, Gate
from perdure.gateway.gates.chain import Gates
from perdure.gateway.memory import RunMemory
from perdure.gateway.seat import Act, Seat
from perdure.ports import Transaction

Claim = Any


class Signed(Protocol):
    """A signed decision."""

    arguments: bytes | None


UNGOVERNED = ""  # the digest where there are no policies


class Policies(Protocol):
    """Where the policies in force are."""

    @property
    def digest(self) -> str:
        """Their digest."""
        ...


class Governance:
    """The gates and what they go by.

    Args:
        gates: in order.
        policies: in force; without them agents may do what their charter says.
        audience: the id of this runtime: a grant for another one is worth nothing here.
        memory: makes what is remembered of a run; ``None`` where no gate asks for it.
    """

    def __init__(
        self,
        gates: Sequence[Gate] = (),
        *,
        policies: Policies | None = None,
        audience: str = "",
        memory: Callable[[], RunMemory] | None = None,
    ) -> None:
        self._gates = Gates(gates)
        self._policies = policies
        self.audience = audience
        self.memory = memory

    @property
    def digest(self) -> str:
        """The digest of the policies in force."""
        return UNGOVERNED if self._policies is None else self._policies.digest

    async def judge(self, seat: Seat, act: Act, *, is_release: bool = False) -> Verdict:
        """What the gates say that need no transaction."""
        return await self._gates.judge(case_of(seat, act, is_release=is_release))

    # -- grants
    def signed(self, seat: Seat, act: Act) -> list[Signed]:
        """What was signed about a held act, not verified yet, the newest first."""
        del seat, act
        return []

    def claim(self, seat: Seat, act: Act) -> Claim:
        """The action as it would be done now; what was signed must be the same."""
        del seat, act
        return None

    def use_grant(self, tx: Transaction, claim: Claim, demands: Sequence[Demand], now_ms: int) -> str:
        """Use up a grant that releases an action; its id.

        Raises:
            RefusedError: there is none; of those that are there, why the newest does not count.
        """
        del tx, claim, demands, now_ms
        raise RefusedError("nobody has approved it")


def case_of(seat: Seat, act: Act, *, is_release: bool = False) -> Case:
    """What gates are told of an act."""
    is_tool = act.what == "tool"
    return Case(
        run=seat.run_id,
        call=act.call,
        agent=seat.agent,
        risk=seat.risk,
        chain=seat.principals,
        what=act.what,
        name=act.name,
        at_ms=seat.now_ms(),
        arguments=msgspec.json.decode(act.request) if is_tool else {},
        spec=act.spec,
        confidence=act.confidence,
        memory=seat.memory,
        body=b"" if is_tool else act.request,
        is_release=is_release,
    )
