"""Conduct rules as they are written: a TOML file with ``[[rule]]`` tables."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.verdicts import HOLD_MS, Demand

Kind = Literal["require", "after", "count", "sum", "distinct"]
KINDS: tuple[Kind, ...] = ("require", "after", "count", "sum", "distinct")
AT_MOST_MAX = 10_000  # what a window may hold for each pin: its size is the memory of the rule
PINS_MAX = 1_000  # different values of ``per`` in one run; beyond, the answer is no
RULES_MAX = 1_000
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
FOREVER_MS = 1 << 60


class ConductInvalidError(DefinitionError):
    """A conduct rule cannot be read, or names a tool that is not there."""

    code = "conduct-invalid"


class Pattern(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which actions are meant.

    Attributes:
        tool: its name, with ``*`` and ``?``.
        effect: only tools that declare it.
        state: ``intended`` (it passed every gate), ``succeeded``, ``failed`` or ``refused``.
    """

    tool: str = "*"
    effect: str = ""
    state: Literal["intended", "succeeded", "failed", "refused"] = "succeeded"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule.

    Attributes:
        id: what records call it.
        kind: ``require``: ``event`` only if ``before`` has happened; ``after``: no ``event`` once ``before`` has happened;
            ``count``, ``sum`` and ``distinct``: at most so many of ``event``, such a sum, or so many different values of argument
            ``of``.
        event: what is judged.
        before: what counts as happened, for ``require`` and ``after``.
        without: what undoes ``before``.
        once: for ``require``: each ``before`` is good for one ``event``.
        of: the argument that is added up or told apart.
        at_most: for ``count``, ``sum`` and ``distinct``.
        within: how far back, such as ``10m``; by default the whole run.
        per: an argument by whose value everything is told apart.
        then: ``deny`` or ``hold``.
        roles: for ``hold``, who may sign.
        reason: what people are told.
    """

    id: str
    kind: Kind
    event: Pattern
    before: Pattern | None = None
    without: Pattern | None = None
    once: bool = False
    of: str = ""
    at_most: int | None = None
    within: str = ""
    per: str = ""
    then: Literal["deny", "hold"] = "deny"
    roles: tuple[str, ...] = ("approver",)
    reason: str = ""

    @property
    def window_ms(self) -> int:
        """How far back it looks."""
        return span_ms(self.within) if self.within else FOREVER_MS

    @property
    def demand(self) -> Demand:
        """Who must sign, for ``hold``."""
        return Demand(roles=self.roles, deadline_ms=HOLD_MS)


def span_ms(text: str) -> int:
    """A time such as ``10m``.

    Raises:
        ConductInvalidError: it is none.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if found is None:
        raise ConductInvalidError(f"`{text}` is no time; expected such as `30s`, `10m`, `1h` or `7d`")
    return int(found[1]) * _UNITS[found[2]]


def load_rules(text: str, tools: Collection[str] | None = None) -> tuple[Rule, ...]:
    """The rules of a file, held against the tools if they are given.

    Raises:
        ConductInvalidError: one cannot be used; the message says which and why. None is used then.
    """
    try:
        data: Any = tomllib.loads(text)
        if set(data) - {"rule"}:
            raise ConductInvalidError(f"expected `[[rule]]` tables, found `{min(set(data) - {'rule'})}`")
        rules = msgspec.convert(data.get("rule", []), tuple[Rule, ...])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConductInvalidError(f"the conduct rules cannot be read: {error}") from error
    if len({rule.id for rule in rules}) < len(rules) or len(rules) > RULES_MAX:
        raise ConductInvalidError(f"expected at most {RULES_MAX} rules, each with an id of its own")
    for rule in rules:
        _check(rule)
    if tools is not None:
        check_tools(rules, tools)
    return rules


def check_tools(rules: Sequence[Rule], tools: Collection[str]) -> None:
    """Whether every pattern means a tool that is there.

    Raises:
        ConductInvalidError: one does not, so it would never count.
    """
    for rule in rules:
        for pattern in (rule.event, rule.before, rule.without):
            if pattern is not None and not any(fnmatch.fnmatchcase(name, pattern.tool) for name in tools):
                message = f"rule `{rule.id}`: no tool is called `{pattern.tool}`, so it would never count"
                raise ConductInvalidError(message, rule=rule.id)


def _check(rule: Rule) -> None:
    def wrong(why: str) -> ConductInvalidError:
        return ConductInvalidError(f"rule `{rule.id}`: {why}", rule=rule.id)

    is_sequence = rule.kind in ("require", "after")
    if is_sequence != (rule.before is not None):
        raise wrong("`before` is for `require` and `after`, which need it")
    if (rule.without is not None or rule.once) and not is_sequence:
        raise wrong("`without` and `once` are for `require` and `after`")
    if is_sequence == (rule.at_most is not None):
        raise wrong("`at_most` is for `count`, `sum` and `distinct`, which need it")
    if (rule.kind in ("sum", "distinct")) != bool(rule.of):
        raise wrong("`of` is for `sum` and `distinct`, which need it")
    if rule.at_most is not None and rule.kind != "sum" and not 0 <= rule.at_most <= AT_MOST_MAX:
        raise wrong(f"`at_most` is {rule.at_most}, expected 0 to {AT_MOST_MAX}")
    if rule.within:
        span_ms(rule.within)
