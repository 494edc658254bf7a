"""Why a grant does not count: one code each, so that a program can tell them apart."""

from __future__ import annotations

from perdure.core.errors import RefusedError


class GrantRefusedError(RefusedError):
    """A grant does not count; its subclasses say why."""

    code = "grant-refused"


class GrantMalformedError(GrantRefusedError):
    """It is not exactly what a grant looks like: size, members, header, canonical form."""

    code = "grant-malformed"


class GrantKeyUnknownError(GrantRefusedError):
    """It names a key that is not registered here."""

    code = "grant-key-unknown"


class GrantKeyRevokedError(GrantRefusedError):
    """It is signed with a key that was revoked."""

    code = "grant-key-revoked"


class GrantSignatureInvalidError(GrantRefusedError):
    """A signature is not that of the key that it names."""

    code = "grant-signature-invalid"


class GrantCounterError(GrantRefusedError):
    """The counter of a passkey did not grow: it may have been copied, or the assertion was sent before."""

    code = "grant-counter"


class GrantRequesterError(GrantRefusedError):
    """Who asked for the action has signed: nobody approves what was done for them."""

    code = "grant-requester"


class GrantRoleMissingError(GrantRefusedError):
    """Nobody in the role that is asked for has signed."""

    code = "grant-role-missing"


class GrantQuorumMissingError(GrantRefusedError):
    """Fewer different persons in the role have signed than are asked for."""

    code = "grant-quorum-missing"


class GrantAudienceError(GrantRefusedError):
    """It is meant for another runtime."""

    code = "grant-audience"


class GrantNotYetValidError(GrantRefusedError):
    """It counts only later, or is dated in the future."""

    code = "grant-not-yet-valid"


class GrantExpiredError(GrantRefusedError):
    """Its time is over."""

    code = "grant-expired"


class GrantActionMismatchError(GrantRefusedError):
    """It is about another action: run, call, tool, arguments, principals or policies differ."""

    code = "grant-action-mismatch"


class GrantDisplayMismatchError(GrantRefusedError):
    """What its approver was shown is not what is about to happen."""

    code = "grant-display-mismatch"


class GrantArgumentsInvalidError(GrantRefusedError):
    """Its changed arguments and their digest do not fit."""

    code = "grant-arguments-invalid"


class GrantUsedError(GrantRefusedError):
    """It has released an action already."""

    code = "grant-used"


class GrantMissingError(GrantRefusedError):
    """Nobody has signed anything about the action."""

    code = "grant-missing"
