"""The Cedar schema of a runtime, made from its tools, and requests that fit it.

Each tool is an action under ``read`` or ``write``, both under ``tool_call``; its arguments are the record ``context.input``. What a
type of Cedar cannot hold (fractions, mixed lists, what the schema leaves open) is not in the record: a policy that asks for it does
not validate, and so cannot allow by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.core.tools import ToolSpec

LONG_MAX = 2**63 - 1
DEPTH_MAX = 4  # of records within records
ATTRIBUTES_MAX = 1_000  # of one tool, at all depths: a schema that refers to itself multiplies
TOOL_CALL, READ, WRITE, MODEL = "tool_call", "read", "write", "model_request"
GROUPS = (TOOL_CALL, READ, WRITE)
PRINCIPALS = ("Agent", "User", "Service")
_STRING, _LONG, _BOOL = {"type": "String"}, {"type": "Long"}, {"type": "Boolean"}
_STRINGS = {"type": "Set", "element": _STRING}
#: What the runtime says of every action; the model has no part in it.
GOVERNANCE: Mapping[str, Any] = {
    "run": _STRING,
    "agent": _STRING,
    "risk": _STRING,
    "effect": _STRING,
    "on_behalf_of": _STRINGS,
    "labels": _STRINGS,
    "sources": _STRINGS,
    "approved": _BOOL,
    "time": _LONG,
    "hour": _LONG,
    "weekday": _LONG,
    "confidence": {**_LONG, "required": False},
    "budget_left_usd_micros": {**_LONG, "required": False},
}


def schema_of(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The schema in Cedar's JSON form."""
    entities: dict[str, Any] = {
        "Role": {},
        "Group": {},
        "Agent": {"memberOfTypes": ["Role"]},
        "User": {"memberOfTypes": ["Group"]},
        "Service": {"memberOfTypes": ["Group"]},
        "Model": {},
        "Tool": {"shape": _record(dict.fromkeys(("effect", "recovery", "source"), _STRING))},
    }
    # A group applies by itself too, or a policy about it would not validate where no tool is in it.
    actions: dict[str, Any] = {TOOL_CALL: _applies("Tool", {})}
    actions[READ] = actions[WRITE] = {**_under(TOOL_CALL), **_applies("Tool", {})}
    actions[MODEL] = _applies("Model", {})
    for spec in sorted(tools, key=lambda item: item.name):
        group = READ if spec.effect == "read" else WRITE
        actions[spec.name] = {**_under(group), **_applies("Tool", input_of(spec))}
    return {"": {"entityTypes": entities, "actions": actions}}


def _under(group: str) -> dict[str, Any]:
    return {"memberOf": [{"id": group}]}


def _applies(resource: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    context = _record({"governance": _record(GOVERNANCE), "input": _record(arguments)})
    return {
        "appliesTo": {"principalTypes": list(PRINCIPALS), "resourceTypes": [resource], "context": context}
    }


def _record(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Record", "attributes": dict(attributes)}


def input_of(spec: ToolSpec) -> dict[str, Any]:
    """The attributes of ``context.input`` for a tool."""
    return _Reading(spec).attributes


def left_out(spec: ToolSpec) -> tuple[str, ...]:
    """The arguments of a tool that policies cannot see, as paths such as ``input.price``; ``input`` is all of them."""
    return tuple(_Reading(spec).left)


class _Reading:
    """One JSON Schema on its way to a type of Cedar.

    Schemas come from tools of others, so nothing is taken for granted: whatever is not as expected is left out.
    """

    def __init__(self, spec: ToolSpec) -> None:
        definitions = spec.parameters.get("$defs")
        self._definitions: dict[str, Any] = definitions if isinstance(definitions, dict) else {}
        self._count = 0
        self.left: list[str] = []
        record = self._record({"type": "object", **spec.parameters}, "input", 0)
        if self._count > ATTRIBUTES_MAX or spec.parameters.get("type", "object") != "object":
            record, self.left = _record({}), ["input"]
        self.attributes: dict[str, Any] = record["attributes"]

    def _record(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties"), schema.get("required")
        attributes: dict[str, Any] = {}
        for name, part in properties.items() if isinstance(properties, dict) else ():
            self._count += 1
            if self._count > ATTRIBUTES_MAX:
                break
            place = f"{path}.{name}"
            found, is_nullable = self._type(part, place, depth + 1)
            if found is None or not _is_text(name):
                self.left.append(place)
            else:
                is_required = isinstance(required, list) and name in required and not is_nullable
                attributes[name] = {**found, "required": is_required}
        return _record(attributes)

    def _type(self, schema: Any, path: str, depth: int) -> tuple[dict[str, Any] | None, bool]:
        """The Cedar type of a JSON Schema, ``None`` if there is none, and whether it may be null."""
        if not isinstance(schema, dict) or depth > DEPTH_MAX:
            return None, False
        reference = schema.get("$ref")
        if isinstance(reference, str):
            known = self._definitions.get(reference.removeprefix("#/$defs/"))
            return self._type(known, path, depth + 1)
        kinds = schema.get("type")
        if kinds is None:
            options = schema.get("anyOf")
            listed = options if isinstance(options, list) else []
            rest = [item for item in listed if item != {"type": "null"}]
            if len(rest) != 1:
                return None, False
            found, is_nullable = self._type(rest[0], path, depth)
            return found, is_nullable or len(rest) < len(listed)
        names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
        one = [name for name in names if name != "null"]
        return (self._named(one[0], schema, path, depth) if len(one) == 1 else None), "null" in names

    def _named(self, name: Any, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any] | None:
        match name:
            case "string":
                return dict(_STRING)
            case "integer":
                return dict(_LONG)
            case "boolean":
                return dict(_BOOL)
            case "array":
                element, is_nullable = self._type(schema.get("items"), f"{path}[]", depth + 1)
                return None if element is None or is_nullable else {"type": "Set", "element": element}
            case "object":
                return self._record(schema, path, depth)
            case _:
                return None


def _is_text(name: str) -> bool:
    """Whether a name can be written down: half a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def fitted(value: Any, kind: Mapping[str, Any]) -> Any:
    """A value as its Cedar type takes it.

    Raises:
        ValueError: it is not of that type.
    """
    match kind["type"], value:
        case ("String", str()) | ("Boolean", bool()):
            return value
        case "Long", int() if not isinstance(value, bool) and abs(value) <= LONG_MAX:
            return value
        case "Set", list():
            return [fitted(item, kind["element"]) for item in value]
        case "Record", dict():
            found: dict[str, Any] = {}
            for name, part in kind["attributes"].items():
                if value.get(name) is not None:
                    found[name] = fitted(value[name], part)
            return found
        case _:
            raise ValueError(f"expected a {kind['type']}, found {type(value).__name__}")
