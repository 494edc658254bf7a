"""Sequence rules as authors write them, in TOML, and as the automata use them.

Whatever cannot be understood is an error when the file is read: an unknown kind or field, an id that is there twice, a
tool name that no tool has. A rule that silently never fits would be worse than none.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import msgspec

from perdure.core.tools import Effect
from perdure.governance.conduct_errors import ConductInvalidError
from perdure.governance.conduct_patterns import EventState, Path, Pattern, conditions, glob, path_of

Kind = Literal["after", "require", "count", "distinct", "sum", "absence"]
Then = Literal["watch", "hold", "restrict", "deny"]
Unit = Literal["", "ms", "actions"]

RULES_MAX = 1_000
CELLS_MAX = 65_536  # numbers kept by one rule in all its partitions together: half a MiB, and what a snapshot may take
PARTITIONS = 256  # unless a rule says more
MARKS_MAX = 1_024  # of one partition: a limit that is higher is better kept over the whole run, as one number
DISTINCT_MAX = 256
ENTRIES = 256  # amounts within one window
APPROVALS = 64  # unused ones that are kept; the oldest is forgotten, which lets less through
AMOUNT_MAX = 2**53  # amounts stop growing here: every store and language can still tell them apart
UNIT_MS: Mapping[str, int] = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class _PatternText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tool: str | tuple[str, ...] = ()
    effect: Effect | tuple[Effect, ...] = ()
    state: EventState | None = None
    where: dict[str, Any] = {}
    per: str = ""


_Meant = str | _PatternText


class _RuleText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    id: str
    then: Then
    reason: str
    roles: tuple[str, ...] = ()
    quorum: int = 1
    within: str = ""
    per: str = ""
    partitions: int | None = None


class _After(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="after"):
    first: _Meant
    action: _Meant
    unless: _Meant | None = None


class _Require(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="require"):
    action: _Meant
    needs: _Meant
    once: bool = False
    entries: int = APPROVALS


class _Count(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="count"):
    action: _Meant
    max: int


class _Distinct(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="distinct"):
    action: _Meant
    of: str
    max: int


class _Sum(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sum"):
    action: _Meant
    of: str
    max: int
    entries: int = ENTRIES


class _Absence(_RuleText, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="absence"):
    first: _Meant
    followed_by: _Meant
    action: _Meant | None = None


_Text = _After | _Require | _Count | _Distinct | _Sum | _Absence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, ready for use.

    Attributes:
        id: what reasons and records call it.
        kind: which automaton it is.
        then: what happens to an action that would break it.
        reason: what people and agents are told.
        roles: for ``hold``, who may sign.
        quorum: for ``hold``, how many different persons.
        unit: what the window is measured in; empty if it is the whole run.
        span: the length of the window in that unit.
        within: the window as the author wrote it.
        partitions: how many values of the pin are told apart.
        action: what is judged.
        opens: what makes the rule look: ``first``, or ``needs``.
        closes: what ends that: ``unless``, or ``followed_by``.
        max: the limit of a count or sum.
        of: the argument that is summed or told apart.
        once: whether one of ``needs`` releases one action only.
        entries: how many amounts or unused approvals are kept for each partition.
        digest: of what the author wrote: a kept state fits no other rule.
    """

    id: str
    kind: Kind
    then: Then
    reason: str
    roles: tuple[str, ...]
    quorum: int
    unit: Unit
    span: int
    within: str
    partitions: int
    action: Pattern | None
    opens: Pattern | None = None
    closes: Pattern | None = None
    max: int = 0
    of: Path = ()
    once: bool = False
    entries: int = 0
    digest: str = ""

    def concerns(self, tool: str) -> bool:
        """Whether events of this tool can matter to it."""
        return any(part is not None and part.can_be(tool) for part in (self.action, self.opens, self.closes))


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of one file.

    Attributes:
        rules: in the order of the file.
        by_tool: for each known tool, the places of the rules that its events can matter to.
        digest: of the file and the tools.
    """

    rules: tuple[Rule, ...]
    by_tool: Mapping[str, tuple[int, ...]]
    digest: str

    @classmethod
    def load(cls, text: str, tool_names: Collection[str]) -> Rules:
        """The rules of a TOML file.

        Args:
            text: of the file.
            tool_names: every tool that there is; a name in a rule that fits none of them is an error.

        Raises:
            ConductInvalidError: it cannot be used; the message and ``facts`` name the rule and the field.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConductInvalidError(f"the file is not TOML: {error}", rule="", field="") from error
        if unknown := sorted(set(data) - {"rule"}):
            raise ConductInvalidError(
                f"the file has `{unknown[0]}`; expected only `[[rule]]` tables", rule="", field=unknown[0]
            )
        found = data.get("rule", [])
        if not isinstance(found, list) or len(found) > RULES_MAX:
            message = f"`rule` must be a list of at most {RULES_MAX} tables, each begun with `[[rule]]`"
            raise ConductInvalidError(message, rule="", field="rule")
        known = frozenset(tool_names)
        made: dict[str, Rule] = {}
        for place, item in enumerate(found):
            rule = _rule(item, known, place)
            if rule.id in made:
                raise _invalid(rule.id, "id", "another rule has the same id")
            made[rule.id] = rule
        rules = tuple(made.values())
        by_tool = {
            name: tuple(place for place, rule in enumerate(rules) if rule.concerns(name)) for name in known
        }
        shown = msgspec.json.encode([text, sorted(known)])
        return cls(rules, by_tool, hashlib.sha256(shown).hexdigest())

    def about(self, tool: str) -> tuple[int, ...]:
        """The places of the rules that events of this tool can matter to."""
        found = self.by_tool.get(tool)
        if found is None:  # a tool that came later: rules without a tool, or with a `*`, are about it too
            return tuple(place for place, rule in enumerate(self.rules) if rule.concerns(tool))
        return found


