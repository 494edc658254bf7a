"""``actions ...`` and ``budgets ...``: the ledger, the inbox of what must be decided, what may be and was spent."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any, cast

import msgspec

from perdure.cli import views
from perdure.cli.hosting import MICROS, limited, usd_micros
from perdure.cli.opening import beside
from perdure.cli.output import Out, dumps
from perdure.core.actions import Account, ActionRecord, ActionState, Budget, Decision
from perdure.core.errors import UsageError
from perdure.gateway.ledger import DECISIONS
from perdure.runtime import Runtime
from perdure.runtime.actions import ActionView

BAR = 20


def actions(
    data: Path, out: Out, *, run: str | None, state: str | None, name: str | None, limit: int
) -> None:
    """List actions."""
    states = None if state is None else (ActionState(state),)

    async def work(runtime: Runtime) -> list[ActionRecord]:
        return runtime.actions.rows(run=run, state=states, name=name, limit=limit)

    _listed(out, beside(data, work), empty="no actions")


def _listed(out: Out, rows: list[ActionRecord], *, empty: str) -> None:
    if out.json:
        for row in rows:
            out.emit(row_json(row))
        return
    table = [
        [
            row.key, row.what, row.name, row.state.value, views.when(row.intended_ms),
            views.span(row.ended_ms - row.intended_ms) if row.ended_ms else "",
            str(row.spent.tokens or ""), money(row), row.code,
        ]
        for row in rows
    ]  # fmt: skip
    out.table(
        ("action", "what", "name", "state", "intended", "took", "tokens", "usd", "code"), table, empty=empty
    )


def row_json(row: ActionRecord) -> dict[str, Any]:
    """A row for programs."""
    found: dict[str, Any] = msgspec.to_builtins(row)
    return {"action": row.key, **found}


def money(row: ActionRecord) -> str:
    """What an action cost; an unknown cost is a question mark, never zero."""
    if row.what != "model":
        return ""
    if row.spent.unpriced:
        return "?"
    return f"{row.spent.usd_micros / MICROS:.6f}" if row.state is ActionState.SUCCEEDED else ""


def show(data: Path, out: Out, action: str, output: Path | None = None) -> None:
    """Everything about one action; with ``output`` its whole output goes to a file."""

    async def work(runtime: Runtime) -> tuple[ActionView, list[str]]:
        view = runtime.actions.show(action)
        if output is not None:
            _write(output, runtime.actions.output(action))
        served = [item for item in runtime.actions.served(view.record.run) if item.call == view.record.call]
        return view, [f"attempt {item.attempt}: {item.level}" for item in served]

    view, served = beside(data, work)
    row = view.record
    if out.json:
        history = [views.entry_json(entry) for entry in view.history]
        error = None if view.error is None else msgspec.to_builtins(view.error)
        found = {
            "request": view.request,
            "result": view.result,
            "error": error,
            "history": history,
            "served": served,
        }
        out.emit({**row_json(row), **found})
        return
    pairs = [
        ("action", row.key),
        ("what", f"{row.what} `{row.name}`" + (f" at {row.endpoint}" if row.endpoint else "")),
        ("agent", row.agent),
        ("state", row.state.value + (f" ({row.code})" if row.code else "")),
        ("declared", f"recovery {row.recovery}, effect {row.effect}"),
        ("intended", views.when(row.intended_ms)),
        ("ended", views.when(row.ended_ms) if row.ended_ms else ""),
        ("upstream", row.upstream),
        ("tokens", f"{row.input_tokens} in, {row.output_tokens} out" if row.input_tokens is not None else ""),
        ("cost", f"{cost} USD" if (cost := money(row)) else ""),
        ("served", "; ".join(served)),
        ("request", views.shorten(dumps(view.request), 2_000)),
        ("result", views.shorten(dumps(view.result), 2_000) if view.result is not None else ""),
        ("error", f"{view.error.code}: {view.error.message}" if view.error else ""),
    ]
    out.facts([pair for pair in pairs if pair[1]])
    for entry in view.history:
        out.text(f"  {entry.seq:>4} {views.when(entry.at_ms)} {type(entry).__name__}")
    _advice(out, row)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error.strerror}; give another file") from error


def doubtful(data: Path, out: Out) -> None:
    """What waits for a decision, the oldest first."""

    async def work(runtime: Runtime) -> list[ActionView]:
        return [runtime.actions.show(row.key) for row in reversed(runtime.actions.waiting())]

    found = beside(data, work)
    if out.json:
        for view in found:
            out.emit(
                {**row_json(view.record), "request": view.request, "decisions": DECISIONS[view.record.state]}
            )
        return
    if not found:
        out.note("nothing is doubtful or held")
    for view in found:
        row = view.record
        out.text(
            f"{row.key}  {row.what} `{row.name}` of agent `{row.agent}` is {row.state.value}, {views.due(row.intended_ms)}"
        )
        out.text(f"  {views.shorten(dumps(view.request), 400)}")
        _advice(out, row)


def _advice(out: Out, row: ActionRecord) -> None:
    allowed = DECISIONS.get(row.state)
    if allowed is None:
        return
    why = (
        "it was dispatched and nobody knows whether it happened"
        if row.state is ActionState.UNKNOWN
        else f"held: {row.code}"
    )
    out.text(f"  {why}; decide with")
    out.text(f"    perdure actions settle {row.key} {'|'.join(allowed)}")


def settle(
    data: Path, out: Out, action: str, decision: str, *, by: str | None, reason: str, result: str | None
) -> None:
    """Decide about an action."""
    value = _json(result)
    who = by or _user()
    if result is not None and decision != "happened":
        raise UsageError("`--result` says what the tool returned, so it goes with `happened` only")

    async def work(runtime: Runtime) -> None:
        await runtime.actions.settle(action, cast(Decision, decision), by=who, result=value, reason=reason)

    beside(data, work)
    if out.json:
        out.emit({"action": action, "decision": decision, "by": who})
    else:
        out.text(f"{action}: {decision}, by {who}; its run takes it up")


def _user() -> str:
    """Who uses the command line; a container may run under a number that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "command-line"


