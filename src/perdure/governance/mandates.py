"""Mandates: what a run may do, for whom, until when. Handed on from run to run, they only shrink.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from perdure.core.errors import InputInvalidError
from perdure.core.limits import NAME_LENGTH_MAX
from perdure.core.principals import CHAIN_MAX, Chain, Principal
from perdure.governance import identity_errors as errors
from perdure.governance.scopes import Scope, beyond, checked_scope
from perdure.governance.spiffe import Workload

LIFE_MS = 5 * 60_000  # long enough for a call and its retries; a longer task gets a new token
LIFE_MS_MAX = 3_600_000
GROUPS_MAX = 32  # of one principal in a token


class Mandate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run may do, for whom, until when. Made by :func:`root` and :func:`delegate` only.

    Attributes:
        chain: the run, then who it acts for.
        scope: the tools that it may use.
        expires_ms: until when, in milliseconds of the epoch.
    """

    chain: Chain
    scope: Scope
    expires_ms: int


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified token says.

    Attributes:
        workload: the SPIFFE ID of the run (``sub``).
        audience: who it is for.
        fence: the fence of the lease under which it was made.
        attempt: the attempt that it was made for.
        token_id: its own id (``jti``).
        issued_ms: when it was made, in milliseconds of the epoch, as are all times here.
        not_before_ms: from when on it counts.
        expires_ms: until when.
        chain: the run, then who it acts for.
        scope: the tools that it may use.
    """

    workload: Workload
    audience: str
    fence: int
    attempt: int
    token_id: str
    issued_ms: int
    not_before_ms: int
    expires_ms: int
    chain: Chain
    scope: Scope

    @property
    def run(self) -> str:
        """The run."""
        return self.workload.run

    @property
    def agent(self) -> str:
        """The name of its agent."""
        return self.workload.agent

    @property
    def mandate(self) -> Mandate:
        """What the run may do, for whom, until when."""
        return Mandate(chain=self.chain, scope=self.scope, expires_ms=self.expires_ms)


def root(chain: Chain, scope: Iterable[str], *, now_ms: int, life_ms: int = LIFE_MS) -> Mandate:
    """The mandate of a run that no other run started.

    Args:
        chain: the run, then who it acts for; at most 8.
        scope: names of tools and globs.
        now_ms: the time.
        life_ms: for how long; at most an hour.

    Raises:
        InputInvalidError: the chain, the scope or the time cannot be.
    """
    if not 1_000 <= life_ms <= LIFE_MS_MAX:
        raise InputInvalidError(f"a mandate lasts 1,000 to {LIFE_MS_MAX:,} ms, found {life_ms:,}")
    return Mandate(chain=checked_links(chain), scope=checked_scope(scope), expires_ms=now_ms + life_ms)


def delegate(
    parent: RunIdentity | Mandate, *, child: Principal, scope: Iterable[str], expires_ms: int, now_ms: int
) -> Mandate:
    """The mandate of a run that ``parent`` starts. Scope and time only shrink; :func:`shrink` says what can be had.

    Args:
        parent: the run that delegates, verified.
        child: the run that it starts: an agent with its run.
        scope: what the child asks for.
        expires_ms: until when the child asks for it, in milliseconds of the epoch.
        now_ms: the time.

    Raises:
        DelegationExceedsError: the child asks for a tool or for time that its parent does not have, or the chain would
            have more than 8 links.
        RunTokenExpiredError: the parent's own time is over.
        InputInvalidError: the child is no run, is in the chain already, or would have no time.
    """
    asked = checked_scope(scope)
    if now_ms >= parent.expires_ms:
        raise errors.RunTokenExpiredError("the time of the delegating run is over; delegate sooner")
    if len(parent.chain) >= CHAIN_MAX:
        message = f"a chain has at most {CHAIN_MAX} principals; let a run nearer to its root do it"
        raise errors.DelegationExceedsError(message, depth=len(parent.chain))
    if excess := beyond(parent.scope, asked):
        shown = ", ".join(f"`{item}`" for item in excess[:5])
        message = f"the delegating run does not have {shown}; ask for what `shrink` leaves"
        raise errors.DelegationExceedsError(message, excess=excess)
    if expires_ms > parent.expires_ms:
        message = (
            f"the delegating run's time ends {expires_ms - parent.expires_ms:,} ms before what is asked for"
        )
        raise errors.DelegationExceedsError(message, expires_ms=parent.expires_ms)
    if expires_ms <= now_ms:
        raise InputInvalidError("a delegation must end in the future")
    if any(link.kind == "agent" and link.run == child.run for link in parent.chain):
        raise InputInvalidError(f"run `{child.run}` is in the chain already; it cannot start itself")
    return Mandate(chain=checked_links((child, *parent.chain)), scope=asked, expires_ms=expires_ms)


def checked_links(chain: Chain) -> Chain:
    """A chain that a token can hold: the run that acts, then who it acts for.

    Raises:
        InputInvalidError: it does not begin with a run, has more than 8 links, or a name or the groups are too long.
    """
    if not 1 <= len(chain) <= CHAIN_MAX:
        raise InputInvalidError(f"a chain has 1 to {CHAIN_MAX} principals, found {len(chain)}")
    if chain[0].kind != "agent" or not chain[0].run:
        raise InputInvalidError("a chain begins with the run that acts: an agent with its run")
    for link in chain:
        if not 0 < len(link.name) <= NAME_LENGTH_MAX or (link.run and link.kind != "agent"):
            raise InputInvalidError("a principal has a name of 1 to 200 characters; only an agent has a run")
        if len(link.groups) > GROUPS_MAX:
            raise InputInvalidError(f"a principal in a token has at most {GROUPS_MAX} groups")
    return tuple(chain)
