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
    found = _type_of(spec.parameters, spec.parameters.get("$defs", {}), 0)
    return dict(found["attributes"]) if found is not None and found["type"] == "Record" else {}


def _type_of(schema: Any, definitions: Mapping[str, Any], depth: int) -> dict[str, Any] | None:
    """The Cedar type of a JSON Schema; ``None`` if there is none."""
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return None
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        return _type_of(definitions.get(name), definitions, depth + 1)
    options = [item for item in schema.get("anyOf", ()) if item != {"type": "null"}]
    if "anyOf" in schema:
        return _type_of(options[0], definitions, depth) if len(options) == 1 else None
    match schema.get("type"):
        case "string":
            return dict(_STRING)
        case "integer":
            return dict(_LONG)
        case "boolean":
            return dict(_BOOL)
        case "array":
            element = _type_of(schema.get("items"), definitions, depth + 1)
            return None if element is None else {"type": "Set", "element": element}
        case "object":
            required = schema.get("required", ())
            attributes: dict[str, Any] = {}
            for name, part in schema.get("properties", {}).items():
                found = _type_of(part, definitions, depth + 1)
                if found is not None:
                    is_nullable = isinstance(part, dict) and {"type": "null"} in part.get("anyOf", ())
                    attributes[name] = {**found, "required": name in required and not is_nullable}
            return _record(attributes)
        case _:
            return None


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