def _invalid(rule: str, field: str, message: str) -> ConductInvalidError:
    return ConductInvalidError(f"rule `{rule}`, `{field}`: {message}", rule=rule, field=field)


_AT = re.compile(r" - at `\$\.?([^`]*)`")
_NAMED = re.compile(r"(?:unknown|required) field `([^`]*)`")


def _rule(item: object, known: frozenset[str], place: int) -> Rule:
    """One rule.

    Raises:
        ConductInvalidError: it cannot be used.
    """
    named = item.get("id") if isinstance(item, dict) else None
    name = named if isinstance(named, str) else f"number {place + 1}"
    try:
        text: _Text = msgspec.convert(item, type=_Text)
    except msgspec.ValidationError as error:
        message = str(error)
        at, extra = _AT.search(message), _NAMED.search(message)
        path = [found[1] for found in (at, extra) if found and found[1]]
        raise _invalid(name, ".".join(path), _AT.sub("", message)) from error
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text.id):
        raise _invalid(name, "id", "expected 1 to 64 letters, digits, `-`, `_` or `.`")
    _check_common(text)
    encoded = msgspec.json.encode(text, order="sorted")
    return _Maker(text, known).made(hashlib.sha256(encoded).hexdigest()[:32])


def _check_common(text: _Text) -> None:
    if not text.reason.strip():
        raise _invalid(text.id, "reason", "say why: agents and approvers read it")
    if (text.roles or text.quorum != 1) and text.then != "hold":
        raise _invalid(text.id, "roles", 'only a rule with then = "hold" asks somebody')
    if text.then == "hold" and not (text.roles and all(text.roles)):
        raise _invalid(text.id, "roles", "say who may release what is held")
    if not 1 <= text.quorum <= 100:
        raise _invalid(text.id, "quorum", "expected 1 to 100")


