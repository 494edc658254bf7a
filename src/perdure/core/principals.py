"""Who acts: an agent's run, on behalf of a user or service, through a chain of delegations that only shrinks authority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from perdure.core.errors import InputInvalidError

PrincipalKind = Literal["agent", "user", "service"]
Risk = Literal["low", "medium", "high", "critical"]
RISKS: tuple[Risk, ...] = ("low", "medium", "high", "critical")


class Principal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One link of a chain.

    Attributes:
        kind: ``agent`` (``name`` is the agent's, ``run`` its run), ``user`` or ``service``.
        name: an agent's name, or the user's or service's id.
        run: the run of an agent.
        groups: for users and services, what they belong to; for agents, their roles.
    """

    kind: PrincipalKind
    name: str
    run: str = ""
    groups: tuple[str, ...] = ()


Chain = tuple[
    Principal, ...
]  # the actor first, then who it acts for, and so on; every one of them must be allowed
CHAIN_MAX = 8  # deeper delegation is refused


def checked_chain(principals: Sequence[Principal]) -> Chain:
    """A chain as given from outside.

    Raises:
        InputInvalidError: it is too deep, or a name is empty or too long.
    """
    if len(principals) >= CHAIN_MAX:
        raise InputInvalidError(
            f"a chain of {len(principals)} principals is given, expected fewer than {CHAIN_MAX}"
        )
    for principal in principals:
        if not 0 < len(principal.name) <= 200:
            raise InputInvalidError("a principal needs a name of 1 to 200 characters")
    return tuple(principals)
