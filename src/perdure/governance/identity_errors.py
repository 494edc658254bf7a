"""Why a run token or a delegation does not count: one code each, so that a program can tell them apart."""

from __future__ import annotations

from perdure.core.errors import RefusedError, TokenRefusedError


class RunTokenMalformedError(TokenRefusedError):
    """The run token is not exactly what one looks like: size, header, claims, canonical form."""

    code = "token-malformed"


class RunTokenSignatureError(TokenRefusedError):
    """The run token is not signed with a key of its trust domain."""

    code = "token-signature"


class RunTokenExpiredError(TokenRefusedError):
    """The time of the run token is over."""

    code = "token-expired"


class RunTokenNotYetValidError(TokenRefusedError):
    """The run token is dated in the future."""

    code = "token-not-yet-valid"


class RunTokenAudienceError(TokenRefusedError):
    """The run token is meant for somebody else."""

    code = "token-audience"


class RunTokenStaleError(TokenRefusedError):
    """The run token was made under another fence, or for another attempt, than the one in force."""

    code = "token-stale"


class RunTokenRunError(TokenRefusedError):
    """The run token is of another run."""

    code = "token-run"


class DelegationExceedsError(RefusedError):
    """A delegation asks for more than the delegating run has: tools, time or depth."""

    code = "delegation-exceeds"
