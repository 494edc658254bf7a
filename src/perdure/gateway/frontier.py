"""Where the journal of a hosted program ends: which row answers which call of one attempt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from perdure.core.actions import ActionRecord, ActionState, Level, What
from perdure.gateway.tee import Tee
from perdure.kernel.identity import Identity, Rows


@dataclass(slots=True)
class Claim:
    """The row that a request got, and how: from the journal, attached to one under way (``retry``), or new (``live``)."""

    call: int
    level: Level


@dataclass(slots=True)
class Known:
    """What an attempt knows of a row."""

    what: What
    state: ActionState
    identity: Identity
    end_seq: int | None = None
    intent_seq: int = 0
    tee: Tee | None = None  # while its answer is arriving
    is_abandoned: bool = False  # its reader went away before it had everything


class Frontier:
    """The rows of a run, as one attempt consumes them.

    Args:
        rows: the ledger of the run.
        before: the frontier of the attempt before in this process, whose answers may still be arriving.
    """

    def __init__(self, rows: Iterable[ActionRecord], before: Frontier | None) -> None:
        self.consumed = 0
        self._known: dict[int, Known] = {}
        self._rows: dict[What, Rows] = {"model": Rows(), "tool": Rows()}
        self._latest: dict[str, int] = {}  # exact digest: the row that this attempt got for it last
        for row in rows:
            self._learn(row, before._known.get(row.call) if before else None)

    def _learn(self, row: ActionRecord, old: Known | None) -> None:
        if not (row.state.is_fact or row.state.is_open):
            return
        tee = old.tee if old is not None and old.tee is not None and not old.tee.is_over else None
        identity = Identity(exact=row.exact, masked=row.masked, causal=row.causal, ordinal=row.ordinal)
        self._known[row.call] = Known(row.what, row.state, identity, row.end_seq, row.intent_seq, tee)
        self._rows[row.what].add(row.call, identity)

    def known(self, call: int) -> Known:
        """A row that was claimed or adopted."""
        return self._known[call]

    def claim(self, what: What, identity: Identity, *, is_retry: bool) -> Claim | None:
        """The row that answers a call. Nothing is awaited between the match and the mark, so no two calls get one row.

        The same request again attaches to its row where the first reader went away, or where the client says that it tries
        again (``is_retry``) and the answer is still under way.
        """
        found = self._rows[what].match(identity)
        if found is not None:
            call, level = found
            self._rows[what].consume(call)
            self._latest[identity.exact] = call
            self.consumed += 1
            return Claim(call, level)
        latest = self._latest.get(identity.exact)
        if latest is None:
            return None
        known = self._known[latest]
        is_under_way = known.tee is not None and not known.tee.is_over
        is_lost = known.state in (ActionState.LOST, ActionState.REFUSED)
        if is_lost or not (known.is_abandoned or (is_retry and is_under_way)):
            return None
        known.is_abandoned = False
        return Claim(latest, "retry")

    def adopt(self, call: int, what: What, identity: Identity) -> Known:
        """A new row, consumed by this attempt."""
        known = self._known[call] = Known(what, ActionState.INTENDED, identity)
        self._rows[what].add(call, identity)
        self._rows[what].consume(call)
        self._latest[identity.exact] = call
        return known

    def remove(self, what: What, call: int) -> None:
        """A row that is no fact: refused or lost."""
        self._rows[what].remove(call)

    def left(self, what: What) -> list[int]:
        """Facts that this attempt has not asked for, in order."""
        return [call for call in self._rows[what].left() if self._known[call].state.is_fact]
