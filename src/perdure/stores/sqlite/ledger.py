"""The action ledger and the accounts of runs in SQL."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core.actions import Account, ActionFilter, ActionRecord, ActionState, Budget, Served, Spend
from perdure.core.errors import BrokenInvariantError
from perdure.stores.sqlite.side import SideTables

_encode = msgspec.json.Encoder().encode
_spend = msgspec.json.Decoder(Spend).decode
_budget = msgspec.json.Decoder(Budget).decode

_COLUMNS = (
    "runs.id, call, runs.agent, what, name, state, recovery, effect, intended_ms, intent_seq, endpoint, exact, masked, "
    "causal, ordinal, attempt, end_seq, actions.ended_ms, reserved, spent, input_tokens, output_tokens, upstream, "
    "actions.code, undoes"
)
_FIELDS = (
    "run", "call", "agent", "what", "name", "state", "recovery", "effect", "intended_ms", "intent_seq", "endpoint",
    "exact", "masked", "causal", "ordinal", "attempt", "end_seq", "ended_ms", "reserved", "spent", "input_tokens",
    "output_tokens", "upstream", "code", "undoes",
)  # fmt: skip

# The run and every run above it, the nearest first.
_CHAIN = """
WITH RECURSIVE above (key, id, parent, created_ms, height) AS (
    SELECT key, id, parent, created_ms, 0 FROM runs WHERE id = ?
    UNION ALL
    SELECT runs.key, runs.id, runs.parent, runs.created_ms, height + 1 FROM runs JOIN above ON runs.id = above.parent
)
"""
_PARTS = ("tokens", "usd_micros", "calls", "unpriced")


class LedgerTables(SideTables):
    """The part of the ``Transaction`` port about actions and budgets."""

    def put_action(self, action: ActionRecord) -> None:
        """Add a row."""
        self._execute(
            "INSERT INTO actions SELECT key, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, "
            "?19, ?20, ?21, ?22, ?23, ?24 FROM runs WHERE id = ?1",
            (
                action.run, action.call, action.what, action.name, action.endpoint, action.state, action.recovery,
                action.effect, action.exact, action.masked, action.causal, action.ordinal, action.attempt,
                action.intended_ms, action.intent_seq, action.ended_ms, action.end_seq,
                _text(action.reserved), _text(action.spent), action.input_tokens, action.output_tokens, action.upstream,
                action.code, action.undoes,
            ),
        )  # fmt: skip

    def change_action(self, before: ActionState, action: ActionRecord) -> None:
        """Replace a row that is in state ``before``."""
        cursor = self._execute(
            "UPDATE actions SET state = ?, end_seq = ?, ended_ms = ?, reserved = ?, spent = ?, input_tokens = ?, "
            "output_tokens = ?, upstream = ?, code = ?, intended_ms = ?, intent_seq = ? "
            "WHERE run = (SELECT key FROM runs WHERE id = ?) AND call = ? AND state = ?",
            (
                action.state, action.end_seq, action.ended_ms, _text(action.reserved), _text(action.spent),
                action.input_tokens, action.output_tokens, action.upstream, action.code, action.intended_ms,
                action.intent_seq, action.run, action.call, before,
            ),
        )  # fmt: skip
        if cursor.rowcount != 1:
            raise BrokenInvariantError(f"action `{action.key}` is not `{before}`", action=action.key)

    def action(self, run_id: str, call: int) -> ActionRecord | None:
        """One row."""
        found = self._actions("runs.id = ? AND call = ?", (run_id, call))
        return found[0] if found else None

    def actions(self, want: ActionFilter) -> list[ActionRecord]:
        """Rows, newest first."""
        clauses, values = ["1"], []
        if want.run is not None:
            clauses.append("runs.id = ?")
            values.append(want.run)
        if want.name is not None:
            clauses.append("name = ?")
            values.append(want.name)
        if want.state is not None:
            clauses.append(f"state IN ({', '.join('?' * len(want.state))})")
            values.extend(want.state)
        where = f"{' AND '.join(clauses)} ORDER BY intended_ms DESC, actions.run DESC, call DESC LIMIT ?"
        return self._actions(where, (*values, want.limit))

    def actions_since(self, since_ms: int, limit: int) -> list[ActionRecord]:
        """Rows that were intended since then, newest first."""
        where = "intended_ms >= ? ORDER BY intended_ms DESC, actions.run DESC, call DESC LIMIT ?"
        return self._actions(where, (since_ms, limit))

    def run_actions(self, run_id: str) -> list[ActionRecord]:
        """Every row of one run, in call order."""
        return self._actions("runs.id = ? ORDER BY call", (run_id,))

    def undoing(self, run_id: str) -> list[ActionRecord]:
        """Rows of any run that undo, or were to undo, actions of this run."""
        return self._actions(
            "undoes >= ? AND undoes < ? ORDER BY actions.run, call", (f"{run_id}/", f"{run_id}0")
        )

    def _actions(self, where: str, values: tuple[Any, ...]) -> list[ActionRecord]:
        query = f"SELECT {_COLUMNS} FROM actions JOIN runs ON runs.key = actions.run WHERE {where}"
        return [_record(row) for row in self._execute(query, values).fetchall()]

    # -- hosted programs
    def note_served(self, served: Served) -> None:
        """Remember which row answered an attempt."""
        self._execute(
            "INSERT OR IGNORE INTO served SELECT key, ?2, ?3, ?4, ?5 FROM runs WHERE id = ?1",
            (served.run, served.attempt, served.call, served.level, served.at_ms),
        )

    def served(self, run_id: str) -> list[Served]:
        """What was answered from the journal, in order."""
        rows = self._execute(
            "SELECT attempt, call, level, at_ms FROM served WHERE run = (SELECT key FROM runs WHERE id = ?) "
            "ORDER BY attempt, at_ms, call",
            (run_id,),
        ).fetchall()
        return [
            Served(run=run_id, attempt=attempt, call=call, level=level, at_ms=at_ms)
            for attempt, call, level, at_ms in rows
        ]

    # -- accounts
    def accounts(self, run_id: str) -> list[Account]:
        """The account of a run and of each run above it, the nearest first."""
        rows = self._execute(
            f"{_CHAIN} SELECT above.id, above.created_ms, budget, reserved_tokens, reserved_usd_micros, reserved_calls, "
            "reserved_unpriced, spent_tokens, spent_usd_micros, spent_calls, spent_unpriced FROM above "
            "LEFT JOIN accounts ON accounts.run = above.key ORDER BY height",
            (run_id,),
        ).fetchall()
        return [_account(row) for row in rows]

    def book(self, run_id: str, reserved: Spend, spent: Spend) -> None:
        """Add to what a run and each run above it have reserved and spent; negative amounts take away."""
        if reserved == spent == Spend():
            return
        amounts = [getattr(item, part) for item in (reserved, spent) for part in _PARTS]
        columns = [f"{kind}_{part}" for kind in ("reserved", "spent") for part in _PARTS]
        updates = ", ".join(f"{column} = {column} + excluded.{column}" for column in columns)
        self._execute(
            f"{_CHAIN} INSERT INTO accounts (run, {', '.join(columns)}) SELECT key, ?, ?, ?, ?, ?, ?, ?, ? FROM above "
            f"WHERE true ON CONFLICT (run) DO UPDATE SET {updates}",
            (run_id, *amounts),
        )

    def set_budget(self, run_id: str, budget: Budget | None) -> None:
        """Give a run a budget, or take it away."""
        self._execute(
            "INSERT INTO accounts (run, budget) SELECT key, ?2 FROM runs WHERE id = ?1 "
            "ON CONFLICT (run) DO UPDATE SET budget = excluded.budget",
            (run_id, None if budget is None else _text(budget)),
        )


def _text(value: msgspec.Struct) -> str:
    return _encode(value).decode()


def _record(row: tuple[Any, ...]) -> ActionRecord:
    values = dict(zip(_FIELDS, row, strict=True))
    values["state"] = ActionState(values["state"])
    values["reserved"] = _spend(values["reserved"])
    values["spent"] = _spend(values["spent"])
    return ActionRecord(**values)


def _account(row: tuple[Any, ...]) -> Account:
    run, since_ms, budget, *amounts = row
    reserved, spent = (
        Spend(**dict(zip(_PARTS, [item or 0 for item in part], strict=True)))
        for part in (amounts[:4], amounts[4:])
    )
    return Account(
        run=run, budget=None if budget is None else _budget(budget), reserved=reserved, spent=spent, since_ms=since_ms
    )  # fmt: skip
