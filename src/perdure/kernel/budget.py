"""Budgets as arithmetic: may this be spent, what does that leave. Reserved before, settled after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.core.actions import Account, Budget, Spend
from perdure.core.entries import Failure

PERCENT = 100


@dataclass(frozen=True, slots=True)
class Room:
    """Whether an estimate fits into every account of a chain; ``refusal`` says why not, ``warnings`` which are near."""

    refusal: Failure | None = None
    holds: bool = False
    warnings: tuple[str, ...] = ()


def usd_micros_left(chain: Sequence[Account]) -> int | None:
    """What is left of the tightest budget of money, in millionths of a dollar; ``None`` if there is none."""
    left = [
        account.budget.usd_micros - account.spent.usd_micros - account.reserved.usd_micros
        for account in chain
        if account.budget is not None and account.budget.usd_micros is not None
    ]
    return min(left, default=None)


def judge(chain: Sequence[Account], estimate: Spend, now_ms: int) -> Room:
    """Whether ``estimate`` may be reserved in each account: the run's own and those of the runs above it.

    What is reserved counts as spent, so that two children cannot both get the last cent.
    """
    warnings: list[str] = []
    for account in chain:
        budget = account.budget
        if budget is None:
            continue
        if budget.usd_micros is not None and estimate.unpriced and budget.unpriced == "refuse":
            message = (
                f"the cost is not known and run `{account.run}` has a budget of money; give the model a price in the "
                "configuration, or allow unpriced models in the budget"
            )
            return Room(Failure(code="model-unpriced", message=message))
        for what, limit, used, more in _limits(account, budget, estimate, now_ms):
            if used + more > limit:
                message = (
                    f"run `{account.run}` may use {_shown(what, limit)}, of which {_shown(what, used)} are spent or reserved; "
                    f"this needs up to {_shown(what, more)}: raise it with `perdure budgets set {account.run}`"
                )
                failure = Failure(code="budget-exhausted", message=message)
                return Room(failure, holds=budget.exhausted == "hold" and what != "wall_ms")
            if (used + more) * PERCENT >= limit * budget.warn_percent > 0:
                warnings.append(f"run `{account.run}`: {_shown(what, used + more)} of {_shown(what, limit)}")
    return Room(warnings=tuple(warnings))


def _limits(
    account: Account, budget: Budget, estimate: Spend, now_ms: int
) -> list[tuple[str, int, int, int]]:
    """(what, limit, used, more) of each limit that the budget has."""
    used = account.spent.plus(account.reserved)
    found: list[tuple[str, int, int, int]] = []
    for what in ("tokens", "usd_micros", "calls"):
        limit = getattr(budget, what)
        if limit is not None:
            found.append((what, limit, getattr(used, what), getattr(estimate, what)))
    if budget.wall_ms is not None:
        found.append(("wall_ms", budget.wall_ms, max(0, now_ms - account.since_ms), 0))
    return found


def _shown(what: str, amount: int) -> str:
    match what:
        case "usd_micros":
            return f"{amount / 1_000_000:.6f} USD"
        case "wall_ms":
            return f"{amount / 1000:.0f} s"
        case _:
            return f"{amount} {what}"
