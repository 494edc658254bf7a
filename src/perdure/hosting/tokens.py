"""Run tokens: what a hosted program shows to the endpoints. One for each attempt, worth nothing elsewhere."""

from __future__ import annotations

import hashlib
import hmac

from perdure.core.errors import TokenRefusedError
from perdure.gateway.hosted import Attempt
from perdure.ports import Entropy

PREFIX = "prd-run-"
TOKEN_BITS = 256


class Tokens:
    """The attempts that are under way, by a digest of their tokens. Nothing is kept on disk: a restart begins new ones."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._attempts: dict[str, Attempt] = {}
        self._ended: dict[str, str] = {}  # digest: run, for a better message; bounded below

    def issue(self, attempt: Attempt) -> str:
        """A token for an attempt."""
        token = f"{PREFIX}{self._entropy.bits(TOKEN_BITS):064x}"
        self._attempts[_digest(token)] = attempt
        return token

    def revoke(self, token: str) -> None:
        """The attempt is over."""
        name = _digest(token)
        attempt = self._attempts.pop(name, None)
        if attempt is not None:
            self._ended[name] = attempt.seat.run_id
            while len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]

    def find(self, token: str, run: str | None = None) -> Attempt:
        """The attempt that a token stands for.

        Args:
            token: as the program shows it.
            run: the run that the request names, if it names one.

        Raises:
            TokenRefusedError: it is missing, unknown, of an attempt that has ended, or of another run.
        """
        if not token:
            message = "the request has no run token; a hosted program gets it as OPENAI_API_KEY, ANTHROPIC_API_KEY and PERDURE_MCP_TOKEN"
            raise TokenRefusedError(message)
        name = _digest(token)
        attempt = self._attempts.get(name)
        if attempt is None and name in self._ended:
            message = f"the run token is of an attempt of run `{self._ended[name]}` that has ended; it cannot be used any more"
            raise TokenRefusedError(message)
        if attempt is None:
            raise TokenRefusedError(
                "the run token is not known here; tokens are valid for one attempt of one run"
            )
        if run is not None and not hmac.compare_digest(run.encode(), attempt.seat.run_id.encode()):
            raise TokenRefusedError("the run token is of another run than the request names")
        if attempt.is_over:
            raise TokenRefusedError(
                f"the attempt of run `{attempt.seat.run_id}` that this token is of has ended"
            )
        return attempt


ENDED_MAX = 10_000  # ended attempts that are remembered for their message


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
