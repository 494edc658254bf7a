"""What sequence rules remember of one run: a few numbers for each rule and pin, never the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.governance.conduct_errors import ConductStateError
from perdure.governance.conduct_rules import AMOUNT_MAX, Rule, Rules

LATE_MAX = 16  # late ends of one rule that are kept one by one; further ones are counted
VERSION = 1


@dataclass(slots=True)
class Part:
    """What one rule remembers for one value of its pin; which of these it uses depends on its kind.

    Attributes:
        marks: times or action numbers, oldest first.
        amounts: of a sum, one for each mark.
        seen: of ``distinct``, the values with their newest marks, oldest first.
        total: of a count or sum without a window: all of it; of a sum with one: that of ``amounts``.
    """

    marks: list[int] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    total: int = 0


@dataclass(slots=True)
class Late:
    """What had to be followed by something within a time was, but later."""

    key: str
    since_ms: int
    ended_ms: int


@dataclass(slots=True)
class Cell:
    """What one rule remembers.

    Attributes:
        parts: by the value of the pin; what was touched longest ago comes first.
        lost: the mark of the newest event that could not be kept.
        late: of ``absence``, the newest late ends.
        late_more: late ends before those.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    lost: int | None = None
    late: list[Late] = field(default_factory=list)
    late_more: int = 0


class _CellData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    digest: str
    lost: int | None
    late: list[tuple[str, int, int]]
    late_more: int
    parts: list[tuple[str, list[int], list[int], list[tuple[str, int]], int]]


class _StateData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    now_ms: int
    actions: int
    rules: list[_CellData]


@dataclass(slots=True)
class State:
    """What the rules remember of one run; only ``advance`` changes it, in place.

    Attributes:
        now_ms: the latest time of an event; a clock that goes back does not open a window again.
        actions: how many actions were requested.
        cells: one for each rule, in their order.
    """

    now_ms: int
    actions: int
    cells: list[Cell]

    @classmethod
    def fresh(cls, rules: Rules) -> State:
        """Of a run that has done nothing."""
        return cls(0, 0, [Cell() for _ in rules.rules])

    def to_data(self, rules: Rules) -> dict[str, Any]:
        """All of it as plain data that JSON can hold, integers within 63 bits."""
        found: dict[str, Any] = msgspec.to_builtins(
            _StateData(
                version=VERSION,
                now_ms=self.now_ms,
                actions=self.actions,
                rules=[_cell_data(rule, cell) for rule, cell in zip(rules.rules, self.cells, strict=True)],
            )
        )
        return found

    @classmethod
    def from_data(cls, rules: Rules, data: object) -> State:
        """What ``to_data`` gave.

        Raises:
            ConductStateError: it is damaged, or one of the rules is new or has changed since: build the state anew from
                the run's history (``replayed``).
        """
        try:
            kept = msgspec.convert(data, _StateData)
        except msgspec.ValidationError as error:
            raise ConductStateError(f"the state cannot be read: {error}") from error
        wanted = [(rule.id, rule.digest) for rule in rules.rules]
        if kept.version != VERSION or [(cell.id, cell.digest) for cell in kept.rules] != wanted:
            raise ConductStateError("the state is of other rules; build it anew from the run's history")
        cells = [_cell(rule, cell) for rule, cell in zip(rules.rules, kept.rules, strict=True)]
        return cls(kept.now_ms, kept.actions, cells)


def _cell_data(rule: Rule, cell: Cell) -> _CellData:
    return _CellData(
        id=rule.id,
        digest=rule.digest,
        lost=cell.lost,
        late=[(late.key, late.since_ms, late.ended_ms) for late in cell.late],
        late_more=cell.late_more,
        parts=[
            (key, part.marks, part.amounts, list(part.seen.items()), 0 if part.amounts else part.total)
            for key, part in cell.parts.items()
        ],
    )


def _cell(rule: Rule, data: _CellData) -> Cell:
    parts: dict[str, Part] = {}
    for key, marks, amounts, seen, total in data.parts:
        ordered = sorted(marks) == marks and sorted(mark for _, mark in seen) == [mark for _, mark in seen]
        in_range = all(0 <= amount <= AMOUNT_MAX for amount in (*amounts, total))
        if key in parts or not ordered or not in_range or (amounts and len(amounts) != len(marks)):
            raise ConductStateError(f"the state of rule `{rule.id}` contradicts itself", rule=rule.id)
        parts[key] = Part(marks, amounts, dict(seen), sum(amounts) if amounts else total)
    if len(parts) > rule.partitions or len(data.late) > LATE_MAX:
        raise ConductStateError(f"the state of rule `{rule.id}` is larger than it can be", rule=rule.id)
    late = [Late(key, since_ms, ended_ms) for key, since_ms, ended_ms in data.late]
    return Cell(parts, data.lost, late, data.late_more)
