"""From the text of policies to policies: parsed, with their ids and lines, and held against a schema.

Cedar's parser calls itself for each level of nesting and ends the process when its stack is used up, so texts are looked at before
it sees them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.policy_obligations import check_annotations
from perdure.governance.policy_schema import GROUPS

NESTING_MAX = (
    32  # brackets within each other, or `if`s in all; Cedar dies of some hundreds on a stack of 8 MiB
)
PARTS_MAX = 500  # operators, or dots, of one policy; Cedar can hold some 60 of them in one condition
PROBLEMS_SHOWN = 3
_PARSER_NAME = re.compile(r"for policy `policy[0-9]+`, ")
# Strings and comments as Cedar reads them, so that no bracket in one counts and none outside of one is missed.
_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*+") | (?P<comment>//[^\n\r]*) | (?P<name>[A-Za-z_]\w*) | (?P<open>[(\[{]) | (?P<close>[)\]}])
    | (?P<end>;) | (?P<operator>\|\||&&|[+*-]) | (?P<dot>\.) | \S""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy as it was written.

    Attributes:
        id: its ``@id``, or ``file#n``.
        file: where it is written.
        line: on which line it begins.
        effect: ``permit`` or ``forbid``.
        annotations: by name; one without a value has an empty one.
        data: the policy in Cedar's JSON form.
    """

    id: str
    file: str
    line: int
    effect: str
    annotations: Mapping[str, str]
    data: Mapping[str, Any]

    @property
    def actions(self) -> frozenset[str] | None:
        """The actions and groups of actions in its scope; ``None`` is any."""
        scope = self.data["action"]
        if scope["op"] == "All":
            return None
        listed = scope["entities"] if "entities" in scope else [scope["entity"]]
        return frozenset(item["id"] for item in listed)

    @property
    def text(self) -> str:
        """As Cedar writes it, without comments."""
        import cedarpy

        return cedarpy.policies_from_json_str(_document({self.id: self.data})).strip()


def read(file: str, text: str, schema: Any) -> list[Policy]:
    """The policies of one file. All of them, or none.

    Raises:
        PolicyInvalidError: one cannot be parsed, does not fit the schema, or has an annotation that cannot be followed.
    """
    import cedarpy

    statements = _statements(file, text)
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, statements, error) from error
    if parsed.get("templates"):
        raise PolicyInvalidError(f"`{file}` has a template; write the policy for each principal", file=file)
    order = sorted(parsed["staticPolicies"].items(), key=lambda item: int(item[0].removeprefix("policy")))
    found: list[Policy] = []
    for number, (_, data) in enumerate(order, start=1):
        annotations = {name: value or "" for name, value in data.get("annotations", {}).items()}
        name = annotations.get("id") or f"{file}#{number}"
        line = statements[number - 1][0] if len(statements) >= len(order) else 1
        policy = Policy(
            id=name, file=file, line=line, effect=data["effect"], annotations=annotations, data=data
        )
        _check(policy)
        found.append(policy)
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        raise _unfitting(file, found, [key for key, _ in order], result.errors)
    return found


def parsed(policies: Sequence[Policy]) -> Any:
    """The policies as Cedar's own set, under their ids.

    Raises:
        PolicyInvalidError: Cedar cannot hold one of them.
    """
    import cedarpy

    try:
        return cedarpy.PolicySet.from_json_str(_document({policy.id: policy.data for policy in policies}))
    except (ValueError, RecursionError) as error:
        if len(policies) > 1:  # which one it is, it does not say
            for policy in policies:
                parsed([policy])
        first = policies[0] if policies else None
        where = _place(first.file, first.line, first.id) if first else "a policy"
        message = f"{where} has a condition of too many parts ({_first_line(error)}); use `[...].contains(...)`, or write several policies"
        raise PolicyInvalidError(message) from error


def _check(policy: Policy) -> None:
    where = _place(policy.file, policy.line, policy.id)
    try:
        check_annotations(policy.annotations)
    except PolicyInvalidError as error:
        raise PolicyInvalidError(
            f"{where} {error.message}", file=policy.file, line=policy.line, policy=policy.id
        ) from error
    # A group is never itself what is done, so this would be about nothing, and a `forbid` would forbid nothing.
    if policy.data["action"]["op"] == "==" and (
        groups := sorted((policy.actions or frozenset()) & {*GROUPS})
    ):
        message = f'{where} has `action == Action::"{groups[0]}"`, which no action is; write `action in Action::"{groups[0]}"`'
        raise PolicyInvalidError(message, file=policy.file, line=policy.line, policy=policy.id)


def _statements(file: str, text: str) -> list[tuple[int, str]]:
    """The policies of a text, each with the line on which it begins, if Cedar can be given it.

    Raises:
        PolicyInvalidError: one is nested so deep, or so long, that Cedar's parser might not survive it.
    """
    found: list[tuple[int, str]] = []
    start = line = seen = -1
    depth = branches = operators = dots = 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "comment":
            continue
        if start < 0:
            start = token.start()
            line = text.count("\n", 0, start) + 1 if seen < 0 else line + text.count("\n", seen, start)
            seen = start
            branches = operators = dots = 0
        depth = max(0, depth + (kind == "open") - (kind == "close"))
        branches += token[0] == "if"
        operators += kind == "operator"
        dots += kind == "dot"
        if max(depth, branches) > NESTING_MAX or max(operators, dots) > PARTS_MAX:
            message = (
                f"{_place(file, line)} has more than {NESTING_MAX} brackets within each other or `if`s, or more than {PARTS_MAX} "
                "operators or dots, in one policy; write it simpler, or as several policies"
            )
            raise PolicyInvalidError(message, file=file, line=line)
        if kind == "end":
            found.append((line, text[start : token.end()]))
            start = -1
    if start >= 0:
        found.append((line, text[start:]))
    return found


def _unreadable(file: str, statements: Sequence[tuple[int, str]], error: Exception) -> PolicyInvalidError:
    """Cedar does not say where; the first policy that cannot be read alone is the place."""
    import cedarpy

    for line, statement in statements:
        try:
            json.loads(cedarpy.policies_to_json_str(statement))
        except (ValueError, RecursionError) as alone:
            why = _first_line(alone)
            return PolicyInvalidError(
                f"{_place(file, line)} cannot be read: {why}; correct the policy", file=file, line=line
            )
    return PolicyInvalidError(f"`{file}` cannot be read: {_first_line(error)}; correct the file", file=file)


def _unfitting(
    file: str, found: Sequence[Policy], keys: Sequence[str], errors: Sequence[Any]
) -> PolicyInvalidError:
    """What does not fit the tools, the first few problems of it."""
    told: list[str] = []
    first: Policy | None = None
    for problem in errors:
        policy = found[keys.index(problem.policy_id)] if problem.policy_id in keys else None
        first = first or policy
        where = f"`{file}`" if policy is None else _place(file, policy.line, policy.id)
        told.append(f"{where} does not fit the tools: {_PARSER_NAME.sub('', problem.error)}")
    if len(told) > PROBLEMS_SHOWN:
        told[PROBLEMS_SHOWN:] = [f"and {len(told) - PROBLEMS_SHOWN} more"]
    line, name = (first.line, first.id) if first else (0, "")
    return PolicyInvalidError("; ".join(told), file=file, line=line, policy=name)


def _place(file: str, line: int, name: str = "") -> str:
    return f"policy `{name}` of `{file}`, line {line}," if name else f"`{file}`, line {line},"


def _document(static: Mapping[str, Any]) -> str:
    return json.dumps({"staticPolicies": dict(static), "templates": {}, "templateLinks": []})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
