"""What is approved: the exact action, and what its approver is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core.canonical import canonical_digest
from perdure.core.principals import Chain
from perdure.core.verdicts import Reason
from perdure.governance.display import render


class ActionClaim(msgspec.Struct, frozen=True, kw_only=True):
    """One action, as it is about to be done.

    Attributes:
        v: the version of this form.
        run: who acts.
        seq: the number of its call.
        tool: its name.
        tool_digest: SHA-256 of what the tool declares.
        arguments: exactly.
        principals: the run, then who it acts for, as ``kind:name``.
        policy: the digest of the policies that ask for the grant.
    """

    v: int = 1
    run: str
    seq: int
    tool: str
    tool_digest: str
    arguments: Any
    principals: tuple[str, ...]
    policy: str

    @property
    def digest(self) -> str:
        """SHA-256 of its RFC 8785 form.

        Raises:
            InputInvalidError: an argument is a number that not every reader reads alike: give it as text.
        """
        return canonical_digest(msgspec.to_builtins(self))

    @property
    def requesters(self) -> frozenset[str]:
        """The persons that it is done for: none of them can approve it."""
        return frozenset(
            name for kind, _, name in (item.partition(":") for item in self.principals) if kind != "agent"
        )

    @property
    def agents(self) -> frozenset[str]:
        """The agents that do it: a key in such a name is no person's."""
        return frozenset(
            name for kind, _, name in (item.partition(":") for item in self.principals) if kind == "agent"
        )


def claim_of(
    run: str, call: int, tool: str, *, tool_digest: str, arguments: bytes, chain: Chain, policy: str
) -> ActionClaim:
    """The claim of an action; ``arguments`` as JSON."""
    return ActionClaim(
        run=run,
        seq=call,
        tool=tool,
        tool_digest=tool_digest,
        arguments=msgspec.json.decode(arguments),
        principals=tuple(f"{item.kind}:{item.name}" for item in chain),
        policy=policy,
    )


def display(claim: ActionClaim, reasons: Sequence[Reason] = (), also: str = "") -> str:
    """What an approver is shown: see :func:`perdure.governance.display.render`."""
    return render(claim, reasons, also).text


def display_digest(claim: ActionClaim, reasons: Sequence[Reason] = (), also: str = "") -> str:
    """SHA-256 of what an approver is shown."""
    return render(claim, reasons, also).digest
