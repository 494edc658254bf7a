"""Who acts: an agent's run, on behalf of a user or service, through a chain of delegations that only shrinks authority."""

from __future__ import annotations

from typing import Literal

import msgspec

PrincipalKind = Literal["agent", "user", "service"]


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