@dataclass(frozen=True, slots=True)
class _Maker:
    """Turns one rule's text into the rule."""

    text: _Text
    known: frozenset[str]

    def made(self, digest: str) -> Rule:
        text = self.text
        common: dict[str, Any] = {"id": text.id, "then": text.then, "reason": text.reason, "roles": text.roles,
                  "quorum": text.quorum, "within": text.within, "digest": digest}  # fmt: skip
        common["unit"], common["span"] = unit, _ = self._window()
        match text:
            case _After():
                parts = self._parts("after", 1, first=("opens", text.first, "intended", True),
                    action=("action", text.action, "intended", True),
                    unless=("closes", text.unless, "succeeded", False))  # fmt: skip
            case _Require():
                entries = self._limit("entries", text.entries, 1, MARKS_MAX) if text.once else 1
                parts = self._parts("require", entries, action=("action", text.action, "intended", True),
                    needs=("opens", text.needs, "succeeded", False))  # fmt: skip
                parts |= {"once": text.once, "entries": entries}
            case _Count():
                limit = self._limit("max", text.max, 0, MARKS_MAX if unit else AMOUNT_MAX - 1)
                parts = self._parts(
                    "count", limit if unit else 1, action=("action", text.action, "intended", True)
                )
                parts |= {"max": limit}
            case _Distinct():
                limit = self._limit("max", text.max, 0, DISTINCT_MAX)
                parts = self._parts("distinct", limit + 1, action=("action", text.action, "intended", True))
                parts |= {"max": limit, "of": self._path("of", text.of)}
            case _Sum():
                entries = self._limit("entries", text.entries, 1, MARKS_MAX)
                parts = self._parts(
                    "sum", 2 * entries if unit else 1, action=("action", text.action, "intended", True)
                )
                parts |= {"max": self._limit("max", text.max, 0, AMOUNT_MAX - 1), "entries": entries,
                          "of": self._path("of", text.of)}  # fmt: skip
            case _Absence():
                if unit != "ms":
                    raise _invalid(text.id, "within", "say by when, as a time such as `1h`")
                parts = self._parts("absence", 1, first=("opens", text.first, "intended", True),
                    followed_by=("closes", text.followed_by, "succeeded", False),
                    action=("action", text.action, "intended", True))  # fmt: skip
            case _:
                assert_never(text)
        return Rule(**common, **parts)

    def _window(self) -> tuple[Unit, int]:
        text = self.text
        if not text.within:
            return "", 1
        found = re.fullmatch(r"([0-9]{1,12}) ?(ms|s|m|h|d|actions?)", text.within)
        if found is None or int(found[1]) == 0:
            message = f"expected such as `30s`, `10m`, `1h`, `7d` or `20 actions`, found `{text.within}`"
            raise _invalid(text.id, "within", message)
        if found[2].startswith("action"):
            return "actions", int(found[1])
        return "ms", int(found[1]) * UNIT_MS[found[2]]

    def _limit(self, field: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            raise _invalid(self.text.id, field, f"expected {least} to {most}, found {value}")
        return value

    def _path(self, field: str, text: str) -> Path:
        try:
            return path_of(text)
        except ValueError as error:
            raise _invalid(self.text.id, field, str(error)) from error

    def _parts(
        self, kind: Kind, cells: int, **patterns: tuple[str, _Meant | None, EventState, bool]
    ) -> dict[str, Any]:
        """The patterns, and how many partitions there may be if each of them keeps so many numbers."""
        text = self.text
        most = CELLS_MAX // max(cells, 1)
        given = text.partitions
        if given is not None and not text.per:
            raise _invalid(text.id, "partitions", "there are none without `per`")
        room = self._limit("partitions", given, 1, most) if given is not None else min(PARTITIONS, most)
        made: dict[str, Any] = {"kind": kind, "partitions": room if text.per else 1, "action": None}
        for field, (slot, meant, state, is_strict) in patterns.items():
            made[slot] = None if meant is None else self._pattern(field, meant, state, is_strict=is_strict)
        return made

    def _pattern(self, field: str, meant: _Meant, state: EventState, *, is_strict: bool) -> Pattern:
        rule = self.text.id
        text = _PatternText(tool=meant) if isinstance(meant, str) else meant
        names = (text.tool,) if isinstance(text.tool, str) else text.tool
        effects = (text.effect,) if isinstance(text.effect, str) else text.effect
        if not names and not effects:
            raise _invalid(rule, field, "say which tools or effects are meant")
        if text.per and not self.text.per:
            raise _invalid(rule, f"{field}.per", "the rule has no `per`")
        for name in names:
            one = glob(name)
            if not any(one.match(tool) for tool in self.known):
                raise _invalid(rule, f"{field}.tool", f"no tool is called `{name}`")
        globs = glob(*names) if names else None
        try:
            where = conditions(text.where)
        except ValueError as error:
            raise _invalid(rule, f"{field}.where", str(error)) from error
        pin = text.per or self.text.per
        return Pattern(
            state=text.state or state,
            tools=frozenset(tool for tool in self.known if globs.match(tool)) if globs else None,
            known=self.known,
            globs=globs,
            effects=frozenset(effects) if effects else None,
            where=where,
            pin=self._path(f"{field}.per" if text.per else "per", pin) if pin else (),
            is_strict=is_strict,
        )