def _json(text: str | None) -> Any:
    """A result as it is recorded for good, so it must be JSON.

    Raises:
        UsageError: it is not.
    """
    try:
        return None if text is None else msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise UsageError(
            f"`--result {text:.100}` is no JSON ({error}); a text needs quotation marks of its own"
        ) from error


# -- budgets
def budgets(data: Path, out: Out, run: str | None) -> None:
    """What runs may use and have used."""

    async def work(runtime: Runtime) -> list[tuple[int, Account]]:
        if run is not None:
            return _tree(runtime, run)
        found = [
            (0, runtime.actions.accounts(record.id)[0])
            for record in runtime.runs(limit=500)
            if record.parent is None
        ]
        return [
            item
            for item in found
            if item[1].budget is not None or item[1].spent.calls or item[1].reserved.calls
        ]

    accounts = beside(data, work)
    if out.json:
        for depth, account in accounts:
            out.emit({"depth": depth, **msgspec.to_builtins(account)})
        return
    rows = [row for depth, account in accounts for row in _rows(depth, account)]
    out.table(
        ("run", "what", "spent", "reserved", "limit", ""),
        rows,
        empty="no run has a budget or has spent anything"
        if run is None
        else f"run `{run}` has no budget and has spent nothing",
    )


def _tree(runtime: Runtime, run: str) -> list[tuple[int, Account]]:
    found: list[tuple[int, Account]] = []

    def add(name: str, depth: int) -> None:
        found.append((depth, runtime.actions.accounts(name)[0]))
        for child in reversed(runtime.runs(parent=name)):
            add(child.id, depth + 1)

    add(runtime.run(run).id, 0)
    return found


def _rows(depth: int, account: Account) -> list[list[str]]:
    budget = account.budget or Budget()
    rows: list[list[str]] = []
    for what, limit in (("usd", budget.usd_micros), ("tokens", budget.tokens), ("calls", budget.calls)):
        part = "usd_micros" if what == "usd" else what
        spent, reserved = getattr(account.spent, part), getattr(account.reserved, part)
        if limit is None and not spent and not reserved:
            continue
        told = _amount(what, spent) + (" + ?" if what == "usd" and account.spent.unpriced else "")
        share = min(BAR, (spent + reserved) * BAR // limit) if limit else 0
        bar = "█" * share + "·" * (BAR - share) if limit else ""
        name = "" if rows else f"{'  ' * depth}{account.run}"
        rows.append(
            [name, what, told, _amount(what, reserved), "" if limit is None else _amount(what, limit), bar]
        )
    if budget.wall_ms is not None:
        name = "" if rows else f"{'  ' * depth}{account.run}"
        rows.append([name, "wall", "", "", views.span(budget.wall_ms), ""])
    return rows


def _amount(what: str, amount: int) -> str:
    return f"{amount / MICROS:.6f}" if what == "usd" else str(amount)


def set_budget(
    data: Path,
    out: Out,
    run: str,
    *,
    usd: str | None,
    tokens: int | None,
    calls: int | None,
    wall: float | None,
    hold: bool,
    fail: bool,
    none: bool,
) -> None:
    """Change the budget of a run; what is not named stays as it is."""
    if hold and fail:
        raise UsageError("give `--hold` or `--fail`, not both")
    named: dict[str, Any] = {
        "usd_micros": limited("--usd", None if usd is None else usd_micros(usd)),
        "tokens": limited("--tokens", tokens),
        "calls": limited("--calls", calls),
        "wall_ms": limited("--wall", None if wall is None else wall * 1000),
        "exhausted": "hold" if hold else "fail" if fail else None,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if none == bool(given):
        raise UsageError(
            "give `--usd`, `--tokens`, `--calls`, `--wall`, `--hold` or `--fail`, or `--none` to take the budget away"
        )

    async def work(runtime: Runtime) -> Budget | None:
        now = runtime.actions.accounts(runtime.run(run).id)[0].budget or Budget()
        # Raising one limit must not lift another: what is held at that one would be dispatched.
        budget = None if none else msgspec.structs.replace(now, **given)
        await runtime.actions.set_budget(run, budget, by=_user())
        return budget

    budget = beside(data, work)
    if out.json:
        out.emit({"run": run, "budget": None if budget is None else msgspec.to_builtins(budget)})
    elif budget is None:
        out.text(f"{run}: no budget")
    else:
        out.text(f"{run}: the new budget is in force; what waited for it is judged again")
