"""Run tokens: what a hosted program shows to the endpoints. One for each attempt, worth nothing elsewhere.

A token is 256 random bits; what it stands for is known here only. It is bound to a run, an attempt and the fence of the lease
under which the attempt began, and is refused as soon as one of them is not in force any more.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from perdure.core.errors import TokenRefusedError
from perdure.gateway.hosted import Attempt
from perdure.governance.identity_errors import RunTokenStaleError
from perdure.ports import Entropy

PREFIX = "prd-run-"
TOKEN_BITS = 256


@dataclass(frozen=True, slots=True)
class _Held:
    """What a token stands for, as it was when the token was made."""

    attempt: Attempt
    run: str
    number: int
    fence: int | None


class Tokens:
    """The attempts that are under way, by a digest of their tokens. Nothing is kept on disk: a restart begins new ones."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._held: dict[str, _Held] = {}
        self._ended: dict[str, str] = {}  # digest: run, for a better message; bounded below

    def issue(self, attempt: Attempt) -> str:
        """A token for an attempt. It counts until :meth:`revoke`, the end of the attempt, or another fence."""
        token = f"{PREFIX}{self._entropy.bits(TOKEN_BITS):064x}"
        seat = attempt.seat
        self._held[_digest(token)] = _Held(attempt, seat.run_id, attempt.number, seat.fence)
        return token

    def revoke(self, token: str) -> None:
        """The attempt is over."""
        name = _digest(token)
        held = self._held.pop(name, None)
        if held is not None:
            self._ended[name] = held.run
            while len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]

    def find(self, token: str, run: str | None = None) -> Attempt:
        """The attempt that a token stands for.

        Args:
            token: as the program shows it.
            run: the run that the request names, if it names one.

        Raises:
            TokenRefusedError: it is missing, unknown, of an attempt that has ended, or of another run.
            RunTokenStaleError: the run's lease has another fence than when it was made, or is not held here any more.
        """
        if not token:
            message = "the request has no run token; a hosted program gets it as OPENAI_API_KEY, ANTHROPIC_API_KEY and PERDURE_MCP_TOKEN"
            raise TokenRefusedError(message)
        name = _digest(token)
        held = self._held.get(name)
        if held is None and name in self._ended:
            message = f"the run token is of an attempt of run `{self._ended[name]}` that has ended; it cannot be used any more"
            raise TokenRefusedError(message)
        if held is None:
            raise TokenRefusedError(
                "the run token is not known here; tokens are valid for one attempt of one run"
            )
        if run is not None and not hmac.compare_digest(run.encode(), held.run.encode()):
            raise TokenRefusedError("the run token is of another run than the request names")
        if held.attempt.is_over:
            raise TokenRefusedError(
                f"attempt {held.number} of run `{held.run}`, which this token is of, has ended"
            )
        if held.fence is None or held.fence != held.attempt.seat.fence:
            message = f"run `{held.run}` is not under the lease any more under which this token was made"
            raise RunTokenStaleError(message, run=held.run, attempt=held.number)
        return held.attempt


ENDED_MAX = 10_000  # ended attempts that are remembered for their message


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
