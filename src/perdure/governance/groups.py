"""Group grants: one signature for a few more actions like the one that was shown. Bounded in number, time and run; never "always".

A group names which arguments may differ; all others, the tool as it declares itself, the run, whom it acts for, the policies
and the reasons for holding must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core.canonical import canonical_digest
from perdure.core.errors import InputInvalidError, UsageError
from perdure.core.verdicts import Reason
from perdure.governance.claims import ActionClaim
from perdure.governance.grant_errors import GrantActionMismatchError

COUNT_MAX = 50  # of the actions of one group: more is a policy, and belongs into one
FLOW = "flow-"  # reasons that are about one value


class Group(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How many actions of which shape a grant releases.

    Attributes:
        count: in all, the one that was shown included; 2 to 50.
        shape: SHA-256 of what must be the same.
        codes: why such an action may be held, as ``code:rule``; one that is held for something else is not in the group.
        free: names of arguments that may be anything.
    """

    count: int
    shape: str
    codes: tuple[str, ...]
    free: tuple[str, ...] = ()


class Repeat(ActionClaim, frozen=True, kw_only=True):
    """An action that was not shown to anybody, but may be in a group."""


def group_of(claim: ActionClaim, reasons: Sequence[Reason], count: int, free: Sequence[str] = ()) -> Group:
    """A group around an action.

    Raises:
        UsageError: the number is not one, an argument is not there, or one that may be anything is what the action is held for.
    """
    if not 2 <= count <= COUNT_MAX:
        raise UsageError(f"a group has 2 to {COUNT_MAX} actions, found {count}; for more write a policy")
    names = tuple(sorted(set(free)))
    arguments = claim.arguments if isinstance(claim.arguments, dict) else {}
    if unknown := [name for name in names if name not in arguments]:
        offered = ", ".join(f"`{name}`" for name in arguments) or "none"
        raise UsageError(f"the action has no argument `{unknown[0]}`; it has {offered}")
    if names and any(reason.code.startswith(FLOW) for reason in reasons):
        raise UsageError(
            "the action is held for one of its values, so others are not approved with it; leave `free` out"
        )
    return Group(count=count, shape=shape_of(claim, names), codes=_codes(reasons), free=names)


def shape_of(claim: ActionClaim, free: Sequence[str]) -> str:
    """SHA-256 of what the actions of a group have in common.

    Raises:
        InputInvalidError: an argument is a number that not every reader reads alike.
    """
    arguments: Any = claim.arguments
    if isinstance(arguments, dict):
        arguments = {name: value for name, value in arguments.items() if name not in free}
    common = {
        "v": claim.v, "run": claim.run, "tool": claim.tool, "tool_digest": claim.tool_digest, "arguments": arguments,
        "principals": list(claim.principals), "policy": claim.policy, "free": list(free),
    }  # fmt: skip
    return canonical_digest(common)


def check(group: Group, claim: ActionClaim, reasons: Sequence[Reason]) -> None:
    """Nothing if an action is in a group.

    Raises:
        GrantActionMismatchError: it is not.
    """
    names = claim.arguments.keys() if isinstance(claim.arguments, dict) else ()
    is_right = 2 <= group.count <= COUNT_MAX and set(group.free) <= set(names)
    try:
        is_same = is_right and shape_of(claim, group.free) == group.shape
    except InputInvalidError as error:
        raise GrantActionMismatchError(f"the action cannot be approved: {error.message}") from error
    if not is_same:
        raise GrantActionMismatchError("the action differs from the group in more than the group leaves open")
    if more := set(_codes(reasons)) - set(group.codes):
        raise GrantActionMismatchError(
            f"the action is also held for `{min(more)}`, which the group does not cover"
        )
    if group.free and any(code.startswith(FLOW) for code in group.codes):
        raise GrantActionMismatchError(
            "a group leaves no argument open where an action is held for its values"
        )


def check_shown(group: Group, claim: ActionClaim, reasons: Sequence[Reason]) -> None:
    """Nothing if a group is exactly one around the action that was shown.

    Raises:
        GrantActionMismatchError: it is not.
    """
    try:
        is_right = group == group_of(claim, reasons, group.count, group.free)
    except (UsageError, InputInvalidError) as error:
        raise GrantActionMismatchError(f"the grant has no group that can be: {error.message}") from error
    if not is_right:
        raise GrantActionMismatchError("the group of the grant is not one around this action")


def told(group: Group) -> str:
    """What an approver is shown of it."""
    more = group.count - 1
    which = " and ".join(f"`{name}`" for name in group.free)
    but = (
        f"in which {which} may be anything, and the other arguments are the same"
        if which
        else "with the same arguments"
    )
    return f"and up to {more} more use{'s' if more > 1 else ''} of this tool by this run, {but}"


def _codes(reasons: Sequence[Reason]) -> tuple[str, ...]:
    return tuple(sorted({f"{reason.code}:{reason.rule}" for reason in reasons}))
