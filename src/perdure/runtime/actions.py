"""Actions and budgets as an operator sees them: the ledger, the inbox of doubtful ones, what was spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.core import entries as e
from perdure.core.actions import (
    Account,
    ActionFilter,
    ActionRecord,
    ActionState,
    Budget,
    Decision,
    Served,
)
from perdure.core.errors import ActionUnknownError
from perdure.core.values import decode, encode
from perdure.engines.embedded import works
from perdure.gateway import ledger

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

WAITING = (ActionState.UNKNOWN, ActionState.HELD)


@dataclass(frozen=True, slots=True)
class ActionView:
    """One action with what was asked and what came of it, as plain data."""

    record: ActionRecord
    request: Any
    result: Any
    error: e.Failure | None
    history: Sequence[e.CallEntry]


class Actions:
    """``runtime.actions``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def rows(
        self,
        *,
        run: str | None = None,
        state: ActionState | Sequence[ActionState] | None = None,
        name: str | None = None,
        limit: int = 100,
    ) -> list[ActionRecord]:
        """Rows of the ledger, newest first."""
        states = None if state is None else (state,) if isinstance(state, ActionState) else tuple(state)
        want = ActionFilter(run=run, state=states, name=name, limit=limit)
        return self._runtime.store.read(lambda tx: tx.actions(want))

    def all_of(self, run: str) -> list[ActionRecord]:
        """Every row of one run, in call order."""
        return self._runtime.store.read(lambda tx: tx.run_actions(run))

    def waiting(self, limit: int = 1_000) -> list[ActionRecord]:
        """The inbox: actions that only a decision can end, newest first."""
        return self.rows(state=WAITING, limit=limit)

    def show(self, action: str) -> ActionView:
        """One action.

        Args:
            action: its id, ``run/call``.

        Raises:
            ActionUnknownError: there is none.
        """
        run, call = parts(action)
        row = self._runtime.store.read(lambda tx: ledger.found(tx, run, call))
        first = row.intent_seq - 1
        entries = self._runtime.store.read(lambda tx: tx.journal(run, first))
        mine = [entry for entry in entries if isinstance(entry, e.CallEntry) and entry.call == call]
        request, result, error = None, None, None
        for entry in mine:
            if isinstance(entry, e.ActionIntended | e.ActionHeld):
                request = decode(self._runtime.bytes_of(entry.request))
            elif isinstance(entry, e.ActionEnded):
                result = None if entry.result is None else decode(self._runtime.bytes_of(entry.result))
                error = entry.error
        return ActionView(row, request, result, error, mine)

    def output(self, action: str) -> bytes:
        """The whole output of an action as JSON, also where the agent got only the beginning of it.

        Raises:
            ActionUnknownError: there is none, or it has no output.
        """
        view = self.show(action)
        if view.result is None:
            raise ActionUnknownError(f"action `{action}` has no output", action=action)
        kept = view.result.get("artifact") if isinstance(view.result, dict) else None
        if kept is None:
            return encode(view.result)
        return self._runtime.store.read(lambda tx: tx.blob(kept["sha256"]))

    async def settle(
        self, action: str, decision: Decision, *, by: str, result: Any = None, reason: str = ""
    ) -> None:
        """Decide about a doubtful action (``happened``, ``did-not-happen``, ``retry``) or a held one (``live``, ``fail``).

        Durable on return; its run takes it up soon after.

        Args:
            action: its id, ``run/call``.
            decision: what is the case, or what to do.
            by: who decides.
            result: what the tool returned, if it happened.
            reason: why; told to the agent if the action did not happen.

        Raises:
            ActionUnknownError: there is none, or it does not wait for that decision.
        """
        run, call = parts(action)
        ruling = ledger.Ruling(decision=decision, by=by, result=result, reason=reason)
        limit = self._runtime.settings.payload_bytes_max
        now_ms = self._runtime.now_ms()
        await self._runtime.store.transact(
            lambda tx: works.settle_action(tx, run, call, ruling, now_ms=now_ms, limit=limit)
        )
        self._runtime.look_after([run])

    def served(self, run: str) -> list[Served]:
        """What each attempt of a hosted program was answered with from the journal."""
        return self._runtime.store.read(lambda tx: tx.served(run))

    def accounts(self, run: str) -> list[Account]:
        """What a run and the runs above it may use and have used, the nearest first."""
        return self._runtime.store.read(lambda tx: tx.accounts(run))

    async def set_budget(self, run: str, budget: Budget | None, *, by: str = "operator") -> None:
        """Give a run another budget (``None``: none); what waited for one is judged again.

        Raises:
            RunUnknownError: there is no such run.
        """
        now_ms = self._runtime.now_ms()
        touched = await self._runtime.store.transact(
            lambda tx: works.set_budget(tx, run, budget, now_ms=now_ms, by=by)
        )
        self._runtime.look_after([run, *touched])


def parts(action: str) -> tuple[str, int]:
    """``run/call`` taken apart.

    Raises:
        ActionUnknownError: it is not an action's id.
    """
    run, slash, call = action.rpartition("/")
    if not slash or not run or not (call.isascii() and call.isdigit() and len(call) < 10):
        raise ActionUnknownError(
            f"`{action}` is no action's id; expected `RUN/CALL`, as `perdure actions list` shows it"
        )
    return run, int(call)
